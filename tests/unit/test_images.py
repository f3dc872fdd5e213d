"""What is stored of an image as received, and why some are refused."""

from __future__ import annotations

import io
import random
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, photo, png_chunk, png_header, tiff
from PIL import Image, ImageFile
from tars import picture

from mtv_core.data.images import BadImageError, ImageLimits, StoredImage, open_image, store

LIMITS = ImageLimits(max_side=64, quality=92, max_pixels=10_000_000)
LOSSLESS = {"WEBP": {"lossless": True}}
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def stored(data: bytes, **limits: float) -> StoredImage:
    return store(data, ImageLimits(**{"max_side": 64, "quality": 92, "max_pixels": 10_000_000, **limits}))  # type: ignore[arg-type]


def refused(data: bytes, **limits: float) -> str:
    with pytest.raises(BadImageError) as caught:
        stored(data, **limits)
    assert str(caught.value)
    return caught.value.reason


def opened(image: StoredImage) -> Image.Image:
    return Image.open(io.BytesIO(image.jpeg))


# What passes through


def test_a_jpeg_that_fits_passes_untouched() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"quality": 20}):
        data = picture(1, **options)
        image = stored(data)
        assert image.jpeg is data
        assert (image.width, image.height, image.passthrough) == (24, 16, True)


def test_what_is_no_fit_jpeg_is_encoded_anew() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    pictures = [Image.fromarray(photo(n, 40, 30)) for n in range(2)]
    for data in (
        picture(1, size=(65, 40)),
        picture(1, mode="L"),
        picture(1, mode="CMYK"),
        picture(1, kind="PNG"),
        picture(1, exif=exif),
        picture(1) + b"PK\x03\x04 another file behind it",
        encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:]),
    ):
        image = stored(data)
        assert not image.passthrough
        assert image.jpeg != data
        assert (opened(image).format, opened(image).mode) == ("JPEG", "RGB")
        assert image.jpeg.count(b"\xff\xd9") == 1


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), kind=st.sampled_from(["JPEG", "PNG"]), side=st.integers(1, 200))
def test_sizes(width: int, height: int, kind: str, side: int) -> None:
    """No larger than asked, never enlarged, in proportion to a pixel, and the sizes are those of the JPEG."""
    image = stored(encoded(photo(1, width, height), kind), max_side=side)
    assert opened(image).size == (image.width, image.height)
    scale = min(1.0, side / max(width, height))
    assert max(image.width, image.height) == min(side, max(width, height))
    assert abs(image.width - max(1, width * scale)) <= 1
    assert abs(image.height - max(1, height * scale)) <= 1
    assert image.grey.shape == (32, 32)
    assert image.grey.dtype == np.uint8


