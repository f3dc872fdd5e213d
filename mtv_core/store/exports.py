"""`<table>/exports/<id>.json`: where copies of a table's rows are, so that whoever takes a sample down knows where else it lies."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from mtv_core.store.slice_config import SliceConfig
from mtv_core.store.table import Table

FOLDER = "exports"


class ExportRecord(BaseModel, frozen=True, extra="forbid"):
    """One copy of some rows."""

    uri: str = Field(description="of the folder, as whoever exported saw it")
    export: str = Field(description="id of the export, as in its manifest.json")
    state: Literal["writing", "done"] = Field("writing", description="a copy under way has rows too")
    format: str
    version: int = Field(description="of the table")
    tag: str | None = None
    data: SliceConfig
    split: str
    columns: list[str]
    rows: int
    started: datetime = Field(default_factory=lambda: datetime.now(UTC))
    finished: datetime | None = None

    @property
    def id(self) -> str:
        """16 hex digits: one record a place and export."""
        return hashlib.sha256(f"{self.uri}\0{self.export}".encode()).hexdigest()[:16]


def begin(table: Table, record: ExportRecord) -> ExportRecord:
    """Record a copy before its first row is written. One that goes on keeps the record it has.

    Raises:
        OSError: the table cannot be written to.
    """
    earlier = _read(table, f"{record.id}.json")
    if earlier is None:
        _write(table, record)
    return earlier or record


def finish(table: Table, record: ExportRecord) -> None:
    """Record that a copy is whole."""
    if record.state != "done":
        _write(table, record.model_copy(update={"state": "done", "finished": datetime.now(UTC)}))


def drop(table: Table, uri: str, export: str) -> None:
    """Forget a copy that was removed from its place."""
    for record in read_all(table):
        if (record.uri, record.export) == (uri, export):
            table.files.remove(f"{FOLDER}/{record.id}.json")


def read_all(table: Table) -> list[ExportRecord]:
    """Every copy that was ever begun, the oldest first. Whether it still lies there, its folder's manifest.json says."""
    found = [_read(table, name) for name in table.files.names(FOLDER)]
    return sorted((record for record in found if record is not None), key=lambda record: record.started)


def problems(table: Table) -> list[str]:
    """A message for each record that cannot be read: somewhere there is a copy, and nobody knows of what."""
    found = []
    for name in table.files.names(FOLDER):
        try:
            content = table.files.read(f"{FOLDER}/{name}")
            ExportRecord.model_validate_json(content)
        except FileNotFoundError:
            continue
        except ValidationError as error:
            where = table.files.path(f"{FOLDER}/{name}")
            found.append(
                f"the export that {where} records, {_place(content)}: the record is damaged or was written by another version "
                f"({error.errors()[0]['msg']})"
            )
    return found


def _place(content: bytes) -> str:
    """What a record of any version says of where the copy is."""
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    uri = document.get("uri") if isinstance(document, dict) else None
    return f"at {uri}" if isinstance(uri, str) else "at a place that cannot be read"


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
