"""Figures of a canary, and the thresholds they have to stand.

A check compares one figure with one limit of `label.gate`. Where there is nothing to measure (no old box, no old map) a check passes with
value None; that there is something to compare at all is a check of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from mtv_core.canary_config import GateConfig
from mtv_core.canary_rows import Row
from mtv_core.label_compare import ks_distance


class GateCheck(BaseModel, frozen=True, extra="forbid"):
    """One threshold."""

    name: str = Field(description="key of the threshold below label.gate: 'depth.max_abs_rel'")
    value: float | None = Field(description="what was measured; None: there was nothing to measure")
    limit: float
    passed: bool
    meaning: str = Field(description="what is measured and why it matters, for people")

    @property
    def sign(self) -> str:
        """What the limit is: the least, or the most."""
        return "≥" if self.name.rpartition(".")[2].startswith("min_") else "≤"


def figures(expert: str, rows: Sequence[Row]) -> dict[str, float]:
    """What the rows come to; a figure for which there is nothing to measure is left out.

    rows, rows_compared, rows_without_old, rows_unreadable, rows_transient, failed (share of the rows that could be tried).
    Of depth: abs_rel_median, abs_rel_p95, skill, constant_old, constant_new.
    Of detection: iou, found, new, none_old, none_new, boxes_old, boxes_new (a picture), filling_old, filling_new, broken, phrases_lost,
    phrases_gained, score_old, score_new, score_shift, score_ks.
    """
    unreadable = sum(row.kind == "data" for row in rows)
    transient = sum(row.kind == "transient" for row in rows)
    tried = len(rows) - unreadable - transient
    compared = [row for row in rows if row.compared]
    labelled = [row for row in rows if row.failure is None]
    found: dict[str, float] = {
        "rows": len(rows),
        "rows_compared": len(compared),
        "rows_without_old": sum(row.old not in ("stored", "run") for row in rows),
        "rows_unreadable": unreadable,
        "rows_transient": transient,
        "failed": _ratio(sum(row.kind == "bug" for row in rows), tried),
    }
    found |= _depth(compared, labelled) if expert == "depth" else _detection(compared, labelled)
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _depth(compared: Sequence[Row], labelled: Sequence[Row]) -> dict[str, float]:
    errors = np.array([row.abs_rel for row in compared if np.isfinite(row.abs_rel)])
    pairs = np.array([(row.abs_rel, row.others) for row in compared if np.isfinite(row.others)]).reshape(-1, 2)
    own, others = np.median(pairs, axis=0) if pairs.size else (float("nan"), float("nan"))
    old = [row.constant[0] for row in compared if row.constant is not None]
    new = [row.constant[1] for row in labelled if row.constant is not None]
    return {
        "abs_rel_median": float(np.median(errors)) if errors.size else float("nan"),
        "abs_rel_p95": float(np.percentile(errors, 95)) if errors.size else float("nan"),
        "skill": 1 - _ratio(float(own), float(others)),
        "constant_old": _ratio(sum(old), len(old)),
        "constant_new": _ratio(sum(new), len(new)),
    }


def _detection(compared: Sequence[Row], labelled: Sequence[Row]) -> dict[str, float]:
    old, new = sum(row.boxes[0] for row in compared), sum(row.boxes[1] for row in compared)
    every = sum(row.boxes[1] for row in labelled)
    overlaps = [overlap for row in compared for overlap in row.ious]
    before = np.array([score for row in compared for score in row.scores[0]])
    after = np.array([score for row in compared for score in row.scores[1]])
    means = [float(scores.mean()) if scores.size else float("nan") for scores in (before, after)]
    return {
        "iou": float(np.mean(overlaps)) if overlaps else float("nan"),
        "found": _ratio(sum(row.found for row in compared), old),
        "new": _ratio(sum(row.fresh for row in compared), new),
        "none_old": _ratio(sum(not row.boxes[0] for row in compared), len(compared)),
        "none_new": _ratio(sum(not row.boxes[1] for row in compared), len(compared)),
        "boxes_old": _ratio(old, len(compared)),
        "boxes_new": _ratio(new, len(compared)),
        "filling_old": _ratio(sum(row.filling[0] for row in compared), old),
        "filling_new": _ratio(sum(row.filling[1] for row in labelled), every),
        "broken": _ratio(sum(row.broken for row in labelled), every),
        "phrases_lost": _ratio(sum(row.lost for row in compared), sum(row.phrases[0] for row in compared)),
        "phrases_gained": _ratio(sum(row.gained for row in compared), sum(row.phrases[1] for row in compared)),
        "score_old": means[0],
        "score_new": means[1],
        "score_shift": means[1] - means[0],
        "score_ks": ks_distance(before, after),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def checks(expert: str, found: dict[str, float], gate: GateConfig) -> list[GateCheck]:
    """Every threshold of an expert, in the order of the configuration."""
    compared = found["rows_compared"]
    shared = [
        _least("min_compared", compared, gate.min_compared, "rows with an old and a new label: without any there is no telling"),
        _most("max_failed", found.get("failed"), gate.max_failed, "share of pictures on which the new expert fails"),
    ]
    return [*shared, *(_of_depth(found, gate) if expert == "depth" else _of_detection(found, gate))]


def undecided(made: Sequence[GateCheck]) -> bool:
    """Whether the thresholds cannot tell: too few rows have an old and a new label, and nothing else speaks against the expert."""
    return [check.name for check in made if not check.passed] == ["min_compared"]


def _of_depth(found: dict[str, float], gate: GateConfig) -> list[GateCheck]:
    limits = gate.depth
    new, old = found.get("constant_new"), found.get("constant_old", 0.0)
    return [
        _most(
            "depth.max_abs_rel",
            found.get("abs_rel_median"),
            limits.max_abs_rel,
            "AbsRel of new maps against old ones after alignment, median: how much farther or nearer things are now",
        ),
        _most(
            "depth.max_abs_rel_p95",
            found.get("abs_rel_p95"),
            limits.max_abs_rel_p95,
            "the same, 95th percentile: whether some pictures are another scene altogether",
        ),
        _least(
            "depth.min_skill",
            found.get("skill"),
            limits.min_skill,
            "how much better a picture's new map fits its old one than other pictures' new maps do: 0 for maps that do not look at it",
        ),
        _most(
            "depth.max_constant",
            None if new is None else new - old,
            limits.max_constant,
            "share of new maps that say nothing (the same everywhere, or no value), less that of old ones",
        ),
    ]


def _of_detection(found: dict[str, float], gate: GateConfig) -> list[GateCheck]:
    limits = gate.detection
    none_new, filling, shift = found.get("none_new"), found.get("filling_new"), found.get("score_shift")
    return [
        _least("detection.min_iou", found.get("iou"), limits.min_iou, "mean IoU of old and new boxes that belong together"),
        _least("detection.min_found", found.get("found"), limits.min_found, "share of old boxes that are found again (phrase, IoU 0.5)"),
        _most("detection.max_new", found.get("new"), limits.max_new, "share of new boxes where there was none of that phrase"),
        _most(
            "detection.max_none",
            None if none_new is None else none_new - found.get("none_old", 0.0),
            limits.max_none,
            "share of pictures without a box, less that with old labels",
        ),
        _most(
            "detection.max_filling",
            None if filling is None else filling - found.get("filling_old", 0.0),
            limits.max_filling,
            "share of boxes that fill the picture (what a detector says that does not know where), less that of old ones",
        ),
        _most("detection.max_ratio", _factor(found), limits.max_ratio, "boxes a picture: factor between old and new, either way"),
        _most(
            "detection.max_score_shift",
            None if shift is None else abs(shift),
            limits.max_score_shift,
            "difference of the mean scores: training chooses boxes by their score",
        ),
        _most("detection.max_broken", found.get("broken"), limits.max_broken, "share of boxes that are none: outside, empty, not finite"),
    ]


def _factor(found: dict[str, float]) -> float | None:
    """How many times more boxes there are, or fewer; None without any before and now. One more a hundred pictures: none is not infinite."""
    if "boxes_old" not in found or not found["boxes_old"] + found["boxes_new"]:
        return None
    ratio = (found["boxes_new"] + 0.01) / (found["boxes_old"] + 0.01)
    return max(ratio, 1 / ratio)


def _most(name: str, value: float | None, limit: float, meaning: str) -> GateCheck:
    return GateCheck(name=name, value=value, limit=limit, passed=value is None or value <= limit, meaning=meaning)


def _least(name: str, value: float | None, limit: float, meaning: str) -> GateCheck:
    return GateCheck(name=name, value=value, limit=limit, passed=value is None or value >= limit, meaning=meaning)
