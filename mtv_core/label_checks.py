"""Checks of labels against each other: what one expert says that another, or the caption, makes doubtful.

None of them knows the truth, so each is a share of a sample and some rows to look at, not a verdict. A window or a poster is flat and
rightly in a large box; a check is bad news when its share is large, or grew with a new revision.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from mtv_core.data.depth import decode

LARGE = 0.1  # share of the picture from which a box is large
FLAT = 0.03  # share of the picture's depth range below which a box is flat
CONSTANT = 0.02  # spread of a map, as a share of its largest value, below which it says nothing
FILLING = 0.95  # share of the picture from which a box fills it
SAME = 0.9  # IoU from which two boxes are the same place
ASKED = 20  # times a phrase is asked for, below which never finding it means nothing
NEVER = 0.02  # share of the times it was asked for that a phrase is found, below which it is never found
_EXAMPLES = 12


class Check(BaseModel, frozen=True, extra="forbid"):
    """One check of a sample."""

    name: str = Field(description="kebab-case, names files")
    title: str
    meaning: str = Field(description="what is looked at, and what it may come from")
    flagged: int
    looked_at: int
    unit: str = Field(description="what is counted: boxes, pictures, phrases")
    examples: list[str] = Field(default_factory=list, description="uids of rows to look at, in order of uid")
    details: list[str] = Field(default_factory=list, description="in words, the worst first")


@dataclass
class _Tally:
    flagged: int = 0
    looked_at: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, uid: str, flagged: int, looked_at: int) -> None:
        self.looked_at += looked_at
        self.flagged += flagged
        if flagged and len(self.examples) < _EXAMPLES:
            self.examples.append(uid)


class Checker:
    """Looks at rows one after the other; `result` says what was found. What is kept does not grow with the rows, but for their phrases."""

    def __init__(self) -> None:
        self.flat, self.constant, self.filling, self.same = _Tally(), _Tally(), _Tally(), _Tally()
        self.times_asked: Counter[str] = Counter()
        self.times_found: Counter[str] = Counter()
        self.asked_in: dict[str, list[str]] = defaultdict(list)  # phrase → some uids

    def add(self, row: Mapping[str, Any], asked: Sequence[str] | None = None) -> None:
        """Look at a row with uid and labels; what is null is left out.

        Args:
            row: of the table.
            asked: phrases that the detector was asked for; None: nobody knows.
        """
        uid, depth, boxes = row["uid"], row.get("depth"), row.get("boxes")
        values = decode(depth) if depth is not None else None
        if values is not None:
            self.constant.add(uid, int(is_constant(values)), 1)
        if boxes is None:
            return
        array = np.asarray(boxes, np.float32).reshape(-1, 4)
        phrases = row["phrases"]
        areas = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
        self.filling.add(uid, int((areas >= FILLING).sum()), len(array))
        pairs = same_place(array, phrases)
        self.same.add(uid, len(pairs), len(array))
        if values is not None and not is_constant(values):
            large = array[(areas >= LARGE) & (areas < FILLING)]
            self.flat.add(uid, sum(is_flat(values, box) for box in large), len(large))
        found = set(phrases)
        for phrase in dict.fromkeys(asked or ()):
            self.times_asked[phrase] += 1
            self.times_found[phrase] += phrase in found
            if phrase not in found and len(self.asked_in[phrase]) < _EXAMPLES:
                self.asked_in[phrase].append(uid)

    def result(self) -> list[Check]:
        """The checks for which there was anything to look at."""
        flat = "what stands in a box of a tenth of the picture or more has hardly any depth: a surface, a reflection, a box around nothing"
        found = [
            _check("flat-depth-in-box", "Flat depth inside a large box", flat, self.flat, "large boxes"),
            _check("constant-depth", "Depth maps that say nothing", "near and far are the same everywhere", self.constant, "depth maps"),
            _check(
                "frame-filling", "Boxes that fill the picture", "what a detector answers when it does not know where", self.filling, "boxes"
            ),
            _check("same-place", "Two phrases for one place", "boxes on top of each other: one of the names is wrong", self.same, "boxes"),
            self._never_found(),
        ]
        return [check for check in found if check.looked_at]

    def _never_found(self) -> Check:
        frequent = {phrase: times for phrase, times in self.times_asked.items() if times >= ASKED}
        never = sorted((p for p, times in frequent.items() if self.times_found[p] <= NEVER * times), key=lambda p: (-frequent[p], p))
        return Check(
            name="never-found",
            title="Nouns of captions that are never found",
            meaning=f"asked for {ASKED} times or more and found in at most {NEVER:.0%} of them: not to be seen, or unknown to the expert",
            flagged=len(never),
            looked_at=len(frequent),
            unit="frequent phrases",
            examples=list(dict.fromkeys(uid for phrase in never for uid in self.asked_in[phrase][:3]))[:_EXAMPLES],
            details=[f"{phrase}: found {self.times_found[phrase]} of {frequent[phrase]} times" for phrase in never[:20]],
        )


def _check(name: str, title: str, meaning: str, tally: _Tally, unit: str) -> Check:
    return Check(
        name=name, title=title, meaning=meaning, flagged=tally.flagged, looked_at=tally.looked_at, unit=unit, examples=tally.examples
    )


def is_constant(depth: NDArray[np.floating]) -> bool:
    """Whether a map of inverse depth [H, W] is the same everywhere, but for noise: nothing can be learned from it."""
    known = depth[np.isfinite(depth)]
    if not known.size:
        return True
    low, high = np.percentile(known, (5, 95))
    return bool(high - low <= CONSTANT * max(abs(float(high)), abs(float(low)), 1e-9))


def is_flat(depth: NDArray[np.floating], box: NDArray[np.floating]) -> bool:
    """Whether inverse depth [H, W] hardly changes inside a box (normalised xyxy), measured by the range of the whole picture."""
    height, width = depth.shape
    left, right = int(np.floor(box[0] * width)), int(np.ceil(box[2] * width))
    top, bottom = int(np.floor(box[1] * height)), int(np.ceil(box[3] * height))
    inside = depth[max(top, 0) : bottom, max(left, 0) : right]
    inside, known = inside[np.isfinite(inside)], depth[np.isfinite(depth)]
    if not inside.size:
        return False
    whole, part = (np.subtract(*np.percentile(values, (95, 5))) for values in (known, inside))
    return bool(part < FLAT * whole)


def same_place(boxes: NDArray[np.floating], phrases: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of boxes [N, 4] of different phrases whose IoU is at least SAME."""
    overlap = iou(boxes, boxes)
    return [(i, j) for i, j in zip(*np.nonzero(np.triu(overlap >= SAME, 1)), strict=True) if phrases[i] != phrases[j]]


def iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union [N, M] of boxes [N, 4] and [M, 4], xyxy."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    corner, opposite = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(opposite - corner, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(shared / np.maximum(union, 1e-12), np.float64)
