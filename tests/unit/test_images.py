"""What is stored of an image as received, and why some are refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tars import picture

from mtv_core.data.images import BadImageError, ImageLimits, StoredImage, phash, store


def stored(data: bytes, max_side: int = 64, max_pixels: int = 10_000_000) -> StoredImage:
    return store(data, ImageLimits(max_side=max_side, quality=92, max_pixels=max_pixels))


def refused(data: bytes, max_pixels: int = 10_000_000) -> str:
    with pytest.raises(BadImageError) as caught:
        stored(data, max_pixels=max_pixels)
    return caught.value.reason


def opened(image: StoredImage) -> Image.Image:
    return Image.open(io.BytesIO(image.jpeg))


def test_a_jpeg_that_fits_passes_untouched() -> None:
    data = picture(1)
    assert stored(data).jpeg is data
    assert (stored(data).width, stored(data).height) == (24, 16)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_become_jpeg(kind: str) -> None:
    image = stored(picture(1, kind=kind))
    assert (opened(image).format, opened(image).mode, opened(image).size) == ("JPEG", "RGB", (24, 16))


def test_large_ones_are_scaled_in_proportion() -> None:
    image = stored(picture(1, size=(200, 100)))
    assert opened(image).size == (image.width, image.height) == (64, 32)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = picture(1, size=(40, 20), exif=exif, quality=95)
    image = stored(data)
    upright = opened(image)
    assert upright.getexif().get(0x0112, 1) == 1
    assert upright.size == ((40, 20) if orientation < 5 else (20, 40))
    raw = np.asarray(Image.open(io.BytesIO(data)), float)
    turn = {
        2: raw[:, ::-1],
        3: raw[::-1, ::-1],
        4: raw[::-1],
        5: raw.swapaxes(0, 1),
        6: np.rot90(raw, -1),
        7: np.rot90(raw, 2).swapaxes(0, 1),
    }
    expected = turn.get(orientation, np.rot90(raw))
    assert np.abs(np.asarray(upright, float) - expected).mean() < 6


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("PNG", "I;16")])
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    buffer = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((16, 24), 32768, np.uint16)).save(buffer, kind)
        image = stored(buffer.getvalue())
        assert abs(int(np.asarray(opened(image)).mean()) - 127) <= 1
    else:
        image = stored(picture(1, kind=kind, mode=mode))
    assert opened(image).mode == "RGB"


def test_transparent_becomes_white() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(buffer, "PNG")
    assert np.asarray(opened(stored(buffer.getvalue()))).min() > 250


def test_cut_images_are_refused_wherever_they_are_cut() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = picture(1, size=(60, 60), kind=kind)
        for size in range(4, len(data) - 20, 97):
            assert refused(data[:size]) in ("BrokenImage", "UnsupportedImage"), (kind, size)


def test_reasons() -> None:
    assert refused(b"") == "EmptyImage"
    assert refused(b"<html>404</html>") == "UnsupportedImage"
    assert refused(b"\xff\xd8\xff" + b"\x00" * 100) == "BrokenImage"
    assert refused(picture(1, size=(60, 60)), max_pixels=3599) == "TooManyPixels"


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    for side in (10_000, 60_000):  # where Pillow warns, and where it refuses
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
        assert refused(bomb, max_pixels=89_000_000) == "TooManyPixels"


def test_phash_is_near_for_the_same_and_far_for_another() -> None:
    def bits(seed: int, **options: object) -> int:
        return phash(Image.open(io.BytesIO(picture(seed, size=(120, 90), **options))).convert("RGB"))  # type: ignore[arg-type]

    same = [(bits(n) ^ bits(n, quality=30)).bit_count() for n in range(20)]
    other = [(bits(n) ^ bits(n + 1)).bit_count() for n in range(20)]
    assert max(same) < min(other)
    assert all(0 <= bits(n) < 2**64 for n in range(20))
