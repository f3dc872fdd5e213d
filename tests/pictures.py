"""Image files for tests: photo-like pictures, and encoders of what Pillow cannot write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def photo(seed: int, width: int = 160, height: int = 120) -> Pixels:
    """[height, width, 3]: smooth colours, a few edges, some texture; the same scene at any size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = (x + 0.5) / width, (y + 0.5) / height
    waves = np.zeros((height, width, 3))
    for _ in range(24):
        fx, fy = rng.normal(0, 3, 2)
        waves += rng.normal(0, 60 / (1 + np.hypot(fx, fy)), 3) * np.cos(2 * np.pi * (fx * x + fy * y + rng.random()))[..., None]
    image = 128 + waves
    for _ in range(4):
        inside = ((x - rng.random()) ** 2 + (y - rng.random()) ** 2) < rng.uniform(0.05, 0.25) ** 2
        image[inside] = 0.4 * image[inside] + 0.6 * rng.uniform(20, 235, 3)
    return image.clip(0, 255).astype(np.uint8)


def encoded(pixels: Pixels | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Through Pillow."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png16(pixels: NDArray[np.uint16], transparent: tuple[int, ...] | None = None) -> bytes:
    """A PNG of 16 bits: [h, w] grey, [h, w, 2] with alpha, [h, w, 3] RGB, [h, w, 4] RGBA."""
    height, width = pixels.shape[:2]
    colour = {2: 0}.get(pixels.ndim, {2: 4, 3: 2, 4: 6}[pixels.shape[-1]] if pixels.ndim == 3 else 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    if transparent is not None:
        chunks.append(png_chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks += [png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is large, and has nothing in it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def tiff(pixels: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32], photometric: int, order: str = "<", **tags: int) -> bytes:
    """An uncompressed TIFF in one strip. Tags by number: `t338=1` is ExtraSamples = premultiplied alpha."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = tags.pop("bits", 8 * pixels.dtype.itemsize)
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    entries: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]),
        277: (3, [samples]), 278: (4, [height]), 279: (4, [len(data)]),
    }  # fmt: skip
    if pixels.dtype.kind == "f":
        entries[339] = (3, [3] * samples)
    entries |= {int(name[1:]): (3, [value]) for name, value in tags.items()}
    entries[273] = (4, [0])  # where the strip is, known below
    count = len(entries)
    extra_at = 8 + 2 + 12 * count + 4
    extra, directory = b"", b""
    sizes = {3: ("H", 2), 4: ("I", 4)}
    data_at = extra_at + sum(sizes[kind][1] * len(values) for kind, values in entries.values() if sizes[kind][1] * len(values) > 4)
    entries[273] = (4, [data_at])
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{sizes[kind][0]}", *values)
        if len(packed) > 4:
            field, extra = struct.pack(f"{order}I", extra_at + len(extra)), extra + packed
        else:
            field = packed.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + struct.pack(f"{order}H", count)
    return head + directory + struct.pack(f"{order}I", 0) + extra + data


def tiff_planes(planes: NDArray[np.uint8] | NDArray[np.uint16], photometric: int, order: str = "<") -> bytes:
    """An uncompressed TIFF of [samples, height, width], each plane a strip of its own (PlanarConfiguration 2)."""
    samples, height, width = planes.shape
    data = planes.astype(planes.dtype.newbyteorder(order)).tobytes()
    bits, strip = 8 * planes.dtype.itemsize, len(data) // samples
    at = 8 + 2 + 12 * 10 + 4  # of what follows the directory: bits, where the strips are, how long they are; then the strips
    start = at + samples * 10
    numbers = {256: width, 257: height, 258: at, 259: 1, 262: photometric, 273: at + 2 * samples, 277: samples, 278: height}
    numbers |= {279: at + 6 * samples, 284: 2}
    entries = b"".join(
        struct.pack(f"{order}HHII", tag, 3 if tag == 258 else 4, samples if tag in (258, 273, 279) else 1, value)
        for tag, value in numbers.items()
    )
    lists = struct.pack(f"{order}{samples}H", *[bits] * samples)
    lists += struct.pack(f"{order}{samples}I", *(start + strip * n for n in range(samples)))
    lists += struct.pack(f"{order}{samples}I", *[strip] * samples)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(numbers))
    return head + entries + struct.pack(f"{order}I", 0) + lists + data


def icc(red: tuple[float, float, float], green: tuple[float, float, float], blue: tuple[float, float, float], gamma: float) -> bytes:
    """An RGB matrix profile (ICC version 2): XYZ of the primaries, adapted to D50, and one exponent."""
    return _profile(b"RGB ", {b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}, (b"rTRC", b"gTRC", b"bTRC"), gamma)


def icc_grey(gamma: float) -> bytes:
    return _profile(b"GRAY", {}, (b"kTRC",), gamma)


def _xyz(value: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(part * 65536) for part in value))


def _profile(space: bytes, tags: dict[bytes, bytes], curves: tuple[bytes, ...], gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"test\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78
    everything = {
        b"wtpt": _xyz((0.9642, 1.0, 0.8249)),
        b"desc": described + b"\0" * (-len(described) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        **tags,
        **dict.fromkeys(curves, curve),
    }
    at = 128 + 4 + 12 * len(everything)
    table, body = struct.pack(">I", len(everything)), b""
    for name, content in everything.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4s4s4s4s4s", at + len(body), b"lcms", b"\x02\x10\0\0", b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
