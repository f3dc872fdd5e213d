"""Which of a detector's boxes become labels, against the slow truth of plain loops; and where the phrases it is asked for come from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from mtv_core import experts
from mtv_core.blocks.shards import truth
from mtv_core.experts import phrase_column
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.detection import DetectionExpert
from mtv_core.experts.detectors.base import Candidates
from mtv_core.experts.detectors.owlv2 import Owlv2Detector
from mtv_core.experts.embeddings import PhraseEmbeddings
from mtv_core.experts.phrase_column import BadPhrases
from mtv_core.experts.selection import Detections, select

Box = tuple[list[float], float, int]  # xyxy normalised, score, phrase
ASKED = ["dog", "cat", "bird"]
SIZE = (200, 100)  # px


def config(**fields: Any) -> DetectionExpertConfig:
    return DetectionExpertConfig.model_validate({"model": "blocks:detection-r2", "device": "cpu", **fields})


def candidates(boxes: list[Box]) -> Candidates:
    return Candidates(
        torch.tensor([box for box, *_ in boxes]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in boxes]),
        torch.tensor([phrase for *_, phrase in boxes], dtype=torch.long),
    )


def chosen(boxes: list[Box], **fields: Any) -> tuple[Detections, Counter[str]]:
    dropped: Counter[str] = Counter()
    [found] = select([candidates(boxes)], [SIZE], [ASKED], config(**fields), dropped)
    return found, dropped


# Corners on a grid, so that equal and nested boxes occur; scores differ, so that the order is known.
corners = st.tuples(*[st.integers(0, 8)] * 4).map(
    lambda c: [min(c[0], c[2]) / 8, min(c[1], c[3]) / 8, max(c[0], c[2]) / 8, max(c[1], c[3]) / 8]
)
pictures = st.lists(st.tuples(corners, st.integers(0, 2)), max_size=14).flatmap(
    lambda boxes: st.permutations(range(len(boxes))).map(
        lambda order: [(box, (rank + 1) / 20, phrase) for (box, phrase), rank in zip(boxes, order, strict=True)]
    )
)


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a: list[float], b: list[float]) -> float:
    inside = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    shared = max(0.0, inside[2] - inside[0]) * max(0.0, inside[3] - inside[1])
    return shared / (area(a) + area(b) - shared)


def aspect(box: list[float]) -> float:
    width, height = (box[2] - box[0]) * SIZE[0], (box[3] - box[1]) * SIZE[1]
    return max(width, height) / min(width, height)


def naive(boxes: list[Box], filters: list[str], threshold: float, min_area: float, nms: float, top: int) -> tuple[list[Box], Counter[str]]:
    """The slow truth: rules in their order, greedily, best first."""
    dropped: Counter[str] = Counter()
    left = sorted((box for box in boxes if box[1] > threshold and area(box[0]) > 0 and area(box[0]) >= min_area), key=lambda box: -box[1])

    def apply(name: str, keeps: Callable[[Box, list[Box]], bool]) -> None:
        nonlocal left
        kept: list[Box] = []
        for box in left:
            if keeps(box, kept):
                kept.append(box)
        dropped[name] += len(left) - len(kept)
        left = kept

    alone: dict[str, Callable[[Box, list[Box]], bool]] = {
        "frame_filling": lambda box, _: area(box[0]) <= 0.95,
        "slivers": lambda box, _: aspect(box[0]) <= 10,
    }
    together: dict[str, Callable[[Box, list[Box]], bool]] = {
        "duplicates": lambda box, kept: all(iou(box[0], other[0]) <= 0.91 for other in kept),
        "repeats": lambda box, kept: sum(other[2] == box[2] for other in kept) < 2,
        "weak": lambda box, kept: all(box[1] >= 0.5 * other[1] - 1e-9 for other in kept if other[2] == box[2]),
    }
    for name in filters:
        if name in alone:
            apply(name, alone[name])
    apply("nms", lambda box, kept: all(iou(box[0], other[0]) <= nms for other in kept if other[2] == box[2]))
    for name in filters:
        if name in together:
            apply(name, together[name])
    del dropped["nms"]
    return left[:top], +dropped


# No ratio of whole numbers of this size: what lies on a limit falls to either side of it in float32.
OPTIONS = {"duplicates": {"iou": 0.91}, "slivers": {"max_aspect": 10}, "repeats": {"max_boxes": 2}, "weak": {"share": 0.5}}


@settings(max_examples=100, deadline=None)
@given(st.lists(pictures, min_size=1, max_size=5))
def test_a_batch_is_chosen_from_like_its_pictures(batch: list[list[Box]]) -> None:
    fields: Any = {"threshold": 0.2, "nms": 0.37, "max_boxes": 3, "min_area": 0.03, "filters": ["frame_filling", "duplicates"]}
    dropped: Counter[str] = Counter()
    sizes = [(200 + 30 * i, 100) for i in range(len(batch))]
    together = select([candidates(boxes) for boxes in batch], sizes, [ASKED] * len(batch), config(**fields), dropped)
    alone: Counter[str] = Counter()
    for found, boxes, size in zip(together, batch, sizes, strict=True):
        [expected] = select([candidates(boxes)], [size], [ASKED], config(**fields), alone)
        assert found.phrases == expected.phrases
        assert (found.boxes == expected.boxes).all()
        assert (found.scores == expected.scores).all()
    assert dropped == alone


@given(
    pictures,
    st.permutations(["duplicates", "frame_filling", "repeats", "slivers", "weak"]),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([0.31, 0.71, 1.0]),
    st.sampled_from([2, 20]),
)
def test_selection_equals_plain_loops(
    boxes: list[Box], order: list[str], count: int, threshold: float, min_area: float, nms: float, top: int
) -> None:
    names = order[:count]
    filters = [{"name": name, **OPTIONS.get(name, {})} for name in names]
    found, dropped = chosen(boxes, threshold=threshold, min_area=min_area, nms=nms, max_boxes=top, filters=filters)
    wanted, counts = naive(boxes, names, threshold, min_area, nms, top)
    assert found.phrases == [ASKED[phrase] for *_, phrase in wanted]
    np.testing.assert_allclose(found.scores, [score for _, score, _ in wanted], rtol=1e-6)
    np.testing.assert_allclose(found.boxes.reshape(-1, 4), np.reshape([box for box, *_ in wanted], (-1, 4)), rtol=1e-6)
    assert dropped == counts


def test_a_box_that_a_filter_drops_suppresses_none() -> None:
    frame, dog = ([0.0, 0.0, 1.0, 1.0], 0.9, 0), ([0.0, 0.0, 0.7, 0.7], 0.5, 0)  # their IoU is 0.49
    assert len(chosen([frame, dog])[0].scores) == 1
    found, dropped = chosen([frame, dog], filters=["frame_filling"])
    assert found.scores.tolist() == [0.5]
    assert dropped == {"frame_filling": 1}


def test_a_name_is_a_filter_with_its_defaults_and_order_does_not_hide_an_option() -> None:
    short, long = config(filters=["weak", "duplicates"]), config(filters=[{"name": "weak", "share": 0.25}, {"name": "duplicates"}])
    assert short == long
    assert experts.revision("detection", short) == experts.revision("detection", long)
    revisions = {
        experts.revision("detection", config(filters=filters))
        for filters in ([], ["weak"], [{"name": "weak", "share": 0.5}], ["weak", "duplicates"], ["frame_filling"])
    }
    assert len(revisions) == 5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"filters": ["dupes"]}, "'duplicates', 'frame_filling', 'repeats', 'slivers', 'weak'"),
        ({"filters": ["weak", "weak"]}, "has 'weak' twice"),
        ({"filters": [{"name": "weak", "iou": 0.5}]}, "iou"),
        ({"min_area": 1.0}, "less than 1"),
        ({"prompt": []}, "must hold"),
        ({"prompt": ["a {}", "a photo"]}, "so must each of several"),
        ({"phrases_column": "meta."}, "name of a column"),
        ({"phrases_column": "tags", "vocabulary": ["dog"]}, "not from both"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**fields)


def expert_of(**fields: Any) -> DetectionExpert:
    expert = experts.load("detection", config(**fields))
    assert isinstance(expert, DetectionExpert)
    return expert


def test_an_expert_counts_what_its_filters_drop_in_a_call() -> None:
    expert = expert_of(threshold=0.01, filters=[{"name": "repeats", "max_boxes": 1}, {"name": "weak", "share": 0.9}])
    plain = expert_of(threshold=0.01)
    found = [truth(3, index, max_solids=2) for index in range(6)]
    images = [Image.fromarray(one.rendered.rgb) for one in found]
    names = [[solid.name for solid in one.scene.solids] for one in found]
    few, all_of_them = expert(images, [""] * 6, names).to_pylist(), plain(images, [""] * 6, names).to_pylist()
    missing = sum(len(row["boxes"]) for row in all_of_them) - sum(len(row["boxes"]) for row in few)
    assert missing > 0
    assert expert.counts == {"detection_filter_repeats": missing}  # of one box a phrase, none is weaker than the best
    assert plain.counts == {}
    assert all(len(set(row["phrases"])) == len(row["phrases"]) for row in few)
    expert(images[:1], ["nothing that is asked"], [[]])
    assert expert.counts == {}


# Where phrases come from


def rows(**columns: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


@pytest.mark.parametrize(
    ("value", "phrases"),
    [
        ("red cube", ["red cube"]),
        ("red  cube, blue cone\n ring;\tcross,,", ["red cube", "blue cone", "ring", "cross"]),
        ("dog, cat, dog", ["dog", "cat"]),
        ("", []),
        (None, []),
    ],
)
def test_a_text_column_names_phrases(value: str | None, phrases: list[str]) -> None:
    assert phrase_column.read(rows(tags=pa.array([value], pa.string())), "tags") == [phrases]


def test_a_list_column_and_a_key_of_the_samples_own_json() -> None:
    lists = pa.array([["a, b", " c  d "], [], None, [None, "x", "x"]], pa.list_(pa.string()))
    assert phrase_column.read(rows(objects=lists), "objects") == [["a, b", "c d"], [], [], ["x"]]
    meta = ['{"tags": ["dog", "cat"]}', '{"tags": "dog, cat", "a.b": "x"}', '{"a": {"b": "y"}}', "{broken", None, '{"tags": null}', "[1]"]
    batch = rows(meta=pa.array(meta, pa.string()))
    assert phrase_column.read(batch, "meta.tags") == [["dog", "cat"], ["dog", "cat"], [], [], [], [], []]
    assert phrase_column.read(batch, "meta.a.b") == [[], ["x"], ["y"], [], [], [], []]


def test_a_wrong_column_is_answered_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no column 'tags' for label.detection.phrases_column; it has uid, width"):
        phrase_column.read(rows(uid=pa.array(["a"]), width=pa.array([1])), "tags")
    for wrong in (pa.array([1]), pa.array([[1]]), pa.array([], pa.list_(pa.struct([("text", pa.string())])))):
        with pytest.raises(ValueError, match=r"'width' for .* is of type .*; phrases are a list of texts, or one text"):
            phrase_column.read(rows(width=wrong), "width")


def test_a_value_that_names_no_phrases_is_its_own_rows_fault() -> None:
    meta = ['{"tags": 5}', '{"tags": ["dog", 3]}', '{"tags": "dog"}', '{"tags": ["\\ud800"]}', '{"tags": {"a": 1}}', "[" * 100_000]
    found = phrase_column.read(rows(meta=pa.array(meta, pa.string())), "meta.tags")
    said = [one.message if isinstance(one, BadPhrases) else one for one in found]
    assert said[2] == ["dog"]
    assert said[5] == []
    for message, value in zip([said[0], said[1], said[3], said[4]], ["5;", "['dog', 3];", r"['\ud800'],", "{'a': 1};"], strict=True):
        assert f"'meta.tags' holds {value}" in message


def test_phrases_of_a_column_are_what_is_asked() -> None:
    found = [truth(3, index, max_solids=2) for index in range(3)]
    images, names = [Image.fromarray(one.rendered.rgb) for one in found], [one.scene.solids[0].name for one in found]
    column = pa.array([f"{names[0]}, {names[0]}", "", names[2]], pa.string())
    expert = expert_of(phrases_column="meta.objects")
    assert (expert.extra_columns, expert_of().extra_columns, expert_of().phrases_in(rows(tags=column))) == (("meta",), (), None)
    expert = expert_of(phrases_column="tags", max_phrases=1)
    assert expert.extra_columns == ("tags",)
    asked = expert.phrases_in(rows(tags=column))
    labels = expert(images, ["a red cube and a blue cone"] * 3, asked).to_pylist()
    assert [set(row["phrases"]) for row in labels] == [{names[0]}, set(), {names[2]}]
    assert [set(row["phrases"]) for row in expert(images, [""] * 3, [None, ["ring", names[1]], None]).to_pylist()][0::2] == [set(), set()]
    with pytest.raises(ValueError, match="'tags', but it was not read"):
        expert(images, [""] * 3)
    assert experts.revision("detection", config(phrases_column="tags")) != experts.revision("detection", config())


# What a phrase is to the text tower


def test_several_prompts_are_averaged_as_clip_does() -> None:
    prompts = ("a photo of a {}", "{}", "a drawing of the {}")
    phrases = ["red cube", "ring"]

    def embedded(prompt: Any) -> torch.Tensor:
        detector = expert_of(prompt=prompt).detector
        assert isinstance(detector, Owlv2Detector)
        with torch.inference_mode():
            return detector.embeddings(phrases)

    single = torch.stack([embedded(prompt) for prompt in prompts])
    torch.testing.assert_close(single.norm(dim=-1), torch.ones(3, 2))
    wanted = torch.nn.functional.normalize(single.mean(dim=0), dim=-1)
    torch.testing.assert_close(embedded(prompts), wanted)
    torch.testing.assert_close(embedded([prompts[1]]), single[1])
    assert not torch.allclose(wanted, single[0], atol=1e-3)
    revisions = {experts.revision("detection", config(prompt=prompt)) for prompt in (prompts, prompts[:2], prompts[0], prompts[1])}
    assert len(revisions) == 4
    # One in a list, and the default said aloud, are what they were.
    assert experts.revision("detection", config(prompt=[prompts[1]])) == experts.revision("detection", config(prompt=prompts[1]))
    assert experts.revision("detection", config(prompt=prompts[0])) == experts.revision("detection", config())


def test_embeddings_used_least_recently_are_forgotten_first() -> None:
    asked: list[list[str]] = []

    def embed(phrases: Any) -> torch.Tensor:
        asked.append(list(phrases))
        return torch.tensor([[float(ord(phrase))] for phrase in phrases])

    embeddings = PhraseEmbeddings(embed, limit=3)
    assert embeddings(["a", "b", "c"]).tolist() == [[97], [98], [99]]
    assert embeddings(["a"]).tolist() == [[97]]
    assert embeddings(["d", "c"]).tolist() == [[100], [99]]  # b goes
    assert embeddings(["c", "a", "d"]).tolist() == [[99], [97], [100]]
    assert asked == [["a", "b", "c"], ["d"]]
    assert embeddings(["b", "e", "f", "g", "h"]).tolist() == [[98], [101], [102], [103], [104]]  # more than are kept, but all are there
    assert embeddings(["h", "g", "f"]).tolist() == [[104], [103], [102]]
    assert asked[2:] == [["b", "e", "f", "g", "h"]]


def test_a_failure_of_the_text_tower_is_not_remembered() -> None:
    broken = True

    def embed(phrases: Any) -> torch.Tensor:
        if broken:
            raise torch.OutOfMemoryError
        return torch.full((len(phrases), 1), math.pi)

    embeddings = PhraseEmbeddings(embed)
    with pytest.raises(torch.OutOfMemoryError):
        embeddings(["a"])
    broken = False
    assert embeddings(["a"]).tolist() == [[pytest.approx(math.pi)]]
