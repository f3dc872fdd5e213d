"""The perceptual hash: near for the same picture however it was saved, far for another, the same to the bit anywhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import encoded, photo
from PIL import Image

from mtv_core.data.images import ImageLimits, phash, store
from mtv_core.data.imaging import hashing

SCENES = [np.asarray(Image.fromarray(photo(n, 320, 240)).resize((640, 480), Image.Resampling.LANCZOS)) for n in range(12)]


def of(data: bytes, max_side: int = 768) -> int:
    return store(data, ImageLimits(max_side, 90, 10_000_000)).phash


def apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


ORIGINALS = [of(encoded(scene, quality=95)) for scene in SCENES]


@pytest.mark.parametrize(
    "again",
    [
        lambda image: encoded(image, quality=40),
        lambda image: encoded(image, progressive=True, quality=80, subsampling=0),
        lambda image: encoded(image, "PNG"),
        lambda image: encoded(image, "WEBP", quality=70),
        lambda image: encoded(image, "AVIF", quality=60),
        lambda image: encoded(image.resize((320, 240), Image.Resampling.BICUBIC), quality=90),
        lambda image: encoded(image.resize((1600, 1200), Image.Resampling.BICUBIC), quality=90),
        lambda image: encoded(image.resize((517, 391), Image.Resampling.BILINEAR), "PNG"),
        lambda image: encoded(image.resize((100, 75), Image.Resampling.LANCZOS), "PNG"),
    ],
    ids=["quality", "progressive", "png", "webp", "avif", "half", "larger", "odd", "thumbnail"],
)
def test_the_same_picture_saved_otherwise_is_near(again) -> None:
    distances = [apart(of(again(Image.fromarray(scene))), original) for scene, original in zip(SCENES, ORIGINALS, strict=True)]
    assert max(distances) <= 6, distances
    assert np.mean(distances) <= 3, distances


@pytest.mark.parametrize("max_side", [64, 224, 512, 639])
def test_the_size_that_is_stored_hardly_matters(max_side: int) -> None:
    distances = [apart(of(encoded(scene, quality=95), max_side), original) for scene, original in zip(SCENES, ORIGINALS, strict=True)]
    assert max(distances) <= 6, distances


def test_another_picture_is_far() -> None:
    distances = [apart(one, other) for n, one in enumerate(ORIGINALS) for other in ORIGINALS[:n]]
    assert min(distances) >= 10, sorted(distances)[:5]


def test_what_is_stored_is_hashed_alike_when_it_comes_back() -> None:
    """A table exported and ingested again: JPEGs that pass through now, and were scaled then."""
    for scene in SCENES:
        first = store(encoded(scene, quality=95), ImageLimits(300, 90, 10_000_000))
        second = store(first.jpeg, ImageLimits(300, 90, 10_000_000))
        assert second.passthrough
        assert apart(first.phash, second.phash) <= 4


def slow_truth(grey: np.ndarray) -> int:
    """The definition, term by term, in whole numbers."""
    table = [[round(4096 * np.cos(np.pi * u * (2 * x + 1) / 64)) for x in range(32)] for u in range(8)]
    rows = [[sum(table[u][y] * int(grey[y, x]) for y in range(32)) for x in range(32)] for u in range(8)]
    low = [sum(rows[u][x] * table[v][x] for x in range(32)) for u in range(8) for v in range(8)]
    ordered = sorted(low)
    return int("".join(str(int(2 * value > ordered[31] + ordered[32])) for value in low), 2)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, (32, 32)))
def test_it_is_its_definition(grey: np.ndarray) -> None:
    assert hashing.phash(grey) == slow_truth(grey)


def test_it_never_changes() -> None:
    """Tables keep hashes for years: these are frozen."""
    y, x = np.mgrid[0:32, 0:32]
    assert [
        hashing.phash(grey.astype(np.uint8)) for grey in (np.zeros((32, 32)), 8 * x, (x * y) % 256, 255 * ((x // 4 + y // 4) % 2))
    ] == FROZEN


FROZEN = [0, 9223372036854775808, 9313005767925256885, 9223372036854775808]


@settings(max_examples=30, deadline=None)
@given(width=st.integers(32, 700), height=st.integers(32, 700))  # smaller ones are interpolated
def test_the_grey_picture_is_the_average(width: int, height: int) -> None:
    """Of any size; compared with plain sums over a picture made of large patches."""
    rng = np.random.default_rng(width * 1000 + height)
    patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(patches)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    edges_y, edges_x = np.linspace(0, height, 33), np.linspace(0, width, 33)
    rows = np.clip(np.minimum(np.arange(1, height + 1), edges_y[1:, None]) - np.maximum(np.arange(height), edges_y[:-1, None]), 0, None)
    columns = np.clip(np.minimum(np.arange(1, width + 1), edges_x[1:, None]) - np.maximum(np.arange(width), edges_x[:-1, None]), 0, None)
    expected = rows @ luma @ columns.T / (height / 32 * width / 32)
    for grey in (hashing.grey_of_rgb(pixels), hashing.grey_of_luma(np.ascontiguousarray(np.rint(luma).astype(np.uint8)))):
        off = np.abs(grey.astype(float) - expected)
        assert off.mean() < 3
        assert off.max() < 30


def test_a_picture_of_any_mode_has_a_hash() -> None:
    image = Image.open(io.BytesIO(encoded(SCENES[0], "PNG")))
    assert apart(phash(image), ORIGINALS[0]) <= 2
    assert 0 <= phash(image.convert("L")) < 2**64
