"""Exact duplicates: one row an image. Deterministic, so neither the order of shards nor the number of workers matters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CANDIDATES = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("sha256", pa.string()),  # of the image as received
        pa.field("key", pa.string()),
        pa.field("shard", pa.string()),  # id of the shard
        pa.field("uri", pa.string()),  # of the shard
        pa.field("position", pa.int64()),  # row in the staged shard
    ]
)
KNOWN = pa.schema([CANDIDATES.field(name) for name in ("uid", "sha256", "key", "shard", "uri")])


class Fate(IntEnum):
    """What becomes of a candidate."""

    ADDED = 0
    PUBLISHED = 1  # in the table already, by an earlier attempt at this very shard
    AGAIN = 2  # in the table already, from an earlier state of the same file
    DUPLICATE = 3


@dataclass(frozen=True)
class Verdict:
    """One entry a candidate, in the order given."""

    fate: NDArray[np.int8]
    survivor: pa.Array  # uid of the row that stands for the image


def decide(candidates: pa.Table, known: pa.Table) -> Verdict:
    """Rows in the table win; else the candidate with the smallest (uid, uri, key, position).

    The slow truth: walk the candidates in that order and keep each whose image is neither in the table nor kept. A candidate with uid and
    key of the table's row is no duplicate if it is from the same shard (then it is that row) or the same file; the first one only.

    Args:
        candidates: `CANDIDATES`, staged rows.
        known: `KNOWN`, rows of the table, at least those with the images of the candidates; images in it are unique.
    """
    if candidates.num_rows == 0:
        return Verdict(np.zeros(0, np.int8), pa.array([], pa.string()))
    order = pc.sort_indices(candidates, sort_keys=[(name, "ascending") for name in ("sha256", "uid", "uri", "key", "position")])
    rows = candidates.take(order).combine_chunks()
    known = known.combine_chunks()
    image, uid = _column(rows, "sha256"), _column(rows, "uid")
    first = np.ones(len(image), bool)
    first[1:] = _mask(pc.not_equal(image[1:], image[:-1]))
    group = np.cumsum(first) - 1

    match = pc.index_in(image, value_set=_column(known, "sha256"))
    in_table = _mask(match.is_valid())
    same = {name: _mask(pc.equal(_column(rows, name), _column(known, name).take(match))) for name in ("uid", "key", "shard", "uri")}
    row_of_table = in_table & same["uid"] & same["key"]
    own = _first_of_group(row_of_table & same["shard"], group)
    has_own = np.zeros(group[-1] + 1, bool)
    has_own[group[own]] = True
    old = _first_of_group(row_of_table & same["uri"] & ~has_own[group], group)

    fate = np.full(len(image), Fate.DUPLICATE, np.int8)
    fate[first & ~in_table] = Fate.ADDED
    fate[old] = Fate.AGAIN
    fate[own] = Fate.PUBLISHED
    survivor = pc.if_else(pa.array(in_table), _column(known, "uid").take(match), uid.take(pa.array(np.flatnonzero(first)[group])))

    back = np.empty(len(image), np.int64)  # position in the order given → position in the sorted one
    back[order.to_numpy()] = np.arange(len(image))
    return Verdict(fate[back], survivor.take(pa.array(back)))


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return (
        column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    )


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    return pc.fill_null(array, False).to_numpy(zero_copy_only=False)


def _first_of_group(mask: NDArray[np.bool_], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the first true entry of each group that has one."""
    chosen = np.flatnonzero(mask)
    _, index = np.unique(group[chosen], return_index=True)
    return chosen[index]
