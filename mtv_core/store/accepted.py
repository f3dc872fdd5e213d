"""Which revision of an expert a table's labels are to have, and which were refused: kept in the table, true wherever it is read.

Both are entries of the configuration of `samples.lance`, `mtv.accepted.<expert>` and `mtv.rejected.<expert>`; a change is one commit.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from lance import LanceDataset
from pydantic import BaseModel, Field, TypeAdapter

_ACCEPTED = "mtv.accepted."
_REJECTED = "mtv.rejected."
_KEPT = 50  # rejected revisions of an expert; who proposes more than that has forgotten the first


class Accepted(BaseModel, frozen=True, extra="forbid"):
    """The revision of an expert that the table's labels are to have, and where it can be loaded from."""

    revision: str
    source: dict[str, Any]


class Rejected(BaseModel, frozen=True, extra="forbid"):
    """A revision of an expert that was tried on a few rows and refused: it is not proposed again unless somebody forces it."""

    revision: str
    reason: str = Field(description="which threshold it broke, or what the person said")
    at: str = Field(description="when, UTC, ISO 8601")


_LIST = TypeAdapter(list[Rejected])


def accepted(dataset: LanceDataset) -> dict[str, Accepted]:
    """Expert → the revision its labels are to have."""
    return {name: Accepted.model_validate_json(value) for name, value in _entries(dataset, _ACCEPTED).items()}


def rejected(dataset: LanceDataset) -> dict[str, list[Rejected]]:
    """Expert → the revisions that were refused, the latest last."""
    return {name: found for name, value in _entries(dataset, _REJECTED).items() if (found := _LIST.validate_json(value))}


def accept(dataset: LanceDataset, expert: str, revision: str, source: dict[str, Any]) -> None:
    """From now on rows of another revision are stale. A revision that was refused before is refused no more."""
    changes: dict[str, str | None] = {}
    wanted = Accepted(revision=revision, source=source)
    if accepted(dataset).get(expert) != wanted:
        changes[_ACCEPTED + expert] = wanted.model_dump_json()
    refused = rejected(dataset).get(expert, [])
    kept = [one for one in refused if one.revision != revision]
    if kept != refused:
        changes[_REJECTED + expert] = _LIST.dump_json(kept).decode()
    if changes:
        dataset.update_config(changes)


def reject(dataset: LanceDataset, expert: str, revision: str, reason: str) -> None:
    """Note that a revision was refused; refused again, the new reason counts.

    Raises:
        ValueError: it is the accepted one.
    """
    known = accepted(dataset).get(expert)
    if known is not None and known.revision == revision:
        raise ValueError(f"revision {revision} is the accepted one of the {expert} expert; accept another before this one is refused")
    kept = [one for one in rejected(dataset).get(expert, []) if one.revision != revision]
    kept.append(Rejected(revision=revision, reason=reason, at=datetime.now(UTC).isoformat(timespec="seconds")))
    dataset.update_config({_REJECTED + expert: _LIST.dump_json(kept[-_KEPT:]).decode()})


def _entries(dataset: LanceDataset, prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in dataset.config().items() if key.startswith(prefix)}
