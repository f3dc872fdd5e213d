"""The report of an ingest, written beside the table: numbers for programs, a page for people, pictures, and the table's dataset card.

    <table>/README.md                        the dataset card, of the whole table as it is now
    <table>/reports/table.json               what its rows look like (`mtv_core.store.summary`)
    <table>/reports/<ingest id>/report.json  this ingest; report.html and report.md say the same, gallery.jpg shows some rows
                              /NAME.jpg      pairs worth looking at, where there are any

Writing the same report again replaces it. Numbers of the table come from its rows, those of the ingest from its workers and its commit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

from pydantic import BaseModel, Field

from mtv_core import dataset_card, ingest_gallery, ingest_pages
from mtv_core.data.funnel import Step, funnel
from mtv_core.data.stats import IngestStats, SampleStats
from mtv_core.ingest_config import IngestConfig
from mtv_core.report import StageReport, plain
from mtv_core.store import summary
from mtv_core.store.rejects import Selection
from mtv_core.store.table import Table

FOLDER = "reports"
_BEGUN = "begun.json"
_STAGE = "ingest"


class Refused(BaseModel, frozen=True, extra="forbid"):
    """What was refused for one reason."""

    reason: str
    number: int
    shards: bool = Field(False, description="whether shards were refused, as opposed to samples")
    example: str = Field("", description="where one of them is, and what is said of it")


class IngestReport(BaseModel, frozen=True, extra="forbid"):
    """Everything the pages show."""

    ingest_id: str
    written: datetime
    table: str = Field(description="name of the table")
    version: int
    seconds: float = Field(description="wall time")
    revision: str = Field(description="of the configuration")
    config: str = Field(description="YAML")
    notes: list[str] = Field(default_factory=list, description="what a person should know")
    report: StageReport
    stats: IngestStats
    funnel: list[Step]
    refused: list[Refused]
    table_stats: SampleStats


class Committed(Protocol):
    """What an ingest came to: see `mtv_core.ingest_commit`."""

    ingest_id: str
    report: StageReport
    stats: IngestStats
    notes: list[str]
    pictures: dict[str, bytes]


class Unwritten(BaseModel, extra="forbid"):
    """What an ingest came to, kept from before its ledger until its report is written, so that a kill between them costs only pictures."""

    ingest_id: str
    report: StageReport
    stats: IngestStats
    notes: list[str]
    pictures: dict[str, bytes] = Field(default_factory=dict)


def begin(table: Table, ingest_id: str, report: StageReport, stats: IngestStats, notes: list[str]) -> None:
    """Keep what the report will say. Call it before the ledger says that the shards are done."""
    record = Unwritten(ingest_id=ingest_id, report=report, stats=stats, notes=notes)
    table.files.write(f"{FOLDER}/{ingest_id}/{_BEGUN}", record.model_dump_json(exclude={"pictures"}).encode())


def finish(table: Table, config: IngestConfig) -> None:
    """Write the reports that killed ingests left unwritten, and the card after them."""
    for name in table.files.names(FOLDER):
        if _BEGUN in table.files.names(f"{FOLDER}/{name}") and table.exists():
            with contextlib.suppress(FileNotFoundError):  # its own ingest has written it just now
                record = Unwritten.model_validate_json(table.files.read(f"{FOLDER}/{name}/{_BEGUN}"))
                write(table, record, config, seconds=record.report.seconds)


def write(table: Table, committed: Committed, config: IngestConfig, *, seconds: float) -> dict[str, str]:
    """Write report, pictures and card; returns name → URI. An ingest is not failed by its report: what cannot be written is noted.

    Args:
        table: after the commit.
        committed: what the ingest brought. `pictures` has names such as 'near_duplicates' and JPEGs.
        config: of the ingest.
        seconds: wall time.
    """
    files: dict[str, str] = {}
    try:
        _write(table, committed, config, seconds, files)
    except OSError as error:
        committed.notes.append(f"the rows are in the table, but the report could not be written: {plain(error)}")
    return files


def _write(table: Table, committed: Committed, config: IngestConfig, seconds: float, files: dict[str, str]) -> None:
    rows = summary.summarise(table) if table.exists() else summary.Summary(version=0)
    folder = f"{FOLDER}/{committed.ingest_id}"
    chosen = rows.latest.get(committed.ingest_id, [])
    pictures = ingest_gallery.thumbnails(summary.look_at(table, chosen, ["image", "caption"])) if chosen else []
    document = _report(table, committed, config, seconds, rows)

    def keep(name: str, content: bytes) -> None:
        table.files.write(f"{folder}/{name}", content)
        files[name] = table.files.path(f"{folder}/{name}")

    for name, picture in committed.pictures.items():
        keep(f"{name}.jpg", picture)
    if (sheet := ingest_gallery.sheet(pictures)) is not None:
        keep("gallery.jpg", ingest_gallery.jpeg(sheet))
    sheets = {name.replace("_", " ").capitalize(): picture for name, picture in committed.pictures.items()}
    keep("report.html", ingest_pages.html(document, pictures, sheets).encode())
    keep("report.md", ingest_pages.markdown(document).encode())
    keep("report.json", document.model_dump_json(indent=1).encode())
    files["README.md"] = refresh_card(table, config, rows)
    table.files.remove(f"{folder}/{_BEGUN}")


def refresh_card(table: Table, config: IngestConfig, rows: summary.Summary | None = None) -> str:
    """Write the dataset card anew, after rows came or went; returns its URI.

    Raises:
        FileNotFoundError: the table has no rows.
    """
    rows = rows or summary.summarise(table)
    table.files.write("README.md", dataset_card.card(table, config, rows).encode())
    return table.files.path("README.md")


def _report(table: Table, committed: Committed, config: IngestConfig, seconds: float, rows: summary.Summary) -> IngestReport:
    stats = committed.stats
    return IngestReport(
        ingest_id=committed.ingest_id,
        written=datetime.now(UTC),
        table=table.uri.rstrip("/").rsplit("/", 1)[-1],
        version=rows.version,
        seconds=round(seconds, 3),
        revision=config.revision(),
        config=dataset_card.public(config),
        notes=list(committed.notes),
        report=committed.report,
        stats=stats.model_copy(update={"kept": _final(stats.kept)}),
        funnel=funnel(stats, config.filters),
        refused=_refused(table, stats),
        table_stats=_final(rows.stats),
    )


def _refused(table: Table, stats: IngestStats) -> list[Refused]:
    """The reasons of this ingest, the most frequent first, with an example each."""
    examples: Mapping[str, str] = {}
    reasons = {**stats.refused, **stats.failed_shards}
    if reasons:
        groups = table.rejects.groups(Selection(stage=_STAGE, reasons=sorted(reasons)), examples=1)
        examples = {group.error: _example(group.examples[0]) for group in groups if group.examples}
    found = [
        Refused(reason=reason, number=count, shards=counts is stats.failed_shards, example=examples.get(reason, ""))
        for counts in (stats.failed_shards, stats.refused)
        for reason, count in counts.items()
    ]
    return sorted(found, key=lambda one: (not one.shards, -one.number, one.reason))


def _example(reject: Mapping[str, object]) -> str:
    return f"{reject['location'] or reject['key']}: {reject['message']}"[:400]


def _final(stats: SampleStats) -> SampleStats:
    """Without what only adding up needs, since it names rows."""
    return stats.model_copy(update={name: getattr(stats, name).anonymous() for name in ("licenses", "domains")})
