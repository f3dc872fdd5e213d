"""`<table>/exports/<id>.json`: where copies of a table's rows are, so that whoever takes a sample down knows where else it lies."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from mtv_core.dataset_export.plan import Plan
from mtv_core.store.slice_config import SliceConfig
from mtv_core.store.table import Table

FOLDER = "exports"


class ExportRecord(BaseModel, frozen=True, extra="forbid"):
    """One copy of some rows."""

    uri: str = Field(description="of the folder, as whoever exported saw it")
    export: str = Field(description="id of the export, as in its manifest.json")
    state: Literal["writing", "done"] = Field(description="a copy under way has rows too")
    format: str
    version: int = Field(description="of the table")
    tag: str | None = None
    data: SliceConfig
    split: str
    columns: list[str]
    rows: int
    started: datetime
    finished: datetime | None = None

    @property
    def id(self) -> str:
        """16 hex digits: one record a place and plan."""
        return _id(self.uri, self.export)


def _id(uri: str, export: str) -> str:
    return hashlib.sha256(f"{uri}\0{export}".encode()).hexdigest()[:16]


def begin(table: Table, uri: str, plan: Plan) -> ExportRecord:
    """Record an export before its first row is written; one that goes on keeps its record.

    Raises:
        OSError: the table cannot be written to.
    """
    record = ExportRecord(
        uri=uri, export=plan.id, state="writing", format=plan.format, version=plan.version, tag=plan.tag, data=plan.data, split=plan.split,
        columns=plan.columns, rows=plan.num_rows, started=datetime.now(UTC),
    )  # fmt: skip
    earlier = _read(table, f"{record.id}.json")
    if earlier is not None:
        return earlier
    _write(table, record)
    return record


def finish(table: Table, record: ExportRecord) -> None:
    """Record that it is whole."""
    if record.state != "done":
        _write(table, record.model_copy(update={"state": "done", "finished": datetime.now(UTC)}))


def drop(table: Table, uri: str, plan: Plan) -> None:
    """Forget a copy that was removed from its place."""
    table.files.remove(f"{FOLDER}/{_id(uri, plan.id)}.json")


def read_all(table: Table) -> list[ExportRecord]:
    """Every copy that was ever begun, the oldest first. Whether it still lies there, its folder's manifest.json says."""
    found = [_read(table, name) for name in table.files.names(FOLDER)]
    return sorted((record for record in found if record is not None), key=lambda record: record.started)


def _write(table: Table, record: ExportRecord) -> None:
    try:
        table.files.write(f"{FOLDER}/{record.id}.json", (record.model_dump_json(indent=2) + "\n").encode())
    except PermissionError as error:
        raise PermissionError(
            f"cannot write to {table.uri}: copies of a table's rows are recorded there, in {FOLDER}/, so that takedowns find them ({error})"
        ) from None


def _read(table: Table, name: str) -> ExportRecord | None:
    try:
        return ExportRecord.model_validate_json(table.files.read(f"{FOLDER}/{name}"))
    except (FileNotFoundError, ValidationError):
        return None
