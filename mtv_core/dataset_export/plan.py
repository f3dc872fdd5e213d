"""What an export is, written down: the plan first, one record a file as it is done, the manifest last."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mtv_core.data.files import Files
from mtv_core.data.stats import Tally
from mtv_core.dataset_export.config import Format, Split
from mtv_core.store.slice_config import SliceConfig

LAYOUT = 1  # of the exported files; another one writes other bytes
PLAN, MANIFEST, STATE = "export.json", "manifest.json", "_state"


class Plan(BaseModel, frozen=True, extra="forbid"):
    """Everything the bytes of an export follow from, but where it lies. `export.json` in its folder, written first."""

    layout: int = LAYOUT
    format: Format
    table: str = Field(description="URI")
    version: int = Field(description="of the table")
    tag: str | None = Field(None, description="the name of that version, if it was asked for by it")
    data: SliceConfig
    split: str
    columns: list[str] = Field(description="of the table, in their order")
    shard_size: int = Field(description="rows a file")
    rows: dict[Split, int] = Field(description="split → rows; splits without rows are left out")

    @property
    def id(self) -> str:
        """16 hex digits: the same plan, the same bytes."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(self.rows.values())

    def num_shards(self, split: Split) -> int:
        """Files of a split."""
        return -(-self.rows.get(split, 0) // self.shard_size)

    def different(self, other: Plan) -> list[str]:
        """In what another plan, that of a folder, differs from this one, in words."""
        said = []
        for name in Plan.model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine == theirs or name == "rows":
                continue
            if name == "columns":
                lacks = [column for column in mine if column not in theirs]
                more = [column for column in theirs if column not in mine]
                said += [f"without the columns {', '.join(lacks)}"] * bool(lacks) + [f"with the columns {', '.join(more)}"] * bool(more)
            else:
                said.append(f"{name} {theirs}, not {mine}")
        return said or ["other rows"]


class FileRecord(BaseModel, frozen=True, extra="forbid"):
    """A file of an export, and what is in it."""

    path: str = Field(description="relative to the folder")
    bytes: int
    sha256: str
    split: Split | None = Field(None, description="of a shard; null: a file that is no shard")
    rows: int = 0
    data_bytes: int = Field(0, description="of the rows in memory")
    revisions: dict[str, dict[str, int]] = Field(default_factory=dict, description="expert → revision ('' for none) → rows")
    licenses: Tally = Tally()


class ManifestFile(BaseModel, frozen=True, extra="forbid"):
    """A file of a finished export."""

    path: str
    bytes: int
    sha256: str
    split: Split | None = None
    rows: int = 0


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """A finished export. `manifest.json` in its folder, written last: without it, the export is not whole."""

    id: str
    plan: Plan
    num_rows: int
    revisions: dict[str, dict[str, int]] = Field(description="expert → revision ('' for none) → rows, of what was exported")
    files: list[ManifestFile] = Field(description="every file but this one and export.json")

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)


def read_plan(folder: Files) -> Plan | None:
    """The plan in a folder; None if it has none, or one of another version of MTV."""
    return _read(folder, PLAN, Plan)


def read_manifest(folder: Files) -> Manifest | None:
    """The manifest of a finished export; None if it is not finished."""
    return _read(folder, MANIFEST, Manifest)


def read_record(folder: Files, shard: str) -> FileRecord | None:
    """What was written of a shard; None if that was not finished."""
    return _read(folder, state_of(shard), FileRecord)


def state_of(shard: str) -> str:
    """Where the record of a shard lies while the export is under way."""
    return f"{STATE}/{shard.replace('/', '-')}.json"


def merged(records: list[FileRecord]) -> tuple[dict[str, dict[str, int]], Tally]:
    """Revisions and licences of several files."""
    revisions: dict[str, dict[str, int]] = {}
    licenses = Tally()
    for record in records:
        licenses += record.licenses
        for expert, counts in record.revisions.items():
            known = revisions.setdefault(expert, {})
            for revision, count in counts.items():
                known[revision] = known.get(revision, 0) + count
    return {expert: dict(sorted(counts.items())) for expert, counts in sorted(revisions.items())}, licenses


def _read(folder: Files, name: str, model: type[Any]) -> Any:
    try:
        return model.model_validate(json.loads(folder.read(name)))
    except (FileNotFoundError, ValidationError, ValueError):
        return None
