"""The committed experts and tokenizers: they load from a path without a network and are as good as they are said to be."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    AutoTokenizer,
    SiglipImageProcessor,
    SiglipProcessor,
)

from mtv_core.blocks import captions, train_detection
from mtv_core.blocks.evaluate_experts import align, average_precision, depth_abs_rel, detection_ap50
from mtv_core.blocks.expert_data import CLASSES, NAMES, SIDE, TEST_SEED, Truth, make_truth
from mtv_core.blocks.shards import truth as sample_truth
from mtv_core.blocks.tokenizers import TEXT_LENGTH, WEIGHTS, corpus, query_tokenizer, text_tokenizer


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make_truth(TEST_SEED, 60)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_depth_revision_2_is_good_and_revision_1_worse(truth: Truth) -> None:
    first, _ = depth_abs_rel(WEIGHTS / "depth-r1", truth)
    second, _ = depth_abs_rel(WEIGHTS / "depth-r2", truth)
    assert second <= 0.10
    assert 1.3 * second < first < 0.30


def test_detection_revision_2_is_good_and_revision_1_worse(truth: Truth) -> None:
    first, _ = detection_ap50(WEIGHTS / "detection-r1", truth)
    second, _ = detection_ap50(WEIGHTS / "detection-r2", truth)
    assert second >= 0.60
    assert 0.05 < first < second - 0.15


@pytest.mark.parametrize("revision", ["r1", "r2"])
def test_experts_load_whole_in_fp32(revision: str) -> None:
    for kind, auto in (("depth", AutoModelForDepthEstimation), ("detection", AutoModelForZeroShotObjectDetection)):
        model, info = auto.from_pretrained(WEIGHTS / f"{kind}-{revision}", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert sum(p.numel() for p in model.parameters()) < 2_000_000


def test_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 12_000_000


def test_detection_finds_what_the_phrase_says_in_every_wording() -> None:
    """Phrases as captions give them: with an article, with a size. The right box is found for each of them."""
    processor = AutoProcessor.from_pretrained(WEIGHTS / "detection-r2")
    model = AutoModelForZeroShotObjectDetection.from_pretrained(WEIGHTS / "detection-r2").eval()
    from PIL import Image
    from torchvision.ops import box_iou

    hits = total = 0
    for index in range(12):
        sample = sample_truth(31, index, 96, 64)
        for i, solid in enumerate(sample.scene.solids):
            if sample.rendered.visible[i] < 0.5:
                continue
            phrase = captions.describe(solid, with_size=index % 2 == 0)
            inputs = processor(text=[[phrase]], images=[Image.fromarray(sample.rendered.rgb)], return_tensors="pt")
            with torch.inference_mode():
                outputs = model(**inputs)
            found = processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=[(64, 96)])[0]
            box = found["boxes"][found["scores"].argmax()]
            wanted = torch.from_numpy(sample.rendered.boxes[i] * np.array([96, 64, 96, 64], np.float32))
            hits += float(box_iou(box[None], wanted[None])) >= 0.5
            total += 1
    assert total >= 15
    assert hits / total >= 0.7


def test_text_tokenizer_is_siglips_kind(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    encoded = tokenizer(["A photo of a Red sphere", "漢 unheard-of"], padding="max_length", truncation=True, max_length=TEXT_LENGTH)
    assert set(encoded) == {"input_ids"}
    first, second = encoded["input_ids"]
    assert len(first) == len(second) == 64
    assert first[:8] == [*tokenizer.convert_tokens_to_ids(["Ġa", "Ġphoto", "Ġof", "Ġa", "Ġred", "Ġsphere"]), 2, 1]
    assert 0 not in second  # byte-level: nothing is unknown
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    longest = max(len(tokenizer(sample_truth(33, index).caption.text)["input_ids"]) for index in range(60))
    assert longest <= 40
    SiglipProcessor(SiglipImageProcessor(), tokenizer).save_pretrained(tmp_path)
    again = SiglipProcessor.from_pretrained(tmp_path)
    assert again.tokenizer("a red sphere")["input_ids"] == tokenizer("a red sphere")["input_ids"]


def test_committed_tokenizers_are_what_the_script_trains() -> None:
    lines = sorted(set(corpus()))[::17]
    committed = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    assert text_tokenizer()(lines)["input_ids"] == committed(lines)["input_ids"]
    for revision in ("r1", "r2"):
        committed = AutoProcessor.from_pretrained(WEIGHTS / f"detection-{revision}").tokenizer
        assert query_tokenizer()(lines)["input_ids"] == committed(lines)["input_ids"]


def test_query_tokenizer_keeps_owlv2s_conventions() -> None:
    tokenizer = query_tokenizer()
    for text in ("a red sphere", "naïve 漢", "x", " "):
        ids = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        assert ids[0] > 0  # OWLv2 masks queries that start with id 0
        assert ids.index(max(ids)) == len([i for i in ids if i != tokenizer.pad_token_id]) - 1  # and pools at the highest id: the end


def test_token_targets_stand_on_their_solids(truth: Truth) -> None:
    solids, classes = train_detection.token_targets(truth)
    grid = SIDE // train_detection.PATCH
    for row in range(20):
        seen = {int(s) for s in solids[row] if s >= 0}
        assert seen == {i for i in range(4) if (truth.instances[row] == i).any()}
        for token in (solids[row] >= 0).nonzero().flatten().tolist():
            v, u = divmod(token, grid)
            patch = truth.instances[row, v * 12 : (v + 1) * 12, u * 12 : (u + 1) * 12]
            assert (patch == int(solids[row, token])).any()
            assert int(classes[row, token]) == truth.classes[row, solids[row, token]]


def test_average_precision_by_hand() -> None:
    # Ranked hit, miss, hit of 4 wanted: precision 1 up to recall ¼, ⅔ up to ½, nothing beyond.
    assert average_precision(np.array([1.0, 1.0, 0.0]), np.array([0.9, 0.2, 0.5]), 4) == pytest.approx(0.25 + 0.25 * 2 / 3)
    assert average_precision(np.zeros(0), np.zeros(0), 4) == 0.0
    assert average_precision(np.ones(3), np.arange(3.0), 3) == 1.0


def test_alignment_undoes_scale_and_shift() -> None:
    target = np.random.default_rng(0).uniform(0.1, 1.0, 50)
    np.testing.assert_allclose(align(3.0 * target - 0.7, target), target, atol=1e-12)


def test_truth_pads_at_the_bottom_right(truth: Truth) -> None:
    rows = [i for i in range(len(truth)) if tuple(truth.frames[i]) == (96, 72)]
    assert rows
    for row in rows:
        assert (truth.rgb[row, 72:] == 0).all()
        assert np.isinf(truth.depth[row, 72:].astype(np.float32)).all()
        for solid in np.flatnonzero(truth.classes[row] >= 0):
            v, u = np.nonzero(truth.instances[row] == solid)
            expected = np.array([u.min(), v.min(), u.max() + 1, v.max() + 1]) / SIDE
            np.testing.assert_allclose(truth.boxes[row, solid], expected, atol=1e-6)
            assert NAMES[truth.classes[row, solid]] == " ".join(CLASSES[truth.classes[row, solid]])
    assert not math.isinf(float(truth.depth[rows[0], :72].min()))
