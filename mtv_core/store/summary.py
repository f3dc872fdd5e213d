"""What the rows of a table look like, from its small columns; a fragment that was looked at once is not read again.

Rows never change, so a summary stays true of a fragment until rows of it are deleted. It is kept in `<table>/reports/table.json` and only
fragments that came since are read: 100 bytes a row and no picture. After a deletion or a compaction all are read again, which is how the
numbers stay exact through deduplication, takedown and retries: they are of the rows that are there.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError

from mtv_core.data.stats import CHEAP, SampleStats
from mtv_core.store.dataset import quoted
from mtv_core.store.table import Table

FILE = "reports/table.json"
SAMPLE = 24  # rows to look at


class Chosen(BaseModel, frozen=True, extra="forbid"):
    """A row to look at, and where it lies. Those of smallest uid are chosen: a uid is a hash, so that is by chance, and always the same."""

    uid: str
    fragment: int


class Summary(BaseModel, frozen=True, extra="forbid"):
    """The rows of one version of the table."""

    version: int
    fragments: dict[int, str] = Field(default_factory=dict, description="fragment → which rows of it were looked at")
    image_bytes: int = Field(0, description="of the column `image` on disk; of rows that were deleted too, until a compaction")
    stats: SampleStats = SampleStats()
    sample: list[Chosen] = Field(default_factory=list, description="rows to look at")
    latest: dict[str, list[Chosen]] = Field(default_factory=dict, description="ingest id → rows to look at, of those read last")


def summarise(table: Table) -> Summary:
    """The table as it is now; kept for the next time.

    Raises:
        FileNotFoundError: it has no rows.
    """
    dataset = table.dataset()
    fragments = {one.fragment_id: f"{one.data_files()[0].path}-{one.num_deletions}" for one in dataset.get_fragments()}
    known = _known(table)
    if known is None or any(fragments.get(fragment) != state for fragment, state in known.fragments.items()):
        known = Summary(version=0)
    stats, sample = known.stats, known.sample
    latest: dict[str, list[Chosen]] = {}
    for fragment in dataset.get_fragments():
        if fragment.fragment_id in known.fragments:
            continue
        for batch in fragment.scanner(columns=[*CHEAP, "ingest_id"]).to_batches():
            stats += SampleStats.of(batch)
            for ingest in pc.unique(batch["ingest_id"]).to_pylist():
                of_ingest = batch.filter(pc.equal(batch["ingest_id"], ingest))
                first = of_ingest["uid"].take(pc.select_k_unstable(of_ingest, SAMPLE, sort_keys=[("uid", "ascending")])).to_pylist()
                chosen = [Chosen(uid=uid, fragment=fragment.fragment_id) for uid in first]
                latest[ingest] = _smallest(latest.get(ingest, []), chosen)
                sample = _smallest(sample, chosen)
    image = next(field.id() for field in dataset.lance_schema.fields() if field.name() == "image")
    fields: Any = dataset.stats.data_stats().fields  # its annotation has one for all of them
    summary = Summary(
        version=int(dataset.version),
        fragments=fragments,
        image_bytes=sum(one.bytes_on_disk for one in fields if one.id == image),
        stats=stats,
        sample=sample,
        latest=latest or known.latest,
    )
    if summary != known:
        table.files.write(FILE, summary.model_dump_json().encode())
    return summary


def _smallest(a: Sequence[Chosen], b: Sequence[Chosen]) -> list[Chosen]:
    return heapq.nsmallest(SAMPLE, [*a, *b], key=lambda one: (one.uid, one.fragment))


def _known(table: Table) -> Summary | None:
    try:
        return Summary.model_validate_json(table.files.read(FILE))
    except (FileNotFoundError, ValidationError):  # by another version of MTV
        return None


def look_at(table: Table, chosen: Sequence[Chosen], columns: Sequence[str]) -> pa.Table:
    """The chosen rows that are still there, in order of uid."""
    dataset = table.dataset()
    fragments = [one for one in dataset.get_fragments() if one.fragment_id in {row.fragment for row in chosen}]
    schema = pa.schema([dataset.schema.field(name) for name in dict.fromkeys(["uid", *columns])])
    if not fragments:
        return schema.empty_table()
    condition = f"uid in ({quoted(row.uid for row in chosen)})"
    found = dataset.scanner(columns=schema.names, filter=condition, fragments=fragments).to_table()
    return found.sort_by("uid")
