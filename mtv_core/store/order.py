"""In which order a training sees its rows: a function of (seed, epoch) alone, so that any number of ranks goes on from any sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 256  # neighbouring rows that stay together until the window is shuffled: one read
WINDOW = 64  # blocks that are shuffled together: 16 k rows


class Order:
    """The endless sequence of (epoch, row): every row once an epoch, epochs one after the other.

    The slow truth: for each epoch, cut 0 … num_rows − 1 into blocks, shuffle the blocks, join `window` of them at a time and shuffle
    each of these windows; then all windows, then the next epoch. The state is one number, how many samples have been seen. Here a slice
    of the sequence is made without the rest of it, so that a run of 10⁹ samples starts anywhere at once.

    Args:
        num_rows: rows to go through, at least 1.
        seed: of the shuffling.
        block: rows of a block.
        window: blocks of a window.
    """

    def __init__(self, num_rows: int, seed: int, block: int = BLOCK, window: int = WINDOW) -> None:
        if num_rows < 1:
            raise ValueError("there is no row to train on")
        self.num_rows, self.seed, self.block, self.window = num_rows, seed, block, window
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self._window: tuple[int, int, NDArray[np.int64]] | None = None

    def __call__(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples start … stop − 1 of the run: their epochs and their rows, int64 [stop − start] each."""
        epochs, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            epoch, first = divmod(start, self.num_rows)
            last = min(first + stop - start, self.num_rows)
            epochs.append(np.full(last - first, epoch))
            rows.append(self._slice(epoch, first, last))
            start += last - first
        return np.concatenate(epochs), np.concatenate(rows)

    def _slice(self, epoch: int, first: int, last: int) -> NDArray[np.int64]:
        """Positions first … last − 1 of one epoch."""
        blocks, starts = self._blocks(epoch)
        windows = range(int(np.searchsorted(starts, first, "right")) - 1, int(np.searchsorted(starts, last, "left")))
        rows = np.concatenate([self._shuffled(epoch, window, blocks) for window in windows])
        offset = int(starts[windows[0]])
        return rows[first - offset : last - offset]

    def _blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of blocks, and the position each window starts at. The table's last block may be short, wherever it comes."""
        if self._epoch is None or self._epoch[0] != epoch:
            count = -(-self.num_rows // self.block)
            blocks = np.random.default_rng([self.seed, epoch, 0]).permutation(count)
            sizes = np.minimum(self.block, self.num_rows - blocks * self.block)
            ends = np.add.reduceat(sizes, np.arange(0, count, self.window)).cumsum()
            self._epoch = (epoch, blocks, np.concatenate([[0], ends[:-1]]))
        return self._epoch[1], self._epoch[2]

    def _shuffled(self, epoch: int, window: int, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._window is None or self._window[:2] != (epoch, window):
            chosen = blocks[window * self.window : (window + 1) * self.window]
            rows = (chosen[:, None] * self.block + np.arange(self.block)).ravel()
            rows = rows[rows < self.num_rows]
            self._window = (epoch, window, np.random.default_rng([self.seed, epoch, 1 + window]).permutation(rows))
        return self._window[2]
