"""Experts against the plain use of their models: the same numbers as processor, model and post-processing one picture at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_experts import save_depth_anything, save_owlv2
from torchvision.ops import box_iou
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    DPTImageProcessor,
)

from mtv_core import experts
from mtv_core.blocks.shards import Sample, truth
from mtv_core.data.depth import decode
from mtv_core.data.schema import LABELS
from mtv_core.experts.config import DepthExpertConfig, DetectionExpertConfig
from mtv_core.experts.depth import DepthExpert
from mtv_core.experts.detection import DetectionExpert
from mtv_core.experts.detectors.owlv2 import to_picture
from mtv_core.experts.source import WEIGHTS

# 3:4 … 1:4 and 4:3 … 4:1, px; those nearest a square first, on which the embedded experts know most.
SIZES = [(72, 96), (96, 72), (64, 128), (128, 64), (56, 168), (168, 56), (48, 192), (192, 48)]


def samples(count: int = 8) -> list[Sample]:
    return [truth(77, index, *SIZES[index % len(SIZES)]) for index in range(count)]


def images(found: Sequence[Sample]) -> list[Image.Image]:
    return [Image.fromarray(sample.rendered.rgb) for sample in found]


def detector(model: str | Path = "blocks:detection-r2", **fields: Any) -> DetectionExpert:
    expert = experts.load("detection", DetectionExpertConfig.model_validate({"model": str(model), "device": "cpu", **fields}))
    assert isinstance(expert, DetectionExpert)
    return expert


def depth_expert(model: str | Path = "blocks:depth-r2", **fields: Any) -> DepthExpert:
    expert = experts.load("depth", DepthExpertConfig.model_validate({"model": str(model), "device": "cpu", **fields}))
    assert isinstance(expert, DepthExpert)
    return expert


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_owlv2(tmp_path_factory.mktemp("models") / "owlv2")


@pytest.fixture(scope="module")
def depth_anything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_depth_anything(tmp_path_factory.mktemp("models") / "depth")


# Detection


def naive_detections(folder: Path, image: Image.Image, phrases: list[str], expert: DetectionExpert) -> list[tuple[list[float], str, float]]:
    """The slow truth: transformers' own processor, forward and post-processing of one picture, then greedy suppression."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    texts = [expert.config.prompts[0].format(phrase) for phrase in phrases]
    inputs = processor(text=[texts], images=[image], return_tensors="pt", padding="max_length", max_length=16, truncation=True)
    with torch.inference_mode():
        outputs = model(**inputs)
    size = [(image.height, image.width)]
    found = processor.post_process_grounded_object_detection(outputs, threshold=expert.config.threshold, target_sizes=size)[0]
    limits = torch.tensor([image.width, image.height, image.width, image.height])
    kept: list[tuple[torch.Tensor, str, float]] = []
    for i in found["scores"].argsort(descending=True).tolist():
        box, phrase = found["boxes"][i].clamp(min=0).minimum(limits), phrases[int(found["labels"][i])]
        same = [other for other, name, _ in kept if name == phrase]
        if (box[2:] - box[:2] >= 1).all() and not any(float(box_iou(box[None], other[None])) > expert.config.nms for other in same):
            kept.append((box, phrase, float(found["scores"][i])))
    return [((box / limits).tolist(), phrase, score) for box, phrase, score in kept[: expert.config.max_boxes]]


@pytest.mark.parametrize("which", ["blocks", "untrained"])
def test_detection_equals_the_plain_use_of_owlv2(which: str, owlv2: Path) -> None:
    folder = WEIGHTS / "detection-r2" if which == "blocks" else owlv2
    expert = detector(folder, threshold=0.1 if which == "blocks" else 0.0, max_boxes=7)
    found = samples()
    pictures, phrases = images(found), [expert.phrases_of(sample.caption.text) for sample in found]
    assert len({len(row) for row in phrases}) > 1  # padding of queries is at stake
    total = 0
    for image, row, got in zip(pictures, phrases, expert.predict(pictures, phrases), strict=True):
        wanted = naive_detections(folder, image, row, expert)
        total += len(wanted)
        assert got.phrases == [phrase for _, phrase, _ in wanted]
        np.testing.assert_allclose(got.scores, [score for *_, score in wanted], atol=1e-4)
        np.testing.assert_allclose(got.boxes.reshape(-1, 4), np.reshape([box for box, *_ in wanted], (-1, 4)), atol=1e-4)
    assert total >= 8