@pytest.mark.parametrize("size", [(1024, 768), (1500, 1000), (901, 601), (3000, 2000), (520, 390), (700, 200)])
def test_scaled_decoding_looks_like_decoding_and_scaling(size: tuple[int, int]) -> None:
    pixels = Image.fromarray(photo(2, size[0] // 4, size[1] // 4)).resize(size, Image.Resampling.LANCZOS)
    image = stored(encoded(pixels, quality=95), max_side=512)
    expected = pixels.resize((image.width, image.height), Image.Resampling.LANCZOS)
    error = np.asarray(opened(image), float) - np.asarray(expected, float)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 33  # dB


def test_subsampling_is_as_asked() -> None:
    from PIL.JpegImagePlugin import get_sampling

    for name, code in (("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)):
        image = store(picture(1, kind="PNG"), ImageLimits(64, 92, 10_000, subsampling=name))  # type: ignore[arg-type]
        assert get_sampling(opened(image)) == code


# Orientation


def _turned(raw: np.ndarray, orientation: int) -> np.ndarray:
    turns = {
        1: raw,
        2: raw[:, ::-1],
        3: raw[::-1, ::-1],
        4: raw[::-1],
        5: raw.swapaxes(0, 1),
        6: np.rot90(raw, -1),
        7: np.rot90(raw, 2).swapaxes(0, 1),
        8: np.rot90(raw),
    }
    return turns[orientation]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = photo(4, 60, 40)
    options = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0}, "AVIF": {"subsampling": "4:4:4"}}.get(kind, {})
    data = encoded(pixels, kind, exif=exif, quality=95, **options)
    expected = _turned(pixels.astype(float), orientation)
    found = open_image(data, ImageLimits(64, 95, 10_000, subsampling="4:4:4"))
    assert (found.height, found.width) == expected.shape[:2]
    image = found.store()
    assert (image.height, image.width) == expected.shape[:2]
    assert np.abs(np.asarray(opened(image), float) - expected).mean() < 5
    assert opened(image).getexif().get(0x0112, 1) == 1
    assert image.passthrough == (kind == "JPEG" and orientation == 1)
    small = stored(data, max_side=30)
    assert (small.height, small.width) == ((20, 30) if orientation < 5 else (30, 20))


def test_damaged_exif_costs_nothing() -> None:
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",
    ):
        assert stored(picture(1, exif=exif)).passthrough


# What is never looked at


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_an_animation_the_first_picture(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(opened(stored(data)), int) - (255, 0, 0)).max() <= 6


def test_later_pictures_are_not_decoded() -> None:
    frames = [Image.fromarray(photo(n, 64, 48)) for n in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = encoded(frames[0], "GIF")
    assert np.abs(np.asarray(opened(stored(data[: len(first) + 600])), int) - np.asarray(opened(stored(first)), int)).mean() < 4


def test_nothing_outside_the_list_is_reached() -> None:
    """Neither by what a file says it is, nor by loading the plug-ins that could read it."""
    others = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.4",
        b"\0" * 2048 + b"PCD_IPI" + b"\0" * 5000,
        b"P6 4 4 255\n" + b"\0" * 48,
        b"8BPS\0\1" + b"\0" * 50,
        b"\0\0\1\0\1\0" + b"\0" * 50,  # ICO
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
        b"RIFF\0\0\0\0WAVEfmt ",
        b"<html>404</html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ]
    assert {refused(data) for data in others} == {"UnsupportedImage"}
    code = (
        "import sys, pickle\nfrom mtv_core.data.images import *\n"
        "print(*[name for name in ('numpy', 'PIL', 'simplejpeg') if name in sys.modules])\n"
        "for data in pickle.load(sys.stdin.buffer):\n"
        "    try: store(data, ImageLimits(64, 92, 10**7))\n"
        "    except BadImageError: pass\n"
        "print(*sorted(name for name in sys.modules if name.endswith('ImagePlugin')))"
    )
    import pickle

    good = [picture(1, kind=kind) for kind in KINDS]
    run = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(others + good), capture_output=True, check=True)
    heavy, plugins = run.stdout.decode().split("\n")[:2]
    assert heavy == ""
    loaded = {name.removeprefix("PIL.").removesuffix("ImagePlugin").upper() for name in plugins.split()}
    assert set(KINDS) - {"WEBP"} <= loaded | {"JPEG"}
    assert not loaded & {"EPS", "PCD", "PDF", "PSD", "ICO", "PPM", "FLI", "WMF", "JPEG2K", "ICNS"}


def test_the_name_says_nothing_but_the_first_bytes_do() -> None:
    jpeg = picture(1)
    assert refused(b"\x89PNG\r\n\x1a\n" + jpeg) == "BrokenImage"
    assert refused(b"BM" + jpeg) == "BrokenImage"
    assert refused(b"\0" + jpeg) == "UnsupportedImage"


# Limits


def test_reasons() -> None:
    assert refused(b"") == "EmptyImage"
    assert refused(b"\xff\xd8\xff" + b"\x00" * 100) == "BrokenImage"
    assert refused(picture(1, size=(60, 60)), max_pixels=3599) == "TooManyPixels"
    assert stored(picture(1, size=(60, 60)), max_pixels=3600)
    for kind in KINDS:
        assert refused(picture(1, kind=kind), max_pixels=24 * 16 - 1) == "TooManyPixels"
    assert refused(picture(1, size=(60, 20)), min_side=21) == "TooSmall"
    assert stored(picture(1, size=(60, 20)), min_side=20)
    assert refused(picture(1, size=(60, 20)), max_aspect=2.99) == "TooElongated"
    assert refused(picture(1, size=(20, 60)), max_aspect=2.99) == "TooElongated"
    assert stored(picture(1, size=(60, 20)), max_aspect=3)


def _jpeg_header(width: int, height: int) -> bytes:
    data = picture(1)
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _webp_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 9)), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    at = data.index(b"VP8X")
    data[at + 12 : at + 15] = (width - 1).to_bytes(3, "little")
    data[at + 15 : at + 18] = (height - 1).to_bytes(3, "little")
    return bytes(data)


