"""Whether a PNG has all of its rows. Pillow leaves those black that the compressed data ends before."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mtv_core.data.imaging.base import BadImageError

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type → samples of a pixel
_PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))  # Adam7: x, step, y, step
_PIECE = 1 << 20  # bytes, decompressed at a time


def check_rows(data: bytes, image: Image.Image) -> None:
    """Refuse a PNG whose data ends before its last row.

    Only a black last row can be one that is not there. So the data is decompressed once more, to count, for such pictures alone, and for
    interlaced ones.

    Args:
        data: the file, which Pillow has decoded to its end.
        image: decoded.

    Raises:
        BadImageError: BrokenImage.
    """
    if not data[28] and np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any():
        return
    expected = _expected(data)
    unpacker, found = zlib.decompressobj(), 0
    for piece in _compressed(data):
        rest = piece
        while rest and found < expected:
            found += len(unpacker.decompress(rest, _PIECE))
            rest = unpacker.unconsumed_tail
    while found < expected and (more := unpacker.decompress(b"", _PIECE)):
        found += len(more)
    if found < expected:
        raise BadImageError("BrokenImage", f"the image is cut or damaged: it has {found} bytes of pixels, not {expected}")


def _expected(data: bytes) -> int:
    """Bytes of the rows, each with the number of its filter, by the header."""
    width, height, interlaced = int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), data[28]
    bits = data[24] * _SAMPLES[data[25]]
    total = 0
    for left, across, top, down in _PASSES if interlaced else ((0, 1, 0, 1),):
        columns, rows = -(-max(0, width - left) // across), -(-max(0, height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


def _compressed(data: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if name == b"IDAT":
            yield data[at + 8 : at + 8 + size]
        at += 12 + size