@given(
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_mapping_back_undoes_the_padding(size: tuple[int, int], corners: tuple[float, float, float, float]) -> None:
    width, height = size
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    side = max(size)
    padded = torch.tensor([[left * width / side, top * height / side, right * width / side, bottom * height / side]], dtype=torch.float64)
    np.testing.assert_allclose(to_picture(padded, size), [[left, top, right, bottom]], atol=1e-9)


def test_boxes_beyond_the_picture_are_clipped_or_dropped(owlv2: Path) -> None:
    expert = detector(owlv2, threshold=0.0, nms=1.0, max_boxes=1000)
    [got] = expert.predict([Image.new("RGB", (90, 18))], [["dog"]])
    assert len(got.boxes) < 64  # tokens in the padding give none
    assert ((got.boxes >= 0) & (got.boxes <= 1)).all()
    assert (got.boxes[:, 2:] > got.boxes[:, :2]).all()


def test_threshold_suppression_and_top_k() -> None:
    found = samples(6)
    pictures, phrases = images(found), [[solid.name for solid in sample.scene.solids] for sample in found]
    everything = detector(threshold=0.0, nms=1.0, max_boxes=1000).predict(pictures, phrases)
    best = detector(threshold=0.0, nms=1.0, max_boxes=3).predict(pictures, phrases)
    thinned = detector(threshold=0.05, nms=0.2).predict(pictures, phrases)
    num_above = num_kept = 0
    for one, three, few in zip(everything, best, thinned, strict=True):
        np.testing.assert_array_equal(one.boxes[:3], three.boxes)
        num_above += int((one.scores > 0.05).sum())
        num_kept += len(few.boxes)
        assert (few.scores > 0.05).all()
        assert (np.diff(few.scores) <= 0).all()
        for phrase in set(few.phrases):
            boxes = torch.from_numpy(few.boxes[[p == phrase for p in few.phrases]])
            assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.2
    assert len(found) <= num_kept < num_above


def test_each_phrase_goes_through_the_text_tower_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, embedded = detector(), Counter[str]()
    embeddings = expert.detector.embeddings  # type: ignore[attr-defined]
    embed = embeddings._embed

    def counting(texts: Sequence[str]) -> torch.Tensor:
        embedded.update(texts)
        return embed(texts)

    monkeypatch.setattr(embeddings, "_embed", counting)
    pictures = images(samples(4))
    phrases = [["red cube"], ["red cube", "blue cone"], [], ["blue cone", "ring"]]
    first = expert.predict(pictures, phrases)
    again = expert.predict(pictures, phrases)
    assert embedded == {"red cube": 1, "blue cone": 1, "ring": 1}
    assert [one.phrases for one in first] == [one.phrases for one in again]


def test_labels_of_detection_have_the_tables_schema() -> None:
    found = samples(3)
    captions = [found[0].caption.text, "", "photo " + "very long words " * 60]
    batch = detector(max_phrases=40)(images(found), captions)
    assert batch.schema == LABELS["detection"]
    rows = batch.to_pylist()
    assert rows[0]["phrases"]
    assert rows[1] == {"boxes": [], "phrases": [], "scores": []}
    assert all(len(row["boxes"]) == len(row["phrases"]) == len(row["scores"]) for row in rows)


def test_vocabulary_is_asked_of_every_picture() -> None:
    found = samples(4)
    names = tuple({solid.name for sample in found for solid in sample.scene.solids})
    rows = detector(vocabulary=names)(images(found), [""] * 4).to_pylist()
    assert all(set(row["phrases"]) <= set(names) for row in rows)
    assert all(any(solid.name in row["phrases"] for solid in s.scene.solids) for row, s in zip(rows, found, strict=True))


# Depth


@pytest.mark.parametrize("which", ["blocks", "untrained"])
def test_depth_equals_the_plain_use_of_depth_anything(which: str, depth_anything: Path) -> None:
    folder = WEIGHTS / "depth-r2" if which == "blocks" else depth_anything
    expert, pictures = depth_expert(folder, depth_size=4096), images(samples())
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModelForDepthEstimation.from_pretrained(folder).eval()
    for image, got in zip(pictures, expert.predict(pictures), strict=True):
        with torch.inference_mode():
            wanted = model(**processor(images=image, return_tensors="pt")).predicted_depth[0].numpy()
        assert got.shape == (image.height, image.width)
        wanted = np.asarray(Image.fromarray(wanted).resize(image.size, Image.Resampling.BILINEAR))
        np.testing.assert_allclose(got, wanted, atol=2e-4 * float(np.abs(wanted).max()))


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_input_size_is_the_processors_rule(width: int, height: int) -> None:
    from transformers.models.dpt.image_processing_dpt import get_resize_output_image_size

    expert = object.__new__(DepthExpert)  # the rule needs no weights
    expert.config = DepthExpertConfig(model="blocks:depth-r2")
    expert.processor = DPTImageProcessor(size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14)
    wanted = get_resize_output_image_size(torch.empty((3, height, width), device="meta"), (518, 518), True, 14)
    image = Image.new("1", (width, height))
    assert expert._input_size(image) == (max(14, int(wanted.width)), max(14, int(wanted.height)))


def test_a_very_long_picture_and_one_pixel(depth_anything: Path) -> None:
    pictures = [Image.new("RGB", size, (90, 10, 200)) for size in ((400, 3), (1, 1), (3, 300))]
    maps = depth_expert(depth_anything, depth_size=64).predict(pictures)
    assert [one.shape for one in maps] == [(1, 64), (1, 1), (64, 1)]
    assert all(np.isfinite(one).all() for one in maps)


def test_labels_of_depth_have_the_tables_schema_and_near_is_larger() -> None:
    found = samples(4)
    batch = depth_expert()(images(found), [""] * 4)
    assert batch.schema == LABELS["depth"]
    for sample, data in zip(found, batch["depth"].to_pylist(), strict=True):
        disparity, metres = decode(data), sample.rendered.depth
        assert disparity.shape == metres.shape
        seen = np.isfinite(metres)
        assert np.corrcoef(disparity[seen], 1 / metres[seen])[0, 1] > 0.9


def test_depth_models_that_predict_metres_are_inverted() -> None:
    pictures = images(samples(2))
    for disparity, inverse in zip(depth_expert().predict(pictures), depth_expert(predicts="depth").predict(pictures), strict=True):
        known = np.isfinite(inverse)
        np.testing.assert_allclose(inverse[known], 1 / disparity[known], rtol=1e-4)
        assert (disparity[~known] <= 0).all()


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_metres_that_are_nowhere_positive_are_an_error_not_an_empty_map(
    value: float, depth_anything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = depth_expert(depth_anything, predicts="depth")
    monkeypatch.setattr(expert, "model", lambda pixel_values: SimpleNamespace(predicted_depth=torch.full_like(pixel_values[:, 0], value)))
    with pytest.raises(ValueError, match=r"no positive number .* or predicts: disparity"):
        expert(images(samples(1)), [""])


# Both


def test_numbers_that_are_not_finite_are_an_error() -> None:
    pictures = images(samples(2))
    depth, detection = depth_expert(), detector()
    for model in (depth.model, detection.detector.model):
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="no finite number"):
        depth.predict(pictures)
    with pytest.raises(ValueError, match="not finite"):
        detection.predict(pictures, [["cube"]] * 2)


def test_half_precision_says_nearly_the_same() -> None:
    found = samples(4)
    pictures = images(found)
    for full, half in zip(depth_expert().predict(pictures), depth_expert(dtype="bfloat16").predict(pictures), strict=True):
        assert np.corrcoef(full.ravel(), half.ravel())[0, 1] > 0.99
    phrases = [[s.scene.solids[0].name] for s in found]
    full, half = detector(threshold=0.3).predict(pictures, phrases), detector(threshold=0.3, dtype="bfloat16").predict(pictures, phrases)
    assert sum(len(one.boxes) for one in full) >= 3
    for one, other in zip(full, half, strict=True):
        assert one.phrases[:1] == other.phrases[:1]
        np.testing.assert_allclose(one.boxes[:1], other.boxes[:1], atol=0.05)
