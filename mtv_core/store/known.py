"""What deduplication asks the table: `mtv_core.data.dedup.Known` over Lance."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtv_core.data import placeholders
from mtv_core.data.dedup import COPIES, DETAILS, KNOWN
from mtv_core.data.schema import caption_hash
from mtv_core.store.rejects import Selection
from mtv_core.store.table import Table

_STAGE = "ingest"


@dataclass
class TableKnown:
    """The table as it is at one version."""

    table: Table
    version: int | None  # None: it has no rows
    rows: pa.Table  # KNOWN
    hashes: NDArray[np.uint64]
    placeholders: pa.Table  # KNOWN_CLASSES: classes refused by earlier ingests
    without: frozenset[str]  # shards of the present ingest, whose refusals do not count

    def details(self, rows: NDArray[np.int64]) -> pa.Table:
        """DETAILS of some rows."""
        if not len(rows):
            return DETAILS.empty_table()
        taken = self.table.dataset(self.version).take(rows.tolist(), columns=["uid", "sha256", "caption"])
        hashes = pa.array([caption_hash(text) for text in taken["caption"].to_pylist()], pa.uint64())
        return pa.table([taken["uid"], taken["sha256"], hashes], schema=DETAILS)

    def copies(self, survivors: pa.Array) -> pa.Table:
        """COPIES: exact duplicates of the rows with these uids that earlier ingests refused, by their uid."""
        counts = self._copies
        return counts.filter(pc.is_in(counts["survivor"], value_set=survivors))

    @cached_property
    def _copies(self) -> pa.Table:
        found = [pa.table({"survivor": pa.array([], pa.string()), "uid": pa.array([], pa.string())})]
        for batch in self.table.rejects.select(Selection(stage=_STAGE, reasons=["Duplicate"]), ["survivor", "uid", "shard"]):
            mine = pc.is_in(batch["shard"], value_set=pa.array(sorted(self.without), pa.string()))
            found.append(pa.Table.from_batches([batch.filter(pc.invert(mine))]).select(["survivor", "uid"]))
        counted = pa.concat_tables(found).group_by(["survivor", "uid"], use_threads=False).aggregate([([], "count_all")])
        return pa.table([counted["survivor"], counted["uid"], counted["count_all"]], schema=COPIES)


def _placeholders(table: Table, without: frozenset[str]) -> pa.Table:
    names: set[str] = set()
    for batch in table.rejects.select(Selection(stage=_STAGE, reasons=["Placeholder"]), ["survivor", "shard"]):
        mine = pc.is_in(batch["shard"], value_set=pa.array(sorted(without), pa.string()))
        names.update(name for name in batch.filter(pc.invert(mine))["survivor"].to_pylist() if name)
    return placeholders.parse(names)


def of(table: Table, images: pa.ChunkedArray | pa.Array, shards: Collection[str]) -> TableKnown:
    """The table's rows with one of the given images (their sha256), and the perceptual hash of every row.

    Args:
        table: at its latest version.
        images: sha256.
        shards: ids of the shards of the present ingest.
    """
    without = frozenset(shards)
    classes = _placeholders(table, without)
    if not table.exists():
        return TableKnown(table, None, KNOWN.empty_table(), np.zeros(0, np.uint64), classes, without)
    dataset = table.dataset()
    wanted = pa.concat_arrays(images.chunks) if isinstance(images, pa.ChunkedArray) and images.num_chunks else images
    wanted = pa.array([], pa.string()) if isinstance(wanted, pa.ChunkedArray) else wanted
    uris = table.ledger.uris()
    found, hashes, start = [KNOWN.empty_table()], [np.zeros(0, np.uint64)], 0
    for batch in dataset.scanner(columns=["uid", "sha256", "key", "shard", "phash"]).to_batches():
        hashes.append(pc.fill_null(batch["phash"], 0).to_numpy(zero_copy_only=False).astype(np.uint64))
        place = np.flatnonzero(pc.is_in(batch["sha256"], value_set=wanted).to_numpy(zero_copy_only=False))
        rows = batch.take(pa.array(place))
        uri = pa.array([uris.get(shard) for shard in rows["shard"].to_pylist()], pa.string())
        columns = [rows["uid"], rows["sha256"], rows["key"], rows["shard"], uri, pa.array(place + start)]
        found.append(pa.table(columns, schema=KNOWN))
        start += batch.num_rows
    return TableKnown(table, int(dataset.version), pa.concat_tables(found), np.concatenate(hashes), classes, without)
