"""Every way in which a file can hold colours comes out as the RGB that a person would see."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from pictures import SRGB_PRIMARIES, Pixels, encoded, icc, icc_grey, photo, png16, tiff, tiff_planes
from PIL import Image, ImageCms

from mtv_core.data.images import BadImageError, ImageLimits, StoredImage, store

LIMITS = ImageLimits(max_side=256, quality=98, max_pixels=1_000_000, subsampling="4:4:4")
RAMP = np.linspace(0, 255, 64).astype(np.uint8)[None, :].repeat(48, 0)  # [48, 64], grey from black to white
PHOTO = photo(3, 64, 48)


def seen(stored: StoredImage) -> np.ndarray:
    image = Image.open(io.BytesIO(stored.jpeg))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (stored.width, stored.height))
    return np.asarray(image).astype(int)


def looks_like(data: bytes, expected: np.ndarray, mean: float = 1.5, worst: int = 24) -> None:
    found = seen(store(data, LIMITS))
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    off = np.abs(found - expected.astype(int))
    assert off.mean() <= mean, off.mean()
    assert off.max() <= worst, off.max()


def on_white(pixels: Pixels, alpha: np.ndarray) -> np.ndarray:
    weight = alpha.astype(float)[..., None] / 255
    return np.rint(pixels * weight + 255 * (1 - weight))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}),
        ("JPEG", {"quality": 98, "keep_rgb": True}),
        ("AVIF", {"quality": 98, "subsampling": "4:4:4"}),
    ],
)
def test_rgb_of_every_format(kind: str, options: dict[str, object]) -> None:
    looks_like(encoded(PHOTO, kind, **options), PHOTO)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP", "AVIF"])
def test_grey_becomes_rgb(kind: str) -> None:
    looks_like(encoded(Image.fromarray(RAMP), kind, **({"lossless": True} if kind == "WEBP" else {})), RAMP, mean=2.5)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_one_bit(kind: str) -> None:
    bits = np.zeros((48, 64), bool)
    bits[:, 32:] = True
    looks_like(encoded(Image.fromarray(bits), kind), bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_palette(kind: str) -> None:
    image = Image.fromarray(PHOTO).quantize(64)
    looks_like(encoded(image, kind), np.asarray(image.convert("RGB")), mean=3, worst=60)


# 16 bits are scaled, never clipped


def test_sixteen_bit_png() -> None:
    wide = RAMP.astype(np.uint16) * 257
    looks_like(png16(wide), RAMP)
    looks_like(png16(PHOTO.astype(np.uint16) * 257), PHOTO)
    alpha = np.full((48, 64), 128, np.uint8)
    looks_like(png16(np.dstack([wide, alpha.astype(np.uint16) * 257])), on_white(np.dstack([RAMP] * 3), alpha))
    looks_like(png16(np.dstack([PHOTO.astype(np.uint16) * 257, alpha.astype(np.uint16) * 257])), on_white(PHOTO, alpha))


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff(order: str) -> None:
    looks_like(tiff(RAMP.astype(np.uint16) * 257, 1, order), RAMP)
    looks_like(tiff(PHOTO.astype(np.uint16) * 257, 2, order), PHOTO)


def test_the_colour_that_a_sixteen_bit_png_calls_transparent() -> None:
    wide = np.full((48, 64), 0x1234, np.uint16)
    wide[:, 32:] = 0x1200  # its upper byte is the same; only the other is transparent
    expected = np.where(np.arange(64) < 32, 255, 0x12)[None].repeat(48, 0)
    looks_like(png16(wide, (0x1234,)), expected)
    rgb = np.zeros((48, 64, 3), np.uint16)
    rgb[:, :32] = 0xFFFF, 0, 0
    expected = np.where((np.arange(64) < 32)[None, :, None], 255, 0) * np.ones((48, 1, 3))
    looks_like(png16(rgb, (0xFFFF, 0, 0)), expected, mean=2, worst=40)


def test_white_is_zero() -> None:
    looks_like(tiff(255 - RAMP, 0), RAMP)
    looks_like(tiff((255 - RAMP).astype(np.uint16) * 257, 0), RAMP)


def test_tiffs_of_kinds_that_pillow_cannot_read_are_refused_as_such() -> None:
    wide = RAMP.astype(np.uint16) * 257
    with_alpha = np.dstack([wide, np.full_like(wide, 65535)])
    planes = np.moveaxis(PHOTO.astype(np.uint16) * 257, 2, 0)
    for data in (
        tiff(wide, 0, ">"),
        tiff(with_alpha, 1, "<", t338=2),
        tiff(with_alpha, 1, ">", t338=2),
        tiff_planes(planes, 2),
        tiff_planes(planes, 2, ">"),
    ):
        with pytest.raises(BadImageError) as caught:
            store(data, LIMITS)
        assert caught.value.reason == "UnsupportedImage"


def test_planes_of_eight_bits() -> None:
    looks_like(tiff_planes(np.moveaxis(PHOTO, 2, 0), 2), PHOTO)


def test_numbers_without_a_white_are_refused() -> None:
    for data in (tiff(np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64), 1), encoded(Image.new("I", (64, 48), 70_000), "TIFF")):
        with pytest.raises(BadImageError) as caught:
            store(data, LIMITS)
        assert caught.value.reason == "UnsupportedImage"


# Transparency, on white

ALPHA = np.linspace(0, 255, 64).astype(np.uint8)[None, :].repeat(48, 0)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})])
def test_alpha(kind: str, options: dict[str, object]) -> None:
    looks_like(encoded(np.dstack([PHOTO, ALPHA]), kind, **options), on_white(PHOTO, ALPHA))


def test_grey_with_alpha() -> None:
    looks_like(encoded(Image.merge("LA", (Image.fromarray(RAMP), Image.fromarray(ALPHA))), "PNG"), on_white(np.dstack([RAMP] * 3), ALPHA))


def test_premultiplied_alpha() -> None:
    weighed = (PHOTO.astype(int) * ALPHA[..., None] // 255).astype(np.uint8)
    looks_like(tiff(np.dstack([weighed, ALPHA]), 2, t338=1), on_white(PHOTO, ALPHA), mean=3, worst=40)


def test_transparent_entries_of_a_palette() -> None:
    image = Image.new("P", (64, 48), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (32, 0, 64, 48))
    expected = np.where(np.arange(64)[None, :, None] < 32, (255, 255, 255), (0, 0, 255)) * np.ones((48, 1, 1), int)
    for data in (
        encoded(image, "PNG", transparency=0),
        encoded(image, "PNG", transparency=bytes([0, 255])),
        encoded(image, "GIF", transparency=0),
    ):
        looks_like(data, expected, worst=40)
    half = encoded(image, "PNG", transparency=bytes([128, 255]))
    assert abs(seen(store(half, LIMITS))[24, 8] - (255, 127, 127)).max() <= 3


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_a_colour_that_is_transparent(mode: str) -> None:
    image = Image.new(mode, (64, 48), 0)
    image.paste(Image.new(mode, (32, 48), "white" if mode == "RGB" else 255).point(lambda v: v // 2) if mode != "1" else 1, (32, 0, 64, 48))
    transparent = (0, 0, 0) if mode == "RGB" else 0
    found = seen(store(encoded(image, "PNG", transparency=transparent), LIMITS))
    assert found[24, 8].min() > 250
    assert abs(found[24, 56] - (255 if mode == "1" else 127)).max() <= 3


def test_what_is_hidden_does_not_bleed_when_scaled() -> None:
    """Transparent pixels have colours too, often black ones. Weighed by alpha they do not darken the edge."""
    pixels = np.zeros((480, 640, 4), np.uint8)
    pixels[:, 317:] = 255
    found = seen(store(encoded(pixels, "PNG"), LIMITS))
    assert found.min() >= 253


# Ink


def ink(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels).convert("CMYK")


def test_cmyk_of_every_kind() -> None:
    expected = np.asarray(ink(PHOTO).convert("RGB"))
    looks_like(encoded(ink(PHOTO), "TIFF"), expected)
    adobe = encoded(ink(PHOTO), "JPEG", quality=98)  # 0 is full ink, and a mark says so
    looks_like(adobe, expected, mean=3, worst=60)
    at = adobe.index(b"\xff\xee")
    size = int.from_bytes(adobe[at + 2 : at + 4])
    unmarked = adobe[:at] + adobe[at + 2 + size :]  # without the mark it is shown the same
    assert "adobe" not in Image.open(io.BytesIO(unmarked)).info
    looks_like(unmarked, expected, mean=3, worst=60)


def test_ycck() -> None:
    inverted = 255 - np.asarray(ink(PHOTO))
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(inverted), 98, "CMYK", "444")
    assert Image.open(io.BytesIO(data)).info["adobe_transform"] == 2
    looks_like(data, np.asarray(ink(PHOTO).convert("RGB")), mean=4, worst=60)


def test_scaled_cmyk() -> None:
    large = photo(5, 600, 450)
    found = store(encoded(ink(large), "JPEG", quality=95), LIMITS)
    assert (found.width, found.height, found.passthrough) == (256, 192, False)
    expected = np.asarray(Image.fromarray(large).resize((256, 192), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(seen(found) - expected).mean() < 4


def test_lab() -> None:
    lab = ImageCms.profileToProfile(Image.fromarray(PHOTO), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    assert lab is not None
    looks_like(encoded(lab, "TIFF"), PHOTO, mean=3, worst=60)


# Profiles

SWAPPED = icc(SRGB_PRIMARIES[1], SRGB_PRIMARIES[0], SRGB_PRIMARIES[2], 2.2)  # its red is sRGB's green


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 98}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {"quality": 95})]
)
def test_a_profile_is_applied(kind: str, options: dict[str, object]) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[...] = 200, 0, 0
    stored = store(encoded(red, kind, icc_profile=SWAPPED, **options), LIMITS)
    found = seen(stored)[24, 32]
    assert found[1] > 180
    assert max(found[0], found[2]) < 30
    assert not stored.passthrough
    assert "icc_profile" not in Image.open(io.BytesIO(stored.jpeg)).info


def test_a_profile_is_applied_after_scaling_too() -> None:
    red = np.zeros((600, 800, 3), np.uint8)
    red[...] = 200, 0, 0
    assert seen(store(encoded(red, "JPEG", icc_profile=SWAPPED), LIMITS))[24, 32][1] > 180


def test_srgb_under_any_name_passes_through() -> None:
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (ours, icc(*SRGB_PRIMARIES, 2.2)):
        data = encoded(PHOTO, "JPEG", icc_profile=profile)
        stored = store(data, LIMITS)
        near = profile == ours
        assert stored.passthrough == near  # a plain exponent is not the curve of sRGB: the shadows differ
        assert (stored.jpeg is data) == near


@pytest.mark.parametrize("profile", [b"no profile at all", SWAPPED[:200], icc_grey(1.0), b"\0" * 5_000_000])
def test_a_profile_that_makes_no_sense_is_ignored(profile: bytes) -> None:
    looks_like(encoded(PHOTO, "WEBP", lossless=True, icc_profile=profile), PHOTO)


def test_a_grey_profile_is_applied() -> None:
    grey = Image.new("L", (64, 48), 128)
    for data in (encoded(grey, "PNG", icc_profile=icc_grey(1.0)), encoded(grey, "JPEG", icc_profile=icc_grey(1.0))):
        assert abs(seen(store(data, LIMITS))[24, 32] - 188).max() <= 3  # linear light: half of it looks brighter than 128


@pytest.mark.parametrize("alpha", [255, 128, 0])
def test_a_grey_profile_is_applied_to_grey_with_alpha(alpha: int) -> None:
    grey, linear = np.full((48, 64), 128, np.uint8), icc_grey(1.0)
    expected = 188 * alpha / 255 + 255 * (1 - alpha / 255)
    picture = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (64, 48), alpha)))
    assert abs(seen(store(encoded(picture, "PNG", icc_profile=linear), LIMITS))[24, 32] - expected).max() <= 3


def test_a_grey_profile_is_applied_to_grey_with_a_transparent_value() -> None:
    grey = np.full((48, 64), 128, np.uint8)
    grey[:, 32:] = 7
    data = encoded(Image.fromarray(grey), "PNG", icc_profile=icc_grey(1.0), transparency=7)
    found = seen(store(data, LIMITS))
    assert abs(found[24, 8] - 188).max() <= 3
    assert found[24, 56].min() >= 253


def test_colours_are_converted_before_they_are_put_on_white() -> None:
    red = np.zeros((48, 64, 4), np.uint8)
    red[...] = 200, 0, 0, 128
    opaque = seen(store(encoded(np.ascontiguousarray(red[..., :3]), "PNG", icc_profile=SWAPPED), LIMITS))[24, 32]
    found = seen(store(encoded(red, "PNG", icc_profile=SWAPPED), LIMITS))[24, 32]
    assert abs(found - (opaque * 128 / 255 + 127)).max() <= 3


def test_a_grey_profile_of_a_palette_is_ignored() -> None:
    palette = Image.fromarray(RAMP).convert("P")
    looks_like(encoded(palette, "PNG", icc_profile=icc_grey(1.0)), RAMP)
