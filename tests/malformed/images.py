"""Images that are cut, damaged, lying, hostile, or merely unusual."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image
from tars import picture

from malformed.kinds import bad_image, tar_bytes

JPEG = picture(60, (64, 48))


def png_chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png(width: int, height: int, idat: bytes = b"", depth: int = 8, colour: int = 2, more: bytes = b"", end: bool = True) -> bytes:
    """A PNG as it says; its data may say otherwise."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + more
        + (png_chunk(b"IDAT", zlib.compress(idat, 9)) if idat else b"")
        + (png_chunk(b"IEND", b"") if end else b"")
    )


def jpeg_sized(width: int, height: int, precision: int = 8) -> bytes:
    """A small JPEG that says that it is large."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 4] + struct.pack(">BHH", precision, height, width) + JPEG[at + 9 :]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segment(marker: int, data: bytes, jpeg: bytes = JPEG) -> bytes:
    return jpeg[:2] + segment(marker, data) + jpeg[2:]


def tiff(width: int, height: int, entries: list[tuple[int, int, int, int]] = [], next_ifd: int = 0, data: bytes = b"\0" * 64) -> bytes:  # noqa: B006
    """A grey TIFF of one strip, little-endian; (tag, type, count, value) more."""
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1)]
    fields = sorted([*fields, (278, 4, 1, height), (279, 4, 1, len(data)), *entries])
    ifd = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *one) for one in fields) + struct.pack("<I", next_ifd)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd


def bmp(width: int, height: int, data: bytes = b"\0" * 64) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(data), 0, 0, 14 + len(info)) + info + data


def gif_frame(left: int, top: int, width: int, height: int, data: bytes = b"\x02\x02\x44\x01\x00") -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data


def gif(width: int, height: int, frames: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\xff\0\0\0\0\xff" + frames + b";"


def webp_lossless(width: int, height: int, data: bytes = b"\0" * 32) -> bytes:
    body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + data
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def animation() -> bytes:
    """A picture, and then frames of a size that nobody would decode."""
    whole = picture(61, kind="GIF")
    return whole[:-1] + gif_frame(0, 0, 65535, 65535) * 50 + b";"


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


def avif_sized(width: int, height: int) -> bytes:
    return patched(
        picture(62, (64, 48), "AVIF"), b"ispe\0\0\0\0" + struct.pack(">II", 64, 48), b"ispe\0\0\0\0" + struct.pack(">II", width, height)
    )


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(shape: tuple[int, ...], dtype: type, seed: int = 63) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((4, 4, *shape[2:]))
    fine = np.kron(coarse, np.ones((shape[0] // 4, shape[1] // 4, *[1] * len(shape[2:]))))
    return (fine * (np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1)).astype(dtype)


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(zipfile.ZipInfo("zeros"), b"\0" * (32 << 20), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def rgb16() -> bytes:
    rows = noise((48, 64, 3), np.uint16).astype(">u2")
    return png(64, 48, b"".join(b"\0" + row.tobytes() for row in rows), depth=16)


def many_scans() -> bytes:
    """A few bytes a scan, each of which has a decoder go through the whole image."""
    image = saved(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True)
    return image[:-2] + image[image.rindex(b"\xff\xda") : -2] * 300 + b"\xff\xd9"


def exif(entries: bytes, count: int, next_ifd: int) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + struct.pack("<I", next_ifd)


# Cut and damaged
bad_image("empty", "EmptyImage", lambda: b"")
bad_image("jpeg-cut-in-data", "BrokenImage", lambda: JPEG[: len(JPEG) * 3 // 4])
bad_image("jpeg-cut-in-header", "BrokenImage", lambda: JPEG[:100])
bad_image("jpeg-magic-alone", "BrokenImage", lambda: b"\xff\xd8\xff")
bad_image("jpeg-without-tables", "BrokenImage", lambda: JPEG[: JPEG.index(b"\xff\xdb")] + JPEG[JPEG.index(b"\xff\xc0") :])
bad_image("jpeg-of-zeros", "BrokenImage", lambda: JPEG[:-300] + b"\0" * 300)
bad_image("jpeg-of-markers", "BrokenImage", lambda: b"\xff\xd8" + b"\xff\xe0\x00\x02" * 1000 + b"\xff\xd9")
bad_image("jpeg-without-its-end", "BrokenImage", lambda: JPEG[:-2])
bad_image("jpeg-that-ends-in-the-middle", "BrokenImage", lambda: JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd9")
bad_image("jpeg-of-300-scans", "BrokenImage", many_scans)
bad_image("jpeg-12-bit", "BrokenImage", lambda: jpeg_sized(64, 48, precision=12))
bad_image("jpeg-larger-than-its-data", "BrokenImage", lambda: jpeg_sized(4000, 3000))
bad_image("png-cut", "BrokenImage", lambda: picture(64, (64, 48), "PNG")[:-200])
bad_image(
    "png-damaged-data", "BrokenImage", lambda: patched(picture(64, (64, 48), "PNG"), picture(64, (64, 48), "PNG")[600:620], bytes(20))
)
bad_image(
    "png-wrong-crc-of-header", "BrokenImage", lambda: patched(picture(65, kind="PNG"), b"\0\0\0\x18\0\0\0\x10", b"\0\0\0\x10\0\0\0\x18")
)
bad_image("png-without-data", "BrokenImage", lambda: png(16, 16))
bad_image("png-without-palette", "BrokenImage", lambda: png(16, 16, bytes([0, *range(0, 256, 16)]) * 16, colour=3))
bad_image("png-unknown-filter", "BrokenImage", lambda: png(16, 16, (b"\x09" + b"\1" * 48) * 16))
bad_image("png-chunk-longer-than-file", "BrokenImage", lambda: png(16, 16, end=False) + b"\x7f\xff\xff\xffIDAT" + b"\0" * 100)
bad_image("gif-without-frames", "BrokenImage", lambda: gif(16, 16, b""))
bad_image("gif-cut", "BrokenImage", lambda: picture(66, (64, 48), "GIF")[:900])
bad_image("bmp-cut", "BrokenImage", lambda: picture(67, kind="BMP")[:200])
bad_image("tiff-directory-outside", "BrokenImage", lambda: b"II*\0" + struct.pack("<I", 1 << 30) + b"\0" * 100)
bad_image("tiff-strip-outside", "BrokenImage", lambda: tiff(64, 64))
bad_image("webp-cut", "BrokenImage", lambda: picture(68, (64, 48), "WEBP")[:120])
bad_image("webp-of-a-wav", "UnsupportedImage", lambda: b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 100)
bad_image("avif-garbage", "BrokenImage", lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(range(256)))
bad_image("avif-cut", "BrokenImage", lambda: picture(69, (64, 48), "AVIF")[:-100])

# Not an image, or none of ours, whatever its name says
bad_image("text", "UnsupportedImage", lambda: b"this is no picture")
bad_image("html-error-page", "UnsupportedImage", lambda: b"<!DOCTYPE html><html><title>403 Forbidden</title></html>")
bad_image("json-error", "UnsupportedImage", lambda: b'{"error": "rate limit"}')
bad_image("svg", "UnsupportedImage", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
bad_image("pdf", "UnsupportedImage", lambda: b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n<<>>\nendobj\n")
bad_image("eps", "UnsupportedImage", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(%pipe%id) (w) file\n")
bad_image("ico", "UnsupportedImage", lambda: picture(70, (32, 32), "ICO"))
bad_image("jpeg-2000", "UnsupportedImage", lambda: picture(71, (64, 48), "JPEG2000"))
bad_image("jpeg-xl", "UnsupportedImage", lambda: b"\xff\x0a" + bytes(range(200)))
bad_image("jpeg-xl-boxed", "UnsupportedImage", lambda: b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a" + bytes(200))
bad_image("heic", "UnsupportedImage", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
bad_image("ppm", "UnsupportedImage", lambda: b"P6 16 16 255\n" + bytes(768))
bad_image("psd", "UnsupportedImage", lambda: b"8BPS\0\1" + bytes(100))
bad_image("zip-bomb", "UnsupportedImage", zip_bomb)
bad_image("gzipped", "UnsupportedImage", lambda: gzip.compress(JPEG, mtime=0))
bad_image("tar", "UnsupportedImage", lambda: tar_bytes([("inner.jpg", JPEG), ("inner.txt", b"an inner picture")]))
bad_image("program", "UnsupportedImage", lambda: b"\x7fELF" + bytes(200))
bad_image("tiff-of-floats", "UnsupportedImage", lambda: saved(Image.fromarray(noise((48, 64), np.float32) * 255), "TIFF"))
bad_image("spaces-before", "UnsupportedImage", lambda: b"\r\n" + JPEG)

# Bombs
bad_image("jpeg-bomb", "TooManyPixels", lambda: jpeg_sized(65500, 65500))
bad_image("png-bomb", "TooManyPixels", lambda: png(50_000, 50_000, b"\0" * 1000))
bad_image("png-bomb-that-is-whole", "TooManyPixels", lambda: png(20_000, 20_000, b"\0" * (20_000 * 2501), depth=1, colour=0))
bad_image("png-largest-header", "TooManyPixels", lambda: png(2**31 - 1, 2**31 - 1, b"\0"))
bad_image("gif-bomb", "TooManyPixels", lambda: gif(65535, 65535, gif_frame(0, 0, 65535, 65535)))
bad_image("tiff-bomb", "TooManyPixels", lambda: tiff(100_000, 100_000))
bad_image("bmp-bomb", "TooManyPixels", lambda: bmp(30_000, 30_000))
bad_image("webp-bomb", "TooManyPixels", lambda: webp_lossless(16_384, 16_384))
bad_image("avif-bomb", "TooManyPixels", lambda: avif_sized(16_000, 16_000))
bad_image(
    "png-text-bomb", "BrokenImage", lambda: png(16, 16, b"\0" * 784, more=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * (64 << 20))))
)
bad_image("gif-huge-later-frames", None, animation)
bad_image("over-the-pixel-limit", "TooManyPixels", lambda: picture(72, (128, 128)), config={"max_pixels": 10_000})

# Sizes
bad_image("png-0x0", "BrokenImage", lambda: png(0, 0, b"\0"))
bad_image("jpeg-0x0", "BrokenImage", lambda: jpeg_sized(0, 0))
bad_image("gif-0x0", "BrokenImage", lambda: gif(0, 0, gif_frame(0, 0, 0, 0)))
bad_image("bmp-0x0", "BrokenImage", lambda: bmp(0, 0))
bad_image("tracking-pixel", "TooSmall", lambda: saved(Image.new("RGB", (1, 1), "white"), "GIF"))
bad_image("strip-1x10000", "TooSmall", lambda: saved(Image.new("RGB", (1, 10_000), "red"), "PNG"))
bad_image("strip-10000x10", "TooElongated", lambda: saved(Image.new("RGB", (10_000, 10), "red"), "PNG"))
bad_image("one-colour", "FlatImage", lambda: saved(Image.new("RGB", (64, 48), "white"), "JPEG"))
bad_image("transparent", "FlatImage", lambda: saved(Image.new("RGBA", (64, 48), (200, 10, 10, 0)), "PNG"))
bad_image("too-many-bytes", "TooLarge", lambda: b"\xff\xd8\xff" + bytes(100_000), config={"max_bytes": 50_000})

# Unusual, and fine
bad_image("png-called-jpg", None, lambda: picture(73, kind="PNG"))
bad_image("jpeg-called-png", None, lambda: picture(74), ending="png")
bad_image("garbage-after-the-end", None, lambda: picture(75) + b"GARBAGE" * 100)
bad_image("two-jpegs-in-one", None, lambda: picture(76) + picture(77))
bad_image("cmyk-broken-icc", None, lambda: with_segment(0xE2, b"ICC_PROFILE\0\1\1" + b"broken" * 30, picture(78, (64, 48), mode="CMYK")))
bad_image("rgb-broken-icc", None, lambda: with_segment(0xE2, b"ICC_PROFILE\0\1\1" + b"broken" * 30))
bad_image("icc-part-missing", None, lambda: with_segment(0xE2, b"ICC_PROFILE\0\1\3" + b"broken" * 30))
bad_image("exif-orientation-9", None, lambda: with_segment(0xE1, exif(struct.pack("<HHII", 0x112, 3, 1, 9), 1, 0)))
bad_image("exif-loop", None, lambda: with_segment(0xE1, exif(struct.pack("<HHII", 0x8769, 4, 1, 8), 1, 8)))
bad_image("exif-garbage", None, lambda: with_segment(0xE1, b"Exif\0\0" + bytes(range(255))))
bad_image("exif-counts-to-the-moon", None, lambda: with_segment(0xE1, exif(struct.pack("<HHII", 0x112, 3, 0xFFFFFFFF, 8), 65535, 0)))
bad_image("grey-16-bit", None, lambda: saved(Image.fromarray(noise((48, 64), np.uint16)), "PNG"))
bad_image("rgb-16-bit", None, rgb16)
bad_image("tiff-pages-in-a-loop", None, lambda: tiff(8, 8, next_ifd=8 + 64, data=bytes(range(0, 256, 4))))
bad_image("bmp-upside-down", None, lambda: bmp(8, -8, bytes(range(192))))
bad_image("many-comments", None, lambda: JPEG[:2] + segment(0xFE, b"x" * 60_000) * 20 + JPEG[2:])
