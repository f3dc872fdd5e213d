"""Try an expert's new revision on some rows, aside: what would change, and whether that may be.

    <table>/_reports/canary/<expert>-<revision>/   canary.json   the figures and the verdict
                                                   canary.html   the same for people, with pictures
                                                   *.jpg         the pictures

A canary changes nothing of the table. `accept` makes its revision the accepted one, after which all other rows are stale; `reject` records
that it was refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import BaseModel, Field

from mtv_core import labelling_accept
from mtv_core.executor import Executor, Progress, silent
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

FOLDER = "_reports/canary"


class GateCheck(BaseModel, frozen=True, extra="forbid"):
    """One threshold."""

    name: str = Field(description="key of the threshold in label.gate: 'depth.max_abs_rel'")
    value: float | None = Field(description="what was measured; None: there was nothing to measure")
    limit: float
    passed: bool
    meaning: str = Field(description="what is measured and why it matters, for people")


class Canary(BaseModel, frozen=True, extra="forbid"):
    """What trying a revision on some rows found."""

    expert: str
    revision: str = Field(description="the tracked revision, which was tried")
    accepted: str = Field(description="the accepted revision, which it was compared with")
    license: str = Field(description="of the new weights")
    accepted_license: str = Field(description="of the accepted ones")
    model: str = Field(description="the new model, as the configuration names it")
    accepted_model: str = Field(description="the accepted one, as its configuration named it")
    version: int = Field(description="version of the table whose rows were labelled")
    rows: int = Field(description="rows that were labelled aside")
    figures: dict[str, float]
    checks: list[GateCheck]
    passed: bool = Field(description="whether every check passed")
    page: str = Field(description="URI of the HTML page")
    pictures: list[str] = Field(description="URIs of pictures: image, old and new label beside each other; the most changed first")
    key: str = Field(description="digest of what the result depends on; the same key, the same canary")
    at: str = Field(description="when, UTC, ISO 8601")

    @property
    def failed(self) -> list[GateCheck]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def pending(
    table_uri: str,
    config: LabelConfig,
    storage_options: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    names: Collection[str] | None = None,
) -> tuple[list[Canary], list[str]]:
    """The canaries that are there already, and the experts that have yet to be tried: `try_out` needs workers only for these."""
    raise NotImplementedError


def try_out(
    table_uri: str,
    config: LabelConfig,
    executor: Executor,
    progress: Progress = silent,
    storage_options: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    names: Collection[str] | None = None,
) -> list[Canary]:
    """Try every expert whose tracked revision is neither accepted nor refused before. Changes nothing of the table.

    Args:
        table_uri: where.
        config: the experts, and the gate.
        executor: labels rows, in chunks.
        progress: told how many are done.
        storage_options: of the table.
        force: try refused revisions again.
        names: only these experts.

    Raises:
        FileNotFoundError: there is no table, or no such expert.
        ValueError: an expert cannot be used as configured.
    """
    raise NotImplementedError


def accept(table_uri: str, canary: Canary, config: LabelConfig, storage_options: Mapping[str, str] | None = None) -> None:
    """Make a canary's revision the accepted one; rows of others are stale from then on. Again, it does nothing.

    Raises:
        ValueError: the configuration resolves to another revision by now.
    """
    table = Table.open(table_uri, storage_options)
    expert = config.experts().get(canary.expert)
    if expert is None:
        raise ValueError(f"the {canary.expert} expert is not configured any more: set label.{canary.expert}")
    labelling_accept.accept(table, canary.expert, expert, table.accepted().get(canary.expert), expected=canary.revision)


def reject(table_uri: str, canary: Canary, reason: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Record that a canary's revision was refused. Nothing else changes; again with the same reason, nothing does.

    Raises:
        ValueError: it was accepted meanwhile.
    """
    table = Table.open(table_uri, storage_options)
    known = next((one for one in table.rejected().get(canary.expert, []) if one.revision == canary.revision), None)
    if known is None or known.reason != reason:
        table.reject(canary.expert, canary.revision, reason)
