"""A file of this machine, mapped into memory: read without a copy, and what was read is let go."""

from __future__ import annotations

import mmap
from pathlib import Path

import pyarrow as pa

_KEPT = 64 << 20  # bytes of it that count as the process's memory


class MappedFile:
    """Closed when nothing lies in it any more: no caller, no Arrow buffer.

    What is touched of a mapped file is memory of the process, for whoever limits that (Dask's nanny does), until it is let go. Whatever
    still lies there stays readable: the file has it.

    Raises:
        ValueError: the file is empty, so there is nothing to map.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        with Path(path).open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._touched = 0

    def reader(self) -> pa.BufferReader:
        """From the beginning; the buffers that Arrow makes of it lie in the file."""
        return pa.BufferReader(pa.py_buffer(self.bytes))

    def let_go(self, num_bytes: int) -> None:
        """So many bytes more were touched: take all that was out of the process's memory, whenever it is much."""
        self._touched += num_bytes
        if self._touched > _KEPT:
            self.bytes.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
