"""What is chosen to be looked at, checks of labels against each other, and how much labels changed: against naive loops and known truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtv_core.data.depth import encode
from mtv_core.label_checks import ASKED, Checker, iou, is_constant, is_flat, same_place
from mtv_core.label_report_change import boxes_change, change, depth_change
from mtv_core.label_report_scan import SCORE_BINS, scan
from mtv_core.store.table import Table
from tests.label_tables import make_table

REVISION = "a" * 16


def labelled(folder: Path, scores: list[list[float] | None]) -> Table:
    """A table whose rows have boxes of these scores, in order of position; two rows a fragment."""
    table = make_table(folder, len(scores), 2)
    table.ensure_columns("detection")
    version, staged = table.version, []
    for fragment in range(-(-len(scores) // 2)):
        part = scores[2 * fragment : 2 * fragment + 2]
        columns = {
            "boxes": [None if row is None else [[0.0, 0.0, 0.5, 0.5]] * len(row) for row in part],
            "phrases": [None if row is None else ["it"] * len(row) for row in part],
            "scores": part,
            "detection_rev": [REVISION] * len(part),
        }
        batch = pa.table(columns, schema=pa.schema([table.dataset().schema.field(name) for name in columns]))
        staged.append(table.stage_labels("detection", version, fragment, batch, revision=REVISION))
    table.commit_labels(staged)
    return table


@pytest.mark.parametrize("seed", range(4))
def test_one_pass_finds_what_sorting_all_rows_finds(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = [None if random.random() < 0.2 else random.random(random.integers(0, 5)).astype(np.float32).tolist() for _ in range(15)]
    view = Table.at(labelled(tmp_path, scores).uri)
    assert len(list(view.scan(["uid"]))) > 4, "what is kept is compared over batches"
    found = scan(view, shown=4, sample=6)
    uids = view.take(range(15), ["uid"])["uid"].to_pylist()
    by_uid = sorted(range(15), key=lambda i: uids[i])
    boxes = [i for i in range(15) if scores[i]]
    assert found.sample == by_uid[:6]
    assert found.last_uid == uids[by_uid[5]]
    assert found.slices["random"] == by_uid[:4]
    assert found.slices.get("none", []) == [i for i in by_uid if scores[i] == []][:4]
    assert found.slices.get("most-boxes", []) == sorted(boxes, key=lambda i: (-len(scores[i] or ()), uids[i]))[:4]
    assert found.slices.get("lowest-score", []) == sorted(boxes, key=lambda i: (max(scores[i] or ()), uids[i]))[:4]
    flat = [score for row in scores for score in row or ()]
    assert (found.rows, found.missing, found.num_boxes) == (15, scores.count(None), len(flat))
    assert found.scores.tolist() == np.histogram(flat, SCORE_BINS, (0, 1))[0].tolist()
    assert found.with_boxes + found.boxes[0] + found.missing == 15


def test_a_table_without_labels_has_a_sample_and_nothing_else(tmp_path: Path) -> None:
    found = scan(Table.at(make_table(tmp_path, 5, 2).uri))
    assert (found.rows, len(found.sample), list(found.slices), found.mean_score) == (5, 5, ["random"], None)


def test_flat_is_measured_by_the_range_of_the_picture() -> None:
    depth = np.tile(np.linspace(0, 1, 40, dtype=np.float32), (40, 1))
    assert not is_flat(depth, np.array([0.2, 0.2, 0.8, 0.8]))
    depth[8:32, 8:32] = 0.5
    assert is_flat(depth, np.array([0.2, 0.2, 0.8, 0.8]))
    assert is_flat(7 * depth + 3, np.array([0.2, 0.2, 0.8, 0.8]))
    assert not is_constant(depth)
    assert is_constant(np.full((9, 9), 3.0))
    assert is_constant(np.full((9, 9), np.nan))


def test_only_other_phrases_at_one_place_disagree() -> None:
    boxes = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.51], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    assert same_place(boxes, ["cat", "dog", "cat", "dog"]) == [(0, 1), (1, 2)]
    assert iou(boxes, boxes).diagonal() == pytest.approx(1)
    assert iou(boxes[:1], boxes[3:]).item() == 0


def test_what_is_asked_often_and_never_found_is_named() -> None:
    checker = Checker()
    flat = encode(np.pad(np.zeros((20, 20), np.float32), 10, constant_values=1.0))
    for i in range(ASKED):
        row = {
            "uid": f"{i:032x}",
            "depth": flat,
            "boxes": [[0.3, 0.3, 0.7, 0.7]],
            "phrases": ["cat"],
            "scores": [1.0],
        }
        checker.add(row, ["cat", "sky"])
    checks = {check.name: check for check in checker.result()}
    assert checks["never-found"].details == [f"sky: found 0 of {ASKED} times"]
    assert (checks["never-found"].flagged, checks["never-found"].looked_at) == (1, 2)
    assert (checks["flat-depth-in-box"].flagged, checks["flat-depth-in-box"].looked_at) == (ASKED, ASKED)
    assert checks["frame-filling"].flagged == checks["constant-depth"].flagged == 0


def test_depth_does_not_change_by_scale_and_shift() -> None:
    old = np.random.default_rng(0).random((30, 40), np.float32)
    other = np.random.default_rng(1).random((30, 40), np.float32)
    assert depth_change(old, 5 * old + 2) == pytest.approx(0, abs=1e-6)
    assert depth_change(old, other) == pytest.approx(0.25, abs=0.05)
    assert math.isnan(depth_change(old, np.full_like(old, np.nan)))
    assert math.isnan(change("depth", {"depth": None}, {"depth": encode(old)}))


def test_boxes_change_by_place_phrase_and_number() -> None:
    box, half = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]
    assert boxes_change([box], ["cat"], [box], ["cat"]) == 0
    assert boxes_change([box], ["cat"], [box], ["dog"]) == 1
    assert boxes_change([box], ["cat"], [half], ["cat"]) == pytest.approx(0.5)
    assert boxes_change([box], ["cat"], [half, box], ["cat", "cat"]) == pytest.approx(0.5)
    assert boxes_change([], [], [box], ["cat"]) == 1
    assert boxes_change([], [], [], []) == 0
