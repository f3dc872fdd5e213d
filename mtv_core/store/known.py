"""What deduplication asks the table: `mtv_core.data.dedup.Known` over Lance.

Of every row the two hashes are read, 72 bytes, and only the perceptual one is kept. All else is fetched for the rows that match.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceDataset
from numpy.typing import NDArray

from mtv_core.data import placeholders
from mtv_core.data.dedup import COPIES, DETAILS, KNOWN
from mtv_core.data.schema import caption_hash
from mtv_core.store.rejects import Selection
from mtv_core.store.table import Table

_STAGE = "ingest"
_ROWS = 1 << 19  # looked up at once: every look-up builds a table of what is looked for
_TAKE = 1 << 16  # rows fetched at once


@dataclass
class TableKnown:
    """The table as it is at one version. Rows are numbered in its order, deleted ones left out."""

    table: Table
    version: int | None  # None: it has no rows
    rows: pa.Table  # KNOWN
    hashes: NDArray[np.uint64]  # [N]
    placeholders: pa.Table  # KNOWN_CLASSES: classes refused by earlier ingests
    without: frozenset[str] = field(default_factory=frozenset)  # ids of shards whose refusals do not count

    def details(self, rows: NDArray[np.int64]) -> pa.Table:
        """DETAILS of some rows, in the order asked for."""
        found = [DETAILS.empty_table()]
        if len(rows):
            for part in _take(self.table.dataset(self.version), rows, ["uid", "sha256", "caption"]):
                captions = pa.array([caption_hash(text) for text in part["caption"].to_pylist()], pa.uint64())
                found.append(pa.table([part["uid"], part["sha256"], captions], schema=DETAILS))
        return pa.concat_tables(found)

    def copies(self, survivors: pa.Array) -> pa.Table:
        """COPIES: exact duplicates of the rows with these uids that earlier ingests refused, by their uid."""
        return self._copies.filter(pc.is_in(self._copies["survivor"], value_set=survivors))

    @cached_property
    def _copies(self) -> pa.Table:
        found = [pa.table({"survivor": pa.array([], pa.string()), "uid": pa.array([], pa.string())})]
        found += [part.select(["survivor", "uid"]) for part in _refused(self.table, "Duplicate", ["survivor", "uid"], self.without)]
        counted = pa.concat_tables(found).group_by(["survivor", "uid"], use_threads=False).aggregate([([], "count_all")])
        return pa.table([counted["survivor"], counted["uid"], counted["count_all"]], schema=COPIES)


def of(table: Table, images: pa.ChunkedArray | pa.Array, shards: Collection[str]) -> TableKnown:
    """The table's rows with one of the given images, and the perceptual hash of every row.

    Args:
        table: at its latest version.
        images: their sha256.
        shards: ids of the shards of the present ingest, and of those whose place they take: an attempt that was killed may or may not have
            left, or taken back, refusals of these. So they never count, and the next attempt decides the same.
    """
    without = frozenset(shards)
    names = (name for part in _refused(table, "Placeholder", ["survivor"], without) for name in pc.unique(part["survivor"]).to_pylist())
    classes = placeholders.parse(name for name in names if name)
    if not table.exists():
        return TableKnown(table, None, KNOWN.empty_table(), np.zeros(0, np.uint64), classes, without)
    dataset = table.dataset()
    wanted = pa.chunked_array(images.chunks if isinstance(images, pa.ChunkedArray) else [images], pa.string()).combine_chunks()
    hashes, matches, start = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for part in _gathered(dataset.scanner(columns=["sha256", "phash"]).to_batches()):
        hashes.append(pc.fill_null(part["phash"], 0).to_numpy())
        matches.append(start + np.flatnonzero(pc.is_in(part["sha256"], value_set=wanted).to_numpy()))
        start += part.num_rows
    numbers = np.concatenate(matches)
    uris = table.ledger.uris()
    rows = [KNOWN.empty_table()]
    for part in _take(dataset, numbers, ["uid", "sha256", "key", "shard"]):
        uri = pa.array([uris.get(shard) for shard in part["shard"].to_pylist()], pa.string())
        rows.append(pa.table([*part.columns, uri, pa.nulls(part.num_rows, pa.int64())], schema=KNOWN))
    found = pa.concat_tables(rows)
    found = found.set_column(found.schema.get_field_index("row"), KNOWN.field("row"), pa.array(numbers))
    return TableKnown(table, int(dataset.version), found, np.concatenate(hashes), classes, without)


def _refused(table: Table, reason: str, columns: list[str], without: frozenset[str]) -> Iterator[pa.Table]:
    """Refusals for a reason, without those of some shards."""
    mine = pa.array(sorted(without), pa.string())
    for part in _gathered(table.rejects.select(Selection(stage=_STAGE, reasons=[reason]), [*columns, "shard"])):
        yield part.filter(pc.invert(pc.is_in(part["shard"], value_set=mine)))


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in large pieces."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= _ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _take(dataset: LanceDataset, rows: NDArray[np.int64], columns: list[str]) -> Iterator[pa.Table]:
    """Rows by number, in the order asked for."""
    for first in range(0, len(rows), _TAKE):
        part, back = np.unique(rows[first : first + _TAKE], return_inverse=True)
        yield dataset.take(pa.array(part), columns=columns).take(pa.array(back))
