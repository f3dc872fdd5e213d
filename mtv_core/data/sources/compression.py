"""What is compressed, decompressed as a stream. Told by its first bytes, whatever the name says."""

from __future__ import annotations

import bz2
import gzip
import lzma
from typing import Any, cast

import pyarrow as pa

from mtv_core.data.sources.access import Opened


class Compressed:
    """Reads whole blocks from a decompressor, which may hand out less than it was asked for."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer only at the end.

        Raises:
            Exception: what is compressed is damaged; each decompressor has errors of its own.
        """
        block: bytes = self.stream.read(size)
        while 0 < len(block) < size:
            more = self.stream.read(size - len(block))
            if not more:
                break
            block += more
        return block


def decompressed(file: Opened) -> Opened | Compressed:
    """The file itself, if it is not compressed by gzip, bzip2, xz or zstd."""
    start = file.peek(6)
    if start.startswith(b"\x1f\x8b"):
        return Compressed(gzip.GzipFile(fileobj=cast(Any, file)))
    if start.startswith(b"BZh"):
        return Compressed(bz2.BZ2File(cast(Any, file)))
    if start.startswith(b"\xfd7zXZ\0"):
        return Compressed(lzma.LZMAFile(cast(Any, file)))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        return Compressed(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    return file
