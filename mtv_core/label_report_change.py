"""How much the labels of a row changed between two versions, so that the largest changes can be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtv_core.data.depth import decode
from mtv_core.label_compare import at_places, matched


def depth_change(old: NDArray[np.floating], new: NDArray[np.floating]) -> float:
    """Mean difference of two maps of inverse depth after the new one is scaled and shifted to the old, in shares of the old one's range.

    0: the same up to scale and shift, which are each map's own; 0.25 is what maps come to that have nothing to do with each other. Maps of
    different sizes are compared at the smaller one's places. NaN where nothing can be compared.
    """
    height, width = min(old.shape[0], new.shape[0]), min(old.shape[1], new.shape[1])
    a, b = at_places(old, height, width), at_places(new, height, width)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float("nan")
    x, y = b[both], a[both]
    centred = x - x.mean()
    variance = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / variance if variance > 0 else 0.0
    spread = float(np.subtract(*np.percentile(y, (95, 5))))
    return float(np.abs(slope * centred + y.mean() - y).mean() / max(spread, 1e-9)) if spread > 0 else float(variance > 0)


def boxes_change(
    old: Sequence[Sequence[float]], old_phrases: Sequence[str], new: Sequence[Sequence[float]], new_phrases: Sequence[str]
) -> float:
    """1 − the mean IoU of boxes that belong together: of the same phrase, the best pairs first; a box without a partner counts as 0.

    0: the same boxes; 1: none of them again. Two rows without boxes did not change.
    """
    if not old and not new:
        return 0.0
    boxes = [np.asarray(one, np.float32).reshape(-1, 4) for one in (old, new)]
    pairs = [overlap for _, _, overlap in matched(boxes[0], old_phrases, boxes[1], new_phrases)]
    return 1 - sum(pairs) / (len(old) + len(new) - len(pairs))


def change(expert: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """How much an expert's label of a row changed; NaN where one of them is missing."""
    if expert == "depth":
        missing = old.get("depth") is None or new.get("depth") is None
        return float("nan") if missing else depth_change(decode(old["depth"]), decode(new["depth"]))
    if old.get("boxes") is None or new.get("boxes") is None:
        return float("nan")
    return boxes_change(old["boxes"], old["phrases"], new["boxes"], new["phrases"])
