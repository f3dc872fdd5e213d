"""What a canary sees of one row: its old and its new label, and what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtv_core.data.depth import decode
from mtv_core.label_checks import FILLING, is_constant
from mtv_core.label_compare import abs_rel, matched

OTHERS = 4  # other pictures whose new maps are compared with an old one
FOUND = 0.5  # IoU from which an old box is found again

_NONE = np.zeros((0, 4), np.float32)


@dataclass(frozen=True)
class Boxes:
    """A detection label."""

    boxes: NDArray[np.float32]  # [N, 4], normalised xyxy
    phrases: list[str]
    scores: NDArray[np.float32]  # [N]

    @classmethod
    def of(cls, label: Mapping[str, Any]) -> Boxes:
        """Of the columns of a row that has a label."""
        boxes = np.asarray(label["boxes"], np.float32).reshape(-1, 4) if label["boxes"] else _NONE
        return cls(boxes, list(label["phrases"]), np.asarray(label["scores"], np.float32))

    @property
    def filling(self) -> int:
        """Boxes that fill the picture."""
        return int(((self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1]) >= FILLING).sum())

    @property
    def broken(self) -> int:
        """Boxes that are none: not finite, without an area, outside of the picture, or with a score that is none."""
        left, top, right, bottom = self.boxes.T
        with np.errstate(invalid="ignore"):
            inside = (left >= -1e-3) & (top >= -1e-3) & (right <= 1.001) & (bottom <= 1.001) & (right > left) & (bottom > top)
            return int((~(inside & (self.scores >= 0) & (self.scores <= 1.001))).sum())


@dataclass
class Row:
    """What is known of one row after both labels were looked at. Small: no map, and of boxes only numbers.

    What cannot be measured, because a label is missing, is NaN.
    """

    uid: str
    position: int  # in the version that is looked at
    old: str  # where the old label is from: 'stored', 'run', or why there is none: 'none', 'refused'
    failure: str | None = None  # why there is no new label: name of the error
    kind: str | None = None  # of the failure: transient, data, bug
    message: str | None = None  # of the failure
    change: float = float("nan")  # 0: none
    said: str = ""  # the change, for people
    # depth
    abs_rel: float = float("nan")
    others: float = float("nan")  # AbsRel of other pictures' new maps against this old one, mean
    constant: tuple[bool, bool] | None = None  # old, new; old is False where there is none
    # detection
    ious: list[float] = field(default_factory=list)  # of boxes that belong together
    found: int = 0  # old boxes that are found again
    fresh: int = 0  # new boxes that no old one was
    boxes: tuple[int, int] = (0, 0)  # old, new
    filling: tuple[int, int] = (0, 0)
    broken: int = 0
    phrases: tuple[int, int] = (0, 0)  # with a box, old and new
    lost: int = 0  # phrases that had a box and have none
    gained: int = 0
    scores: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def shift(self) -> float:
        """`change`, for sorting: a row that has lost its label comes first, one that cannot be compared last."""
        if self.failure is not None:
            return float("inf")
        return 0.0 if np.isnan(self.change) else self.change

    @property
    def compared(self) -> bool:
        """Whether there is an old and a new label."""
        return self.old in ("stored", "run") and self.failure is None


def has_label(expert: str, label: Mapping[str, Any] | None) -> bool:
    """Whether a row's columns hold a label of the expert."""
    return label is not None and label["depth" if expert == "depth" else "boxes"] is not None


def compare(row: Row, expert: str, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Row:
    """Fill in what the labels say; `old` is None where there is none to compare with.

    Args:
        row: who it is.
        expert: 'depth' or 'detection'.
        old: the expert's columns of the old label.
        new: of the new one.
    """
    if expert == "depth":
        _depth(row, old, new)
    else:
        _detection(row, old, new)
    return row


def compare_others(rows: Sequence[Row], expert: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> None:
    """Compare the old map of each row with the new ones of the rows after it: what a map comes to that is not of this picture.

    Most pictures are near below and far above, so any map fits any picture somewhat. How much better its own fits is what an expert knows.
    """
    if expert != "depth":
        return
    maps = [decode(label["depth"]) if row.compared else None for row, label in zip(rows, new, strict=True)]
    for i, row in enumerate(rows):
        others = [maps[(i + step) % len(rows)] for step in range(1, min(OTHERS, len(rows) - 1) + 1)]
        if np.isfinite(row.abs_rel):
            found = [abs_rel(decode(old[i]["depth"]), other) for other in others if other is not None]
            row.others = float(np.mean(found)) if found else float("nan")


def _depth(row: Row, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
    after = decode(new["depth"])
    before = decode(old["depth"]) if old is not None else None
    row.constant = (before is not None and is_constant(before), is_constant(after))
    if before is not None:
        row.abs_rel = row.change = abs_rel(before, after)
    row.said = "says nothing: near and far are the same" if row.constant[1] else f"AbsRel {row.abs_rel:.3f}" if before is not None else ""


def _detection(row: Row, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
    after = Boxes.of(new)
    row.broken = after.broken
    before = Boxes.of(old) if old is not None else None
    row.boxes = (len(before.boxes) if before else 0, len(after.boxes))
    row.filling = (before.filling if before else 0, after.filling)
    row.scores = (before.scores.tolist() if before else [], after.scores.tolist())
    if before is None:
        row.said = f"{row.boxes[1]} boxes"
        return
    pairs = matched(before.boxes, before.phrases, np.nan_to_num(after.boxes), after.phrases)
    row.ious = [overlap for _, _, overlap in pairs]
    row.found = sum(overlap >= FOUND for overlap in row.ious)
    row.fresh = row.boxes[1] - row.found
    had, has = set(before.phrases), set(after.phrases)
    row.phrases, row.lost, row.gained = (len(had), len(has)), len(had - has), len(has - had)
    union = sum(row.boxes) - len(pairs)
    row.change = 1 - sum(row.ious) / union if union else 0.0
    parts = [f"{row.found} of {row.boxes[0]} found again"]
    parts += [f"{count} {what}" for count, what in ((row.fresh, "new"), (row.broken, "broken")) if count]
    row.said = ", ".join(parts) if any(row.boxes) else "no box, as before"
