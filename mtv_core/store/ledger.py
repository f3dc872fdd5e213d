"""`shards.lance`: which shards were read to their end, so that none is read twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import BaseModel, Field

from mtv_core.data.schema import SHARDS
from mtv_core.store.dataset import append_rows, open_dataset

_ROWS_PER_FILE = 1_000_000


class LedgerEntry(BaseModel, frozen=True, extra="forbid"):
    """What became of one shard. A shard whose rows were all refused is in the ledger too."""

    shard: str = Field(description="id: hash of URI and identity")
    uri: str
    identity: str = Field(description="what tells a changed file from the same one")
    size: int = Field(description="bytes")
    rows_in: int
    rows_out: int
    rows_rejected: int
    state: str = Field(description="done, or damaged: what could be read is in")
    ingest_id: str


class Ledger:
    """The shards of a table that need not be opened again."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options or {})

    def read(self) -> pa.Table:
        """All entries."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        return SHARDS.empty_table() if dataset is None else dataset.to_table()

    def uris(self) -> dict[str, str]:
        """Shard id → URI, of every shard that is done."""
        entries = self.read()
        return dict(zip(entries["shard"].to_pylist(), entries["uri"].to_pylist(), strict=True))

    def append(self, entries: Sequence[LedgerEntry]) -> int:
        """Add the shards that are not there; returns how many were added."""
        known = self.uris()
        rows = [entry.model_dump() for entry in entries if entry.shard not in known]
        if rows:
            append_rows(pa.Table.from_pylist(rows, schema=SHARDS), self.uri, _ROWS_PER_FILE, self.storage_options)
        return len(rows)