def _gif_header(width: int, height: int) -> bytes:
    data = picture(1, kind="GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def _bmp_header(width: int, height: int) -> bytes:
    data = picture(1, kind="BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def _tiff_header(width: int, height: int) -> bytes:
    return tiff(np.zeros((4, 4), np.uint8), 1).replace(struct.pack("<HHII", 256, 4, 1, 4), struct.pack("<HHII", 256, 4, 1, width)).replace(
        struct.pack("<HHII", 257, 4, 1, 4), struct.pack("<HHII", 257, 4, 1, height)
    )  # fmt: skip


def _avif_header(width: int, height: int) -> bytes:
    data = picture(1, kind="AVIF")
    at = data.index(b"ispe")
    return data[: at + 8] + struct.pack(">II", width, height) + data[at + 16 :]


@pytest.mark.parametrize("make", [png_header, _jpeg_header, _webp_header, _gif_header, _bmp_header, _tiff_header, _avif_header])
@pytest.mark.parametrize("side", [9_500, 12_000, 16_000, 60_000])
def test_a_bomb_is_refused_by_its_header(make, side: int) -> None:
    data = make(side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reason = refused(data, max_pixels=89_000_000)
    # libwebp and libavif look at more than one place for the size, or have a limit of their own.
    assert reason == "TooManyPixels" or (make in (_webp_header, _avif_header) and reason == "BrokenImage")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # KiB


def test_text_in_a_png_that_unpacks_to_gigabytes() -> None:
    import zlib

    data = png_header(16, 16)
    bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 3_000_000))
    assert refused(data[:33] + bomb + data[33:]) == "BrokenImage"


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    data = picture(1, size=(60, 60), progressive=True)
    last = data.rindex(b"\xff\xda")
    assert refused(data[:-2] + data[last:-2] * 300 + b"\xff\xd9") == "BrokenImage"
    assert stored(data)


# Damage


@pytest.fixture(params=[False, True], ids=["", "others want cut images"])
def lenient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    return bool(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_images_are_refused_wherever_they_are_cut(kind: str, lenient: bool) -> None:
    data = encoded(photo(1, 90, 70), kind, **LOSSLESS.get(kind, {}))
    assert stored(data)
    for size in range(4, len(data) - 20, max(1, len(data) // 97)):
        assert refused(data[:size]) in ("BrokenImage", "UnsupportedImage"), size
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("max_side", [64, 512])
def test_a_jpeg_cut_in_its_last_byte_is_refused(max_side: int) -> None:
    """Whether it would pass through or not, at any scale it is decoded at."""
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        data = encoded(photo(1, 200, 150), quality=90, **options)
        assert stored(data, max_side=max_side)
        for cut in (1, 2, 3, 10, 100):
            assert refused(data[:-cut], max_side=max_side) == "BrokenImage"
            assert refused(data[: -cut - 2] + b"\xff\xd9", max_side=max_side) == "BrokenImage" or cut < 3


def test_damage_in_a_jpeg_is_found() -> None:
    """A JPEG has no sum to check, so a small part of it goes unseen; Pillow alone sees one in a hundred."""
    data = encoded(photo(1, 400, 300), quality=90)
    start = data.index(b"\xff\xda") + 14
    rng = random.Random(0)
    found = 0
    for _ in range(100):
        at = rng.randrange(start, len(data) - 600)
        hurt = data[:at] + rng.randbytes(500) + data[at + 500 :]
        try:
            stored(hurt, max_side=512)
        except BadImageError as error:
            found += error.reason == "BrokenImage"
    assert found >= 90


def test_every_flipped_bit_of_a_png_is_found() -> None:
    data = encoded(photo(1, 40, 30), "PNG")
    start = data.index(b"IDAT")
    for at in range(start, len(data) - 16, 61):
        assert refused(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]) == "BrokenImage"


@pytest.mark.parametrize("kind", KINDS)
def test_noise_ends_as_a_refusal_or_a_picture(kind: str) -> None:
    """Whatever the bytes, the only exception is BadImageError, and what is stored can be read."""
    data = encoded(photo(1, 50, 40), kind, **LOSSLESS.get(kind, {}))
    rng, reasons = random.Random(kind), set()
    for _ in range(150):
        hurt = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            hurt[rng.randrange(len(hurt))] = rng.randrange(256)
        try:
            image = stored(bytes(hurt), max_pixels=1_000_000)
        except BadImageError as error:
            reasons.add(error.reason)
        else:
            assert opened(image).size == (image.width, image.height)
    assert reasons <= {"BrokenImage", "UnsupportedImage", "TooManyPixels"}


def test_harmless_oddities_of_jpegs_are_not_damage() -> None:
    data = picture(1)
    at = data.index(b"JFIF\0") + 5
    assert stored(data[:at] + b"\x07" + data[at + 1 :]).passthrough  # a version of JFIF that nobody knows


def flat_jpeg(factors: int, width: int, height: int) -> bytes:
    """Grey of 228 in YCbCr with sampling factors `factors` for luma and 0x11 for colour, one MCU: as no library here writes it."""
    luma_blocks = (factors >> 4) * (factors & 15)
    bits = "01" + f"{100:07b}" + "0" + "000" * (luma_blocks - 1) + "000" * 2  # one difference of 7 bits, zeros; end of block each time
    bits = bits.ljust(-(-len(bits) // 8) * 8, "1")
    segments = [
        (0xDB, bytes([0]) + bytes([8]) * 64),
        (0xC0, struct.pack(">BHHB", 8, height, width, 3) + bytes([1, factors, 0, 2, 0x11, 0, 3, 0x11, 0])),
        (0xC4, bytes([0x00, 0, 2] + [0] * 14 + [0, 7]) + bytes([0x10, 1] + [0] * 15 + [0])),
        (0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 63, 0])),
    ]
    head = b"\xff\xd8" + b"".join(b"\xff" + bytes([mark]) + struct.pack(">H", len(body) + 2) + body for mark, body in segments)
    return head + int(bits, 2).to_bytes(len(bits) // 8) + b"\xff\xd9"


@pytest.mark.parametrize("factors", [0x11, 0x22, 0x31, 0x24])
def test_any_subsampling_is_read(factors: int) -> None:
    data = flat_jpeg(factors, 8 * (factors >> 4), 8 * (factors & 15))
    assert stored(data).passthrough
    assert abs(int(stored(data).grey.mean()) - 228) <= 1
    scaled = stored(data, max_side=6)
    assert max(scaled.width, scaled.height) == 6
    assert np.abs(np.asarray(opened(scaled), int) - 228).max() <= 2


def png_of(colour: int, bits: int, size: tuple[int, int], rows: bytes, interlaced: int = 0, *before: bytes) -> bytes:
    chunks = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlaced)), *before]
    packed = zlib.compress(rows)
    chunks += [png_chunk(b"IDAT", packed[:7]), png_chunk(b"IDAT", packed[7:]), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("colour", "bits", "row"), [(0, 8, 41), (0, 1, 6), (2, 8, 121), (2, 16, 241), (4, 8, 81), (6, 8, 161), (0, 16, 81)]
)
@pytest.mark.parametrize("value", [b"\0", b"\x5a"])
def test_a_png_without_its_last_rows_is_refused(colour: int, bits: int, row: int, value: bytes) -> None:
    rows = (b"\0" + value * (row - 1)) * 30
    assert stored(png_of(colour, bits, (40, 30), rows)).height == 30
    assert stored(png_of(colour, bits, (40, 30), rows + b"more")).height == 30
    for missing in (1, row, 10 * row):
        assert refused(png_of(colour, bits, (40, 30), rows[:-missing])) == "BrokenImage"


def test_an_interlaced_png_without_its_last_rows_is_refused() -> None:
    # 40 × 30 px in Adam7: 5 × 4, 5 × 4, 10 × 4, 10 × 8, 20 × 7, 20 × 15 and 40 × 15 px
    rows = b"".join((b"\0" + b"\x5a" * width) * height for width, height in [(5, 4), (5, 4), (10, 4), (10, 8), (20, 7), (20, 15), (40, 15)])
    assert stored(png_of(0, 8, (40, 30), rows, 1)).height == 30
    for missing in (1, 41, 300):
        assert refused(png_of(0, 8, (40, 30), rows[:-missing], 1)) == "BrokenImage"


def test_a_refusal_says_something() -> None:
    """Of a PNG without its palette Pillow raises an error without words."""
    with pytest.raises(BadImageError, match=r"decoded: \w+") as caught:
        stored(png_of(3, 8, (40, 30), (b"\0" + b"\1" * 40) * 30))
    assert caught.value.reason == "BrokenImage"
