"""Pixels, boxes and depth move together; colours are those of the slow formulas; what is random about a sample is the sample's own."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tvf
from training_world import SIZE, tiny_config

from mtv_core.blocks.shards import truth
from mtv_core.model.mtv import load_tokenizer
from mtv_core.model.preprocess import pixel_values, token_ids
from mtv_core.objectives.base import Batch
from mtv_core.store.loader import Row
from mtv_core.training import augment
from mtv_core.training.augment import Crop
from mtv_core.training.batches import BatchMaker
from mtv_core.training.config import TrainConfig, ViewsConfig

PLAIN = ViewsConfig(jitter=0, grayscale=0, blur=0)
TOKENIZER = load_tokenizer("blocks:tokenizer")


def crops(width: int, height: int) -> st.SearchStrategy[Crop]:
    spans = st.tuples(st.integers(0, width - 8), st.integers(8, width), st.integers(0, height - 8), st.integers(8, height), st.booleans())
    return spans.map(lambda s: Crop(s[0], s[2], min(width, s[0] + s[1]), min(height, s[2] + s[3]), s[4]))


def row(index: int = 3, epoch: int = 0, size: int = SIZE, **changes: object) -> Row:
    sample = truth(11, index, size, size)
    seen = [k for k in range(len(sample.scene.solids)) if sample.rendered.visible[k] > 0.3]
    values = Row(
        uid=f"{index + 1:032x}",
        epoch=epoch,
        image=torch.from_numpy(sample.rendered.rgb).permute(2, 0, 1).contiguous(),
        captions=(sample.caption.text, "another caption"),
        depth=np.where(np.isfinite(sample.rendered.depth), 1 / sample.rendered.depth, np.nan).astype(np.float32),
        boxes=sample.rendered.boxes[seen],
        phrases=tuple(sample.scene.solids[k].name for k in seen),
        scores=np.linspace(0.5, 0.9, len(seen), dtype=np.float32),
    )
    return dataclasses.replace(values, **changes)


def maker(**changes: object) -> BatchMaker:
    config = tiny_config(**changes)
    return BatchMaker(config, TOKENIZER, patch_size=8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), crops(96, 80), st.integers(20, 90))
def test_boxes_move_with_the_pixels(index: int, crop: Crop, size: int) -> None:
    rendered = truth(5, index, 96, 80).rendered
    moved, stays = augment.move_boxes(rendered.boxes, crop, 96, 80, min_kept=0.0)
    # The truth: cut the picture of instances, mirror it, and look where each is.
    part = rendered.instances[crop.top : crop.bottom, crop.left : crop.right]
    part = part[:, ::-1] if crop.flip else part
    height, width = part.shape
    for k in range(len(moved)):
        ys, xs = np.nonzero(part == k)
        if len(xs) == 0:
            continue
        assert stays[k]
        inner = np.array([xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height])
        # The box is that of the whole visible part, cut at the border: it holds what is seen, and is tight where nothing was cut.
        assert (moved[k, :2] <= inner[:2] + 1e-6).all()
        assert (moved[k, 2:] >= inner[2:] - 1e-6).all()
        if len(xs) == (rendered.instances == k).sum():
            assert np.allclose(moved[k], inner, atol=1e-6)
    # The same rectangle in the resized picture: boxes are shares, so its size does not matter.
    assert augment.crop_picture(torch.from_numpy(rendered.rgb).permute(2, 0, 1), crop, size).shape == (3, size, size)


@settings(max_examples=60, deadline=None)
@given(crops(64, 48), st.sampled_from([8, 24, 48]), st.sampled_from([1, 2, 4]))
def test_depth_moves_with_the_pixels(crop: Crop, size: int, coarser: int) -> None:
    ys, xs = np.mgrid[0:48, 0:64]
    image = torch.from_numpy(np.stack([xs * 3, ys * 4, np.zeros_like(xs)]).astype(np.uint8))
    seen = augment.crop_picture(image, crop, size).double().numpy()
    for channel, ramp in ((0, xs * 3.0), (1, ys * 4.0)):
        # A label of its own resolution, cell by cell the mean of the pixels it covers.
        depth = ramp.reshape(48 // coarser, coarser, 64 // coarser, coarser).mean(axis=(1, 3)).astype(np.float32)
        moved = augment.move_depth(depth, crop, 64, 48, size)
        step = 3.0 if channel == 0 else 4.0
        span = (crop.right - crop.left if channel == 0 else crop.bottom - crop.top) / size
        middle = slice(1, -1)  # antialiasing leans inwards at the border
        # Never further off than half a cell, half a pixel, and the rounding of bytes.
        bound = step * (coarser / 2 + 0.5 + max(0.0, span - 1) / 2) + 1
        assert np.abs(moved - seen[channel])[middle, middle].max() <= bound
    assert (np.diff(augment.move_depth(xs.astype(np.float32), crop, 64, 48, size)[0]) * (-1 if crop.flip else 1) >= 0).all()


def test_depth_of_a_blocks_crop_is_the_depth_of_its_pixels() -> None:
    rendered = truth(5, 1, 96, 96).rendered
    crop = Crop(10, 20, 58, 68, flip=True)
    inverse = (1 / rendered.depth).astype(np.float32)
    assert np.array_equal(augment.move_depth(inverse, crop, 96, 96, 48), inverse[20:68, 10:58][:, ::-1])


def test_missing_depth_stays_missing() -> None:
    depth = np.full((10, 10), np.nan, np.float32)
    depth[:, 5:] = 1
    moved = augment.move_depth(depth, Crop(0, 0, 10, 10, flip=True), 10, 10, 20)
    assert np.array_equal(np.isnan(moved), np.arange(20)[None].repeat(20, 0) >= 10)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(30, 400), st.integers(30, 400), st.sampled_from([(0.05, 0.32), (0.32, 1.0), (1.0, 1.0)]))
def test_crops_have_the_area_and_shape_asked_for(seed: int, width: int, height: int, scale: tuple[float, float]) -> None:
    views = ViewsConfig()
    crop = augment.random_crop(np.random.default_rng(seed), width, height, scale, views)
    w, h = crop.right - crop.left, crop.bottom - crop.top
    assert 0 <= crop.left < crop.right <= width
    assert 0 <= crop.top < crop.bottom <= height
    assert scale[0] - 0.5 * (1 / w + 1 / h) <= w * h / (width * height) <= scale[1] + 0.5 * (1 / w + 1 / h)
    if max(width, height) / min(width, height) * scale[1] <= 1:  # there is room for every shape
        assert 1 / views.aspect * (1 - 2 / w) <= w / h <= views.aspect * (1 + 2 / h)


@settings(max_examples=40, deadline=None)
@given(crops(64, 48), st.integers(8, 70))
def test_crops_are_torchvisions(crop: Crop, size: int) -> None:
    image = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).permute(2, 0, 1)  # as decoding leaves it
    part = tvf.crop(image, crop.top, crop.left, crop.bottom - crop.top, crop.right - crop.left)
    reference = tvf.resize(part, [size, size], antialias=True)
    assert torch.equal(augment.crop_picture(image, crop, size), tvf.horizontal_flip(reference) if crop.flip else reference)


def test_boxes_mostly_outside_are_not_there() -> None:
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.4, 0.0, 0.9, 0.5], [0.8, 0.8, 1.0, 1.0]], np.float32)
    moved, stays = augment.move_boxes(boxes, Crop(0, 0, 50, 50), 100, 100, min_kept=0.3)
    assert stays.tolist() == [True, False, False]  # all, 1/5 and none of it inside
    assert moved[0].tolist() == [0, 0, 1, 1]


def test_nothing_drawn_is_the_picture() -> None:
    pictures = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    out = augment.recolour(pictures, torch.rand(4, 8), PLAIN)
    assert torch.allclose(out, pictures.float() / 127.5 - 1, atol=1e-5)


def test_colours_are_those_of_the_slow_formulas() -> None:
    views = ViewsConfig(jitter=1, grayscale=0.3, blur=0, brightness=0.2, contrast=0.3, saturation=0.3, hue=0.1)
    pictures = torch.randint(100, 140, (12, 3, 8, 8), dtype=torch.uint8)  # nothing reaches 0 or 255
    drawn = torch.from_numpy(augment.draw_colours(np.random.default_rng(0), 12))
    out = augment.recolour(pictures, drawn, views)
    for picture, u, result in zip(pictures.double().numpy() / 255, drawn.double().numpy(), out.numpy(), strict=True):
        brightness, contrast, saturation = (1 + s * (2 * d - 1) for s, d in zip((0.2, 0.3, 0.3), u[1:4], strict=True))
        x = picture * brightness
        gray = np.tensordot([0.299, 0.587, 0.114], x, 1)
        x = contrast * x + (1 - contrast) * gray.mean()
        x = (s := 0.0 if u[5] < 0.3 else saturation) * x + (1 - s) * np.tensordot([0.299, 0.587, 0.114], x, 1)
        y, i, q = np.tensordot([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], x, 1)
        angle = 2 * math.pi * 0.1 * (2 * u[4] - 1)
        turned = np.stack([y, i * math.cos(angle) - q * math.sin(angle), i * math.sin(angle) + q * math.cos(angle)])
        x = np.tensordot(np.linalg.inv([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]), turned, 1)
        assert np.abs(result - (2 * x - 1)).max() < 1e-5


def test_blur_is_torchvisions() -> None:
    pictures = torch.rand(3, 3, 20, 20)
    sigma = torch.tensor([0.3, 1.0, 2.0])
    out = augment.gaussian_blur(pictures, sigma, radius=6)
    for k in range(3):
        reference = tvf.gaussian_blur(pictures[k], [13, 13], [sigma[k].item()] * 2)
        assert torch.allclose(out[k, :, 6:-6, 6:-6], reference[:, 6:-6, 6:-6], atol=1e-5)


def test_the_clean_view_is_the_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    big = row(size=80)
    batch = maker()([big])
    assert torch.equal(batch.pixels, pixel_values([big.image.permute(1, 2, 0).numpy()], SIZE))
    assert (batch.text_ids[0] == token_ids(TOKENIZER, big.captions)).all(dim=1).any()


def test_flipped_clean_view_has_flipped_labels() -> None:
    plain, flipped = maker()([row()]), maker(views={**tiny_config().views.model_dump(), "clean_flip": 1.0})([row()])
    assert torch.equal(flipped.pixels, plain.pixels.flip(-1))
    assert torch.allclose(flipped.depth[flipped.depth_valid].sum(), plain.depth[plain.depth_valid].sum(), rtol=0.05)
    assert torch.allclose(flipped.boxes[..., [2, 0]] + plain.boxes[..., [0, 2]], flipped.box_valid[..., None].float(), atol=1e-6)


def fields(batch: Batch, sample: int) -> dict[str, torch.Tensor]:
    crops = {name: getattr(batch, name)[:, sample] for name in ("global_crops", "local_crops", "masks")}
    return crops | {name: getattr(batch, name)[sample] for name in ("pixels", "text_ids", "boxes", "box_valid", "depth", "depth_valid")}


def test_a_sample_looks_the_same_in_any_place_and_otherwise_in_another_epoch() -> None:
    make = maker(views={**tiny_config().views.model_dump(), "clean_scale": (0.5, 1.0)})
    first, second = make([row(1), row(2), row(3)]), make([row(3), row(1)])
    for here, there in ((0, 1), (2, 0)):
        for name, value in fields(first, here).items():
            assert torch.allclose(value, fields(second, there)[name], atol=1e-5), name
    later = fields(make([row(1, epoch=1)]), 0)
    for name in ("pixels", "global_crops", "local_crops"):
        assert not torch.allclose(later[name], fields(first, 0)[name], atol=0.1), name


def test_missing_labels_are_masked() -> None:
    rows = [row(1, depth=None), row(2, boxes=None, phrases=(), scores=None), row(4, boxes=np.zeros((0, 4), np.float32), phrases=())]
    batch = maker()(rows)
    assert batch.depth_valid.flatten(1).any(1).tolist() == [False, True, True]
    assert batch.box_valid.any(1).tolist() == [True, False, False]
    assert (batch.depth[~batch.depth_valid] == 0).all()
    assert torch.isfinite(batch.depth).all()
    none = maker()(rows[1:])
    assert none.phrase_ids.shape == (1, 64)
    assert not none.phrase_index.any()


def test_the_best_boxes_are_kept_with_their_phrases() -> None:
    boxes = np.tile(np.array([[0.1, 0.1, 0.9, 0.9]], np.float32), (5, 1))
    several = row(boxes=boxes, phrases=("a", "b", "c", "b", "d"), scores=np.array([0.1, 0.9, 0.3, 0.8, 0.2], np.float32))
    batch = maker()([several, several])
    texts = [TOKENIZER.decode(ids, skip_special_tokens=True).strip() for ids in batch.phrase_ids[batch.phrase_index[1]]]
    assert texts == ["b", "b", "c"]
    assert len(batch.phrase_ids) == 2


def test_no_crops_without_an_objective_that_looks_at_them() -> None:
    config = tiny_config().model_dump()
    batch = maker(objectives={**config["objectives"], "distillation": None, "masked": None, "grounding": None, "depth": None})([row()])
    assert len(batch.global_crops) == len(batch.local_crops) == 0
    assert not batch.box_valid.any()
    assert not batch.depth_valid.any()


def test_global_crops_may_be_smaller_and_masks_have_their_grid() -> None:
    batch = maker(views={**tiny_config().views.model_dump(), "global_size": 32})([row(), row(2)])
    assert batch.global_crops.shape == (2, 2, 3, 32, 32)
    assert batch.masks.shape == (2, 2, 16)
    assert batch.pixels.shape == (2, 3, SIZE, SIZE)


def test_configurations_that_cannot_work_are_refused() -> None:
    for changes in ({"global_batch": 9}, {"views": {"global_crops": 1, "local_crops": 0}}, {"views": {"local_scale": (0.5, 0.1)}}):
        with pytest.raises(ValueError, match=r"global_batch|views\.global_crops|two shares"):
            TrainConfig.model_validate(changes)
