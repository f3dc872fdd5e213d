"""`shards.lance`: which shards were read to their end, so that none is read twice, and what they held then, so that a change is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import BaseModel, Field

from mtv_core.data.schema import SHARDS
from mtv_core.data.sources.base import ShardRef
from mtv_core.store.dataset import append_rows, open_dataset

BY_CONTENT = "+sha256:"  # in an identity: what follows told the shard from another of the same size and time
_ROWS_PER_FILE = 1_000_000


class LedgerEntry(BaseModel, frozen=True, extra="forbid"):
    """What became of one shard. A shard whose rows were all refused is in the ledger too."""

    shard: str = Field(description="id: hash of URI and identity")
    uri: str
    identity: str = Field(description="what tells a changed file from the same one without reading it")
    size: int = Field(description="bytes")
    rows_in: int
    rows_out: int
    rows_rejected: int
    state: str = Field(description="done, or damaged: what could be read is in")
    ingest_id: str
    content: str | None = Field(None, description="fingerprint of the samples that were read (`data.fingerprint`); null in older ledgers")
    replaces: str | None = Field(None, description="id of the shard that was behind the same URI before")

    reading: str | None = Field(None, description="how it was read (`ShardRef.reading`); null in older ledgers")

    def is_of(self, shard: ShardRef) -> bool:
        """Whether a shard is, as far as its identity shows, what was read, and was read as it would be now."""
        return self.identity.partition(BY_CONTENT)[0] == shard.identity and self.reading in (None, shard.reading)


class Ledger:
    """The shards of a table that need not be opened again. Entries are only added; of one URI the last one counts."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options or {})

    def read(self) -> pa.Table:
        """All entries, oldest first."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is None:
            return SHARDS.empty_table()
        rows = dataset.to_table()
        for field in SHARDS:  # a ledger of an earlier version knows less
            if field.name not in rows.schema.names:
                rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
        return rows.select(SHARDS.names)

    def uris(self) -> dict[str, str]:
        """Shard id → URI, of every shard that was ever done."""
        entries = self.read()
        return dict(zip(entries["shard"].to_pylist(), entries["uri"].to_pylist(), strict=True))

    def latest(self) -> dict[str, LedgerEntry]:
        """URI → its last entry: what the table knows of the file now."""
        return {row["uri"]: LedgerEntry.model_validate(row) for row in self.read().to_pylist()}

    def append(self, entries: Sequence[LedgerEntry]) -> int:
        """Add what is not the last entry of its URI already; returns how many were added."""
        latest = self.latest()
        rows = [entry.model_dump() for entry in entries if latest.get(entry.uri) != entry]
        if rows:
            self._upgrade()
            append_rows(pa.Table.from_pylist(rows, schema=SHARDS), self.uri, _ROWS_PER_FILE, self.storage_options)
        return len(rows)

    def _upgrade(self) -> None:
        """Give a ledger of an earlier version the columns it lacks, all null. Metadata only."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        missing = [field for field in SHARDS if dataset is not None and field.name not in dataset.schema.names]
        if dataset is not None and missing:
            dataset.add_columns(pa.schema(missing))
