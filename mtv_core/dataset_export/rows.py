"""The rows of a shard, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtv_core.store.view import View

Item = TypeVar("Item")

FIRST = 32  # rows of a shard's first piece
PIECE = 16 << 20  # bytes a piece should have: a fetch is slow for less, and three of them are in memory
MOST = 2048  # rows of a piece


def pieces(view: View, indices: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows at some positions, in their order. Where a piece ends follows from the rows before it, so it is the same each time."""
    start, size = 0, FIRST
    while start < len(indices):
        piece = view.take(pa.array(indices[start : start + size]), columns).combine_chunks()
        yield piece
        start += piece.num_rows
        size = int(np.clip(PIECE * piece.num_rows // max(1, piece.nbytes), 1, MOST))


def ahead(make: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """The items of an iterator, the next one made by a thread while the last one is used."""
    with ThreadPoolExecutor(1, "mtv-export") as pool:
        items = pool.submit(make).result()
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
