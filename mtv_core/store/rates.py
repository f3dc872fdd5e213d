"""How fast experts labelled, as every labelling run measures it: one small file a revision, `<table>/_rates/<expert>/<revision>.json`.

Beside the samples, not in their configuration, since a version of the table costs more than a number is worth. A run that is killed leaves
what the one before it measured.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, ValidationError

from mtv_core.report import StageReport
from mtv_core.store.labels import revision_name

if TYPE_CHECKING:
    from mtv_core.store.table import Table

_FOLDER = "_rates"
_ENOUGH = 1000  # rows from which a later run's measurement replaces an earlier one: of fewer, start-up is most


class Rate(BaseModel, frozen=True, extra="forbid"):
    """One expert's share of a labelling run."""

    revision: str
    rows: int = Field(gt=0, description="rows labelled or refused")
    bytes_written: int = Field(ge=0, description="of the label files")
    worker_seconds: float = Field(gt=0, description="s, summed over the workers, loading the weights included")
    wall_seconds: float = Field(gt=0, description="s of the run that were this expert's: of two that share the workers each has a share")
    workers: int = Field(gt=0, description="processes that did the work")
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(), description="when it was measured, UTC, ISO 8601")

    @property
    def rows_per_second(self) -> float:
        """Of the whole run."""
        return self.rows / self.wall_seconds


class Meter:
    """Adds up what a run's workers did."""

    def __init__(self) -> None:
        self._reports: dict[str, StageReport] = {}  # expert → of its fragments
        self._workers: set[str] = set()
        self._wall = 0.0

    def add(self, expert: str, report: StageReport, worker: str) -> None:
        """A fragment was labelled, by the worker of this name."""
        self._reports[expert] = self._reports.get(expert, StageReport()) + report
        self._workers.add(worker)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Wall time inside is the run's: staging, commits and waiting included."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._wall += time.monotonic() - began

    def rates(self, revisions: Mapping[str, str]) -> dict[str, Rate]:
        """Expert → what was measured; nothing of an expert that had nothing to do."""
        everything = sum(report.seconds for report in self._reports.values())
        return {
            expert: Rate(
                revision=revisions[expert],
                rows=rows,
                bytes_written=report.bytes_written,
                worker_seconds=report.seconds,
                wall_seconds=self._wall * report.seconds / everything,
                workers=len(self._workers),
            )
            for expert, report in self._reports.items()
            if (rows := report.rows_out + report.rows_rejected)
        }


def record(table: Table, expert: str, rate: Rate) -> None:
    """Keep what a run measured, unless it is of so few rows that what is known already says more."""
    known = _read(table, expert, rate.revision)
    if known is None or rate.rows >= min(_ENOUGH, known.rows):
        table.files.write(_name(expert, rate.revision), rate.model_dump_json().encode())


def last(table: Table, expert: str, revision: str) -> Rate | None:
    """What is known of a revision; of one that never ran, the latest of another revision of the expert; None if none ever ran."""
    known = _read(table, expert, revision)
    if known is not None:
        return known
    names = table.files.names(f"{_FOLDER}/{expert}")
    others = [rate for name in names if (rate := _read(table, expert, name.removesuffix(".json"))) is not None]
    return max(others, key=lambda rate: rate.at, default=None)


def _name(expert: str, revision: str) -> str:
    return f"{_FOLDER}/{expert}/{revision_name(revision)}.json"


def _read(table: Table, expert: str, revision: str) -> Rate | None:
    try:
        return Rate.model_validate_json(table.files.read(_name(expert, revision)))
    except (FileNotFoundError, ValidationError):  # by another version of MTV
        return None
