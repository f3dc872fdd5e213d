"""Grounding DINO behind the detection expert, against the plain use of transformers: processor, forward, post-processing."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SwinConfig,
)

from mtv_core import experts
from mtv_core.blocks.shards import truth
from mtv_core.data.schema import LABELS
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.detection import DetectionExpert
from mtv_core.experts.detectors.base import Candidates
from mtv_core.experts.detectors.grounding_dino import GroundingDinoDetector

WORDS = [
    "red", "blue", "green", "orange", "purple", "cube", "cone", "ring", "sphere", "cylinder", "cross", "small", "large", "dog", "cat",
    "floor",
]  # fmt: skip
QUERIES, MAX_TOKENS = 40, 32
# Shortest edge 64, longest 128: of 1:3 and 1:4 the longest decides.
SIZES = [(96, 96), (80, 80), (60, 120), (40, 160), (150, 50), (50, 150), (100, 75), (75, 100)]


def tokenizer(folder: Path) -> BertTokenizerFast:
    """BERT's with its own numbers of the special tokens, a few words, and letters for all others."""
    vocab = [f"[unused{number}]" for number in range(1100)]
    for number, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}.items():
        vocab[number] = token
    letters = string.ascii_lowercase + string.digits
    for number, token in enumerate([*letters, *(f"##{letter}" for letter in letters), *WORDS], start=200):
        vocab[number] = token
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Grounding DINO, small."""
    torch.manual_seed(3)
    made = tmp_path_factory.mktemp("models")
    target = made / "grounding-dino"
    backbone: Any = SwinConfig(  # type: ignore[call-arg]
        image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )
    text: Any = BertConfig(  # type: ignore[call-arg]
        vocab_size=1100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    )
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, num_queries=QUERIES, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, d_model=64, max_text_len=MAX_TOKENS,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config)
    for name, parameter in model.named_parameters():
        if "bbox_embed" in name and "layers.2" in name:  # it starts at zero, which leaves every box a small square
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(target)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    GroundingDinoProcessor(images, tokenizer(made)).save_pretrained(target)
    return Path(target)


def detector(model: Path, **fields: Any) -> DetectionExpert:
    config = {"model": str(model), "device": "cpu", "threshold": 0.0, "text_threshold": 0.0, **fields}
    expert = experts.load("detection", DetectionExpertConfig.model_validate(config))
    assert isinstance(expert, DetectionExpert)
    return expert


def proposed(expert: DetectionExpert, images: Sequence[Image.Image], phrases_of: Sequence[Sequence[str]]) -> list[Candidates]:
    """What the detector proposes, before anything is dropped."""
    with torch.inference_mode():
        return expert.detector(images, phrases_of)


def pictures(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Image.Image]:
    return [Image.fromarray(truth(21, index, *size).rendered.rgb) for index, size in enumerate(sizes)]


def naive(folder: Path, image: Image.Image, phrases: Sequence[str]) -> tuple[torch.Tensor, list[list[float]], torch.Tensor, list[str]]:
    """The slow truth, of one picture with its phrases in one text.

    Boxes [T, 4] in px, scores [T] and labels as transformers post-processes them, and the mean probability of each phrase's tokens [T][Q],
    which are found by where their letters are in the text.
    """
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=image, text=[list(phrases)], return_tensors="pt")
    text = ". ".join(phrase.lower() for phrase in phrases) + "."
    tokens = processor.tokenizer(text, return_offsets_mapping=True)
    assert inputs["input_ids"][0].tolist() == tokens["input_ids"]
    with torch.inference_mode():
        outputs = model(**inputs)
    [found] = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, text_threshold=0.5, target_sizes=[(image.height, image.width)]
    )
    chances = outputs.logits[0].sigmoid()
    means: list[list[float]] = []
    for row in chances.tolist():
        means.append([])
        first = 0
        for phrase in phrases:
            last = first + len(phrase)
            inside = [row[i] for i, (left, right) in enumerate(tokens["offset_mapping"]) if first <= left < right <= last]
            means[-1].append(sum(inside) / len(inside))
            first = last + 2
    return found["boxes"], means, found["scores"], found["text_labels"]


@pytest.mark.parametrize("size", SIZES)
def test_boxes_and_phrases_equal_the_plain_use_of_transformers(size: tuple[int, int], folder: Path) -> None:
    expert, [image] = detector(folder), pictures([size])
    phrases = ["red cube", "small blue cone", "dog", "unknown thing"]
    [got] = proposed(expert, [image], [phrases])
    boxes, means, _, _ = naive(folder, image, phrases)
    limits = torch.tensor([*size, *size])
    torch.testing.assert_close(got.boxes * limits, boxes.clamp(min=0).minimum(limits), atol=1e-3, rtol=0)
    np.testing.assert_allclose(got.scores, np.max(means, axis=1), atol=1e-5)
    assert [phrases[q] for q in got.phrases] == [phrases[q] for q in np.argmax(means, axis=1)]
    assert len(set(got.phrases.tolist())) > 1


def test_scores_and_words_are_transformers_own_where_its_best_token_is_of_a_phrase(folder: Path) -> None:
    phrases, num_named = ["dog", "cat", "floor", "cube"], 0
    for image in pictures():
        [got] = proposed(detector(folder), [image], [phrases])
        _, means, scores, labels = naive(folder, image, phrases)
        for mine, row, score, label in zip(got.scores.tolist(), means, scores.tolist(), labels, strict=True):
            assert {phrase for phrase in phrases if phrase in label} == {
                phrase for phrase, mean in zip(phrases, row, strict=True) if mean > 0.5
            }
            assert mine <= score + 1e-5
            if max(row) == score:  # else it is [CLS], a full stop or [SEP], which name nothing
                assert mine == pytest.approx(score, abs=1e-5)
                num_named += 1
    assert num_named >= 50


def test_labels_do_not_depend_on_what_else_is_in_the_batch(folder: Path) -> None:
    expert, images = detector(folder, max_boxes=1000), pictures()
    phrases = [["red cube", "dog"], ["cat"], [], ["large green ring", "floor", "dog"], ["blue sphere"], ["cat", "cone"], ["x"], ["dog"]]
    together = expert.predict(images, phrases)
    for image, row, found in zip(images, phrases, together, strict=True):
        [alone] = expert.predict([image], [row])
        assert alone.phrases == found.phrases
        np.testing.assert_allclose(alone.boxes, found.boxes, atol=1e-4)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-4)
    assert together[2].phrases == []
    assert all(found.phrases for found, row in zip(together, phrases, strict=True) if row)


def test_the_phrase_of_a_box_is_exactly_one_that_was_asked(folder: Path) -> None:
    asked = ["Red Cube", "st. bernard", "what? cone", "t-shirt no. 5", "...", "", "\N{DOG FACE}", "red", "cube of a size 12.5 cm"]
    expert = detector(folder, nms=1.0, max_boxes=1000)
    got = [phrase for found in expert.predict(pictures(), [asked] * len(SIZES)) for phrase in found.phrases]
    assert set(got) <= set(asked) - {"...", ""}  # those have no token, so they name nothing
    assert len(set(got)) >= 4
    [nothing] = expert.predict(pictures(SIZES[:1]), [["...", ""]])
    assert nothing.phrases == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=string.ascii_letters + " .?-'é0", max_size=40), min_size=1, max_size=12, unique=True))
def test_texts_hold_every_phrase_whole_and_fit_the_model(folder: Path, phrases: list[str]) -> None:
    found = _detector_of(folder)
    tokenize = found.processor.tokenizer
    texts = found._texts(7, phrases)
    seen = []
    for text in texts:
        assert text.picture == 7
        assert len(text.ids) <= MAX_TOKENS
        end = 1  # behind [CLS]
        for number, first, last in text.spans:
            wanted = tokenize(phrases[number].replace(".", " ").replace("?", " "), add_special_tokens=False)["input_ids"]
            assert text.ids[first:last] == wanted[: MAX_TOKENS - 3]
            assert (first, text.ids[last]) == (end, 1012)
            end = last + 1
            seen.append(number)
        assert (text.ids[0], text.ids[end:]) == (101, [102])
    named = [number for number, phrase in enumerate(phrases) if tokenize(phrase.replace(".", " ").replace("?", " ")).input_ids[1:-1]]
    assert seen == named
    if len(texts) == 1 and not any(set(".?") & set(phrase) for phrase in phrases) and len(named) == len(phrases):
        joined = tokenize(". ".join(phrase.strip().lower() for phrase in phrases) + ".")["input_ids"]
        assert len(joined) > MAX_TOKENS or texts[0].ids == joined


_found: dict[Path, GroundingDinoDetector] = {}


def _detector_of(folder: Path) -> GroundingDinoDetector:
    if folder not in _found:
        loaded = detector(folder).detector
        assert isinstance(loaded, GroundingDinoDetector)
        _found[folder] = loaded
    return _found[folder]


def test_more_phrases_than_one_text_holds_are_asked_in_several(folder: Path) -> None:
    names = [f"{colour} {solid}" for colour in WORDS[:5] for solid in WORDS[5:11]]  # 30 × 3 tokens: 3 texts and more
    expert, [image] = detector(folder, vocabulary=names, nms=1.0, max_boxes=1000), pictures([(96, 72)])
    [got] = proposed(expert, [image], [expert.phrases_of("")])
    texts = _detector_of(folder)._texts(0, names)
    assert len(got.scores) == len(texts) * QUERIES
    assert len(texts) >= 3
    parts = [proposed(expert, [image], [[names[number] for number, *_ in text.spans]])[0] for text in texts]
    torch.testing.assert_close(got.boxes, torch.cat([part.boxes for part in parts]), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.scores, torch.cat([part.scores for part in parts]), atol=1e-5, rtol=0)


def test_never_more_texts_at_once_than_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expert, sizes = detector(folder, vocabulary=[f"{a} {b}" for a in WORDS for b in WORDS]), []
    forward = expert.detector.model.forward

    def counting(**inputs: torch.Tensor) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(expert.detector.model, "forward", counting)
    expert.predict(pictures([(96, 96)] * 3), [WORDS, [f"{a} {b}" for a in WORDS[:9] for b in WORDS[9:]], ["dog"]])
    assert sum(sizes) >= 6
    assert max(sizes) <= 3


def test_the_two_thresholds(folder: Path) -> None:
    images, phrases = pictures(), [["red cube", "small blue cone", "dog"]] * len(SIZES)
    everything = proposed(detector(folder), images, phrases)
    chosen = detector(folder, threshold=0.3, text_threshold=0.0, nms=1.0, max_boxes=1000).predict(images, phrases)
    assert [len(one.scores) for one in chosen] == [int((one.scores > 0.3).sum()) for one in everything]
    strict = proposed(detector(folder, text_threshold=0.9), images, phrases)
    for loose, one in zip(everything, strict, strict=True):
        assert (one.scores <= loose.scores).all()
    [image] = pictures([(96, 96)])
    [one] = proposed(detector(folder, text_threshold=0.9), [image], [["dog"]])  # of one token the mean is the largest
    assert ((one.scores == 0) | (one.scores > 0.9)).all()
    assert (one.scores == 0).any()


def test_labels_have_the_tables_schema(folder: Path) -> None:
    batch = detector(folder)(pictures(SIZES[:3]), ["a red cube and a dog", "", "photo of a cat"])
    assert batch.schema == LABELS["detection"]
    rows = batch.to_pylist()
    assert set(rows[0]["phrases"]) <= {"red cube", "dog"}
    assert rows[1] == {"boxes": [], "phrases": [], "scores": []}
    for row in rows:
        boxes = torch.tensor(row["boxes"]).reshape(-1, 4)
        assert ((boxes >= 0) & (boxes <= 1)).all()
        for phrase in set(row["phrases"]):
            same = boxes[[one == phrase for one in row["phrases"]]]
            assert (box_iou(same, same) - torch.eye(len(same))).max() <= 0.31  # in px it is 0.3
    assert rows[0]["scores"] == sorted(rows[0]["scores"], reverse=True)


def test_settings_that_do_not_fit_the_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out prompt"):
        detector(folder, prompt="a photo of a {}")
    with pytest.raises(ValueError, match="is an OWLv2; leave it out and set threshold"):
        experts.load("detection", DetectionExpertConfig(model="blocks:detection-r1", text_threshold=0.3))
    other = GroundingDinoForObjectDetection.from_pretrained(folder)
    other.save_pretrained(tmp_path / "other")
    padding = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}, pad_size={"height": 160, "width": 160})
    GroundingDinoProcessor(padding, tokenizer(tmp_path)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="or that pads to a fixed size"):
        detector(tmp_path / "other")
    lines = (folder.parent / "vocab.txt").read_text().split("\n")
    lines[1012], lines[300] = lines[300], "."
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    GroundingDinoProcessor(images, BertTokenizerFast(str(tmp_path / "vocab.txt"))).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="tokenizer of bert-base-uncased"):
        detector(tmp_path / "other")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_and_says_nearly_the_same(dtype: str, folder: Path) -> None:
    phrases = [["red cube", "dog"]] * len(SIZES)
    full, half = (proposed(detector(folder, dtype=kind), pictures(), phrases) for kind in ("float32", dtype))
    for one, other in zip(full, half, strict=True):
        # Which anchors become queries is a matter of close scores; the boxes that are in both lie in the same places.
        best = box_iou(one.boxes, other.boxes).amax(dim=1)
        assert best.median() > 0.6


def test_numbers_that_are_not_finite_are_an_error(folder: Path) -> None:
    expert = detector(folder)
    for parameter in expert.detector.model.parameters():
        parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        expert.predict(pictures(SIZES[:1]), [["dog"]])
