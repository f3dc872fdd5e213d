"""What is no label is told from one, whoever made the expert."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mtv_core.data.depth import encode
from mtv_core.data.schema import LABELS
from mtv_core.experts.answer import BadAnswerError, check

IMAGES = [Image.new("RGB", size) for size in ((96, 96), (64, 40), (40, 64))]
BOX = [0.0, 0.25, 1.0, 0.5]
GOOD: list[dict[str, Any]] = [
    {"boxes": [BOX, BOX], "phrases": ["dog", "cat"], "scores": [0.0, 1.0]},
    {"boxes": [], "phrases": [], "scores": []},
    {"boxes": [BOX], "phrases": ["dog"], "scores": [0.5]},
]


def detections(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=LABELS["detection"])


def depths(*maps: bytes | None) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(maps, pa.binary())], schema=LABELS["depth"])


def a_map(width: int, height: int) -> bytes:
    return encode(np.linspace(0, 1, width * height, dtype=np.float32).reshape(height, width))


def test_labels_pass_also_slices_of_more() -> None:
    check("detection", detections(GOOD), IMAGES, None)
    check("detection", detections(GOOD), IMAGES, [["dog", "cat", "bird"], [], ["dog"]])
    check("detection", detections([*GOOD, *GOOD]).slice(2, 3), IMAGES, [["dog"], ["dog", "cat"], []])
    check("detection", detections([GOOD[1]] * 3), IMAGES, None)
    check("depth", depths(a_map(48, 48), a_map(48, 30), a_map(30, 48)), IMAGES, None)
    check("depth", depths(a_map(48, 48), a_map(48, 29), a_map(31, 48)), IMAGES, None)  # rounded otherwise


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"boxes": None}, "a null; what it cannot label"),
        ({"scores": None}, "a null; what it cannot label"),
        ({"boxes": [[-5, 0, 1, 1]]}, "a box outside 0 … 1: -5, 0, 1, 1"),
        ({"boxes": [[0, 0, 1, math.nan]]}, "a box outside 0 … 1: 0, 0, 1, nan"),
        ({"boxes": [[0.5, 0, 0.25, 1]]}, "second corner lies before its first"),
        ({"boxes": [None]}, "a null within a label"),
        ({"boxes": [[0, 0, 1, None]]}, "a null within a label"),
        ({"phrases": [None]}, "a null within a label"),
        ({"scores": [math.inf]}, "a score outside 0 … 1: inf"),
        ({"scores": [math.nan]}, "a score outside 0 … 1: nan"),
        ({"scores": []}, "different numbers of boxes, phrases and scores"),
        ({"phrases": ["tree"]}, "the phrase 'tree', which was not asked for"),
    ],
)
def test_wrong_detections(row: dict[str, Any], says: str) -> None:
    with pytest.raises(BadAnswerError, match=says):
        check("detection", detections([*GOOD[:2], GOOD[2] | row]), IMAGES, [["dog", "cat"]] * 3)


def test_wrong_columns_and_numbers_of_rows() -> None:
    with pytest.raises(BadAnswerError, match="gave 2 labels of 3 pictures"):
        check("detection", detections(GOOD[:2]), IMAGES, None)
    with pytest.raises(BadAnswerError, match="gave the columns x: int64, not boxes: list"):
        check("detection", pa.RecordBatch.from_pydict({"x": [1, 2, 3]}), IMAGES, None)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "a null"),
        (b"", "no depth map"),
        (b"no map of any format", "no depth map"),
        (a_map(40, 64)[:-1], "no depth map: .*damaged"),
        (a_map(40, 64)[:8] + a_map(20, 32)[8:], "no depth map: .*range|no depth map: .*damaged"),
        (a_map(64, 40), "a map of 64×40 for a picture of 40×64"),
        (a_map(64, 64), "a map of 64×64 for a picture of 40×64"),
    ],
)
def test_wrong_depth_maps(wrong: bytes | None, says: str) -> None:
    with pytest.raises(BadAnswerError, match=says):
        check("depth", depths(a_map(96, 96), a_map(64, 40), wrong), IMAGES, None)


def test_a_map_with_a_range_that_is_none() -> None:
    whole = bytearray(a_map(40, 64))
    whole[-len(whole) + 6 : -len(whole) + 10] = np.float32(np.nan).tobytes()  # lowest
    with pytest.raises(BadAnswerError, match="its range is nan … 1"):
        check("depth", depths(bytes(whole)), IMAGES[2:], None)
