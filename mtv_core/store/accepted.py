"""Which revision of an expert a table's labels are to have, and which were refused: kept in the table, true wherever it is read.

What is accepted is an entry of the configuration of `samples.lance`, `mtv.accepted.<expert>`; a change is one commit. What was refused is a
file, `<table>/_rejected/<expert>.json`: a refusal changes nothing of the table, so it makes no version, which tags and training would see.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from lance import LanceDataset
from pydantic import BaseModel, Field, TypeAdapter

from mtv_core.data.files import Files

_ACCEPTED = "mtv.accepted."
_FOLDER = "_rejected"
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
    entries = {key.removeprefix(_ACCEPTED): value for key, value in sorted(dataset.config().items()) if key.startswith(_ACCEPTED)}
    return {name: Accepted.model_validate_json(value) for name, value in entries.items()}


def rejected(files: Files, dataset: LanceDataset) -> dict[str, list[Rejected]]:
    """Expert → the revisions that were refused, the latest last; the accepted ones are none, whatever was said before."""
    known = accepted(dataset)
    found = {}
    for name in files.names(_FOLDER):
        expert = name.removesuffix(".json")
        refused = [one for one in _read(files, expert) if expert not in known or one.revision != known[expert].revision]
        if refused:
            found[expert] = refused
    return found


def accept(files: Files, dataset: LanceDataset, expert: str, revision: str, source: dict[str, Any]) -> None:
    """From now on rows of another revision are stale. A revision that was refused before is refused no more."""
    wanted = Accepted(revision=revision, source=source)
    if accepted(dataset).get(expert) != wanted:
        dataset.update_config({_ACCEPTED + expert: wanted.model_dump_json()})
    refused = _read(files, expert)
    kept = [one for one in refused if one.revision != revision]
    if kept != refused:
        _write(files, expert, kept)


def reject(files: Files, dataset: LanceDataset, expert: str, revision: str, reason: str) -> None:
    """Note that a revision was refused; refused again, the new reason counts.

    Raises:
        ValueError: it is the accepted one.
    """
    known = accepted(dataset).get(expert)
    if known is not None and known.revision == revision:
        raise ValueError(f"revision {revision} is the accepted one of the {expert} expert; accept another before this one is refused")
    kept = [one for one in _read(files, expert) if one.revision != revision]
    kept.append(Rejected(revision=revision, reason=reason, at=datetime.now(UTC).isoformat(timespec="seconds")))
    _write(files, expert, kept[-_KEPT:])


def _read(files: Files, expert: str) -> list[Rejected]:
    try:
        return _LIST.validate_json(files.read(f"{_FOLDER}/{expert}.json"))
    except FileNotFoundError:
        return []


def _write(files: Files, expert: str, refused: list[Rejected]) -> None:
    files.write(f"{_FOLDER}/{expert}.json", _LIST.dump_json(refused))
