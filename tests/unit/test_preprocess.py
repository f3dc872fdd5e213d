"""Preprocessing against the image processors of transformers, at sizes of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import DPTImageProcessor, Owlv2ImageProcessor

from mtv_core.experts.preprocess import Resizing, Squaring

CPU = torch.device("cpu")
Size = tuple[int, int]
# Aspects from 1:4 to 4:1, smaller and larger than the models' inputs, one pixel, odd ones.
SIZES: list[Size] = [
    (96, 96), (96, 72), (72, 96), (24, 96), (96, 24), (150, 100), (33, 127), (1, 1), (1, 40), (41, 1), (200, 200), (301, 77), (257, 256),
]  # fmt: skip


def pictures(sizes: Sequence[Size], seed: int = 0) -> list[Image.Image]:
    """Noise over smooth colours: every frequency, the full range."""
    rng = np.random.default_rng(seed)
    found = []
    for width, height in sizes:
        smooth = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.integers(-60, 61, (height, width, 3))
        found.append(Image.fromarray((np.asarray(smooth, int) + noise).clip(0, 255).astype(np.uint8)))
    return found


def depth_processor(**fields: object) -> DPTImageProcessor:
    settings = {
        "size": {"height": 98, "width": 98}, "keep_aspect_ratio": True, "ensure_multiple_of": 14, "resample": 3,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    return DPTImageProcessor(**(settings | fields))  # type: ignore[arg-type]


def processed(processor: Any, images: Sequence[Image.Image], **options: Any) -> torch.Tensor:
    """The truth, [B, 3, H, W]."""
    found: torch.Tensor = processor(images=list(images), return_tensors="pt", **options)["pixel_values"]
    return found


def resized(processor: Any, images: Sequence[Image.Image], size: Size) -> torch.Tensor:
    """The truth for depth, brought to a size."""
    return processed(processor, images, size={"height": size[1], "width": size[0]}, keep_aspect_ratio=False)


def owl_processor(side: int = 96, **fields: object) -> Owlv2ImageProcessor:
    return Owlv2ImageProcessor(size={"height": side, "width": side}, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [(98, 98), (14, 98), (112, 84)])
@pytest.mark.parametrize("resample", [2, 3])
def test_depth_pixels_are_the_processors_bit_for_bit(target: Size, resample: int) -> None:
    processor = depth_processor(resample=resample)
    resizing = Resizing.of(processor)
    assert resizing is not None
    images = pictures(SIZES)
    found = resizing(images, target, CPU)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)  # as the model's convolutions want it
    for image, pixels in zip(images, found, strict=True):
        [wanted] = resized(processor, [image], target)
        torch.testing.assert_close(pixels, wanted, rtol=0, atol=0)


@given(st.lists(st.tuples(st.integers(1, 160), st.integers(1, 160)), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_depth_pixels_at_any_size(sizes: list[Size], seed: int) -> None:
    processor = depth_processor()
    resizing = Resizing.of(processor)
    assert resizing is not None
    images = pictures(sizes, seed)
    wanted = resized(processor, images, (126, 98))
    torch.testing.assert_close(resizing(images, (126, 98), CPU), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("side", [96, 112, 301])
def test_detection_pixels_are_the_processors_bit_for_bit_unless_blurred(side: int) -> None:
    processor = owl_processor(side)
    squaring = Squaring.of(processor)
    assert squaring is not None
    images = pictures(SIZES)
    found = squaring(images, CPU)
    assert found.dtype == torch.float32
    for image, pixels in zip(images, found, strict=True):
        [wanted] = processed(processor, [image])
        # Two sums of float32 instead of one: a few units of the last place, where a step of a byte is 0.015.
        torch.testing.assert_close(pixels, wanted, rtol=0, atol=1e-5 if max(image.size) > side else 0)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_detection_pixels_at_any_size(sizes: list[Size], seed: int) -> None:
    processor = owl_processor()
    squaring = Squaring.of(processor)
    assert squaring is not None
    images = pictures(sizes, seed)
    wanted = processed(processor, images)
    torch.testing.assert_close(squaring(images, CPU), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [[(512, 384), (300, 512)], [(1024, 768)]])
def test_at_the_real_sizes(sizes: list[Size]) -> None:
    depth, owl = depth_processor(size={"height": 518, "width": 518}), owl_processor(960)
    resizing, squaring = Resizing.of(depth), Squaring.of(owl)
    assert resizing is not None
    assert squaring is not None
    images = pictures(sizes)
    for image in images:
        wanted = processed(depth, [image])
        torch.testing.assert_close(resizing([image], (wanted.shape[3], wanted.shape[2]), CPU), wanted, rtol=0, atol=0)
    tolerance = 1e-5 if sizes[0][0] > 960 else 0
    torch.testing.assert_close(squaring(images, CPU), processed(owl, images), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "processor",
    [
        depth_processor(do_pad=True), depth_processor(do_normalize=False), depth_processor(do_resize=False), depth_processor(resample=0),
        owl_processor(),
    ],
)  # fmt: skip
def test_other_processors_are_not_imitated(processor: object) -> None:
    assert Resizing.of(processor) is None


@pytest.mark.parametrize(
    "processor", [owl_processor(do_pad=False), owl_processor(do_rescale=False), owl_processor(resample=3), depth_processor()]
)
def test_nor_for_detection(processor: object) -> None:
    assert Squaring.of(processor) is None


def test_labels_are_those_of_the_processors() -> None:
    """Depth to the byte, boxes but for the blur's rounding."""
    from mtv_core import experts
    from mtv_core.blocks.shards import truth
    from mtv_core.experts.config import DepthExpertConfig, DetectionExpertConfig

    found = [truth(5, i, *((96, 96), (96, 72), (150, 100), (200, 200))[i % 4]) for i in range(12)]
    images, captions = [Image.fromarray(one.rendered.rgb) for one in found], [one.caption.text for one in found]
    depth: Any = experts.load("depth", DepthExpertConfig(model="blocks:depth-r2", device="cpu"))
    detection: Any = experts.load("detection", DetectionExpertConfig(model="blocks:detection-r2", device="cpu"))
    maps, boxes = depth(images, captions), detection(images, captions).to_pylist()
    assert depth._resizing is not None
    assert detection.detector._squaring is not None
    depth._resizing = detection.detector._squaring = None
    assert depth(images, captions) == maps
    for one, wanted, image in zip(boxes, detection(images, captions).to_pylist(), images, strict=True):
        assert one["phrases"] == wanted["phrases"]
        tolerance = 0.0 if max(image.size) <= 96 else 1e-5
        np.testing.assert_allclose(np.reshape(one["boxes"], (-1, 4)), np.reshape(wanted["boxes"], (-1, 4)), rtol=0, atol=tolerance)
        np.testing.assert_allclose(one["scores"], wanted["scores"], rtol=0, atol=tolerance)
    assert sum(len(one["boxes"]) for one in boxes) > 8
