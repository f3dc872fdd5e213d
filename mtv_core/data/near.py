"""The walk of deduplication over perceptual hashes alone: `dedup` says what it means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtv_core.data import hamming
from mtv_core.data.hamming import Hashes


@dataclass(frozen=True)
class Near:
    """For each of P images what it is near to; both −1 if it stays, or is in the table already."""

    row: NDArray[np.int64]  # [P] nearest row of the table
    image: NDArray[np.int64]  # [P] else the image of this ingest that stands for it
    distance: NDArray[np.int8]  # [P] bits


def walk(phash: Hashes, own: NDArray[np.bool_], table: Hashes, others: NDArray[np.bool_], threshold: int) -> Near:
    """Take images in order; keep each that is near neither to a row of the table nor to one that is kept.

    Images with equal hashes share the fate of the first: whatever takes or keeps that one takes the others, since what is kept stays kept.
    So each hash (node) is looked at once, which is exact.

    Args:
        phash: [P] in the order of the walk, all usable.
        own: [P] rows that this very ingest put into the table. They stay, wherever they stand in the walk, and are named like kept images.
        table: [N] hashes of all rows.
        others: [N] rows of the table that count: usable and nobody's own.
        threshold: bits.
    """
    none = len(phash)
    hashes, head, node = np.unique(phash, return_index=True, return_inverse=True)
    order = np.argsort(head)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    hashes, head, node = hashes[order], head[order], place[node]  # nodes in the order of their first image

    rows = np.flatnonzero(others)
    rows = rows[np.sort(np.unique(table[rows], return_index=True)[1])]
    match, bits = hamming.nearest(hashes, table[rows], threshold)

    keeper = np.full(len(hashes), none)  # node → the image that is kept of it
    np.minimum.at(keeper, node[own], np.flatnonzero(own))
    forced = keeper < none
    free = np.flatnonzero(~forced & (match < 0))
    free = free[hamming.nearest(hashes[free], hashes[forced], threshold)[0] < 0]
    free = free[hamming.greedy(hashes[free], threshold)]
    keeper[free] = head[free]

    # What stands for the others: an image that came before, else one that is in the table and comes later.
    kept = np.flatnonzero(keeper < none)
    kept = kept[np.argsort(keeper[kept])]
    gone = np.flatnonzero((keeper == none) & (match < 0))
    index, apart = hamming.nearest(hashes[gone], hashes[kept], threshold, np.searchsorted(keeper[kept], head[gone]))
    keeper[gone] = keeper[kept[index]]
    late, ours = np.flatnonzero(index < 0), kept[forced[kept]]
    index, apart[late] = hamming.nearest(hashes[gone[late]], hashes[ours], threshold)
    keeper[gone[late]] = keeper[ours[index]]
    bits = np.where(match >= 0, bits, 0).astype(np.int8)
    bits[gone] = apart

    row = np.where(match >= 0, rows[match] if len(rows) else -1, -1)[node]
    image = np.where(row >= 0, -1, keeper[node])
    stays = own | (image == np.arange(none))
    return Near(np.where(stays, -1, row), np.where(stays, -1, image), np.where(stays, -1, bits[node]).astype(np.int8))
