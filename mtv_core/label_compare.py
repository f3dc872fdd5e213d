"""Two labels of one picture compared, by two revisions of an expert or by an expert and the truth: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtv_core.label_checks import iou

FAR = 0.05  # share of a picture's largest inverse depth below which all counts as equally far: 20 times as far as its nearest


def align(new: NDArray[np.floating], old: NDArray[np.floating]) -> NDArray[np.float64]:
    """`new` times the scale plus the shift that fit `old` best in the least-squares sense. Both [N].

    The scale is never negative: a map with near and far exchanged is not the same map, so it is fitted by a constant.
    """
    x, y = np.asarray(new, np.float64), np.asarray(old, np.float64)
    centred = x - x.mean()
    variance = float(centred @ centred)
    scale = max(float(centred @ (y - y.mean())) / variance, 0.0) if variance > 0 else 0.0
    return scale * centred + y.mean()


def abs_rel(old: NDArray[np.floating], new: NDArray[np.floating]) -> float:
    """AbsRel of a new map of inverse depth against an old one: mean of |d − d*| / d* over pixels, d* = 1 / old, d = 1 / aligned new.

    As relative depth is evaluated (Ranftl et al. 2020; Marigold): the new map is scaled and shifted to the old one in inverse depth, then
    both are turned into depth, neither farther than 20 times the nearest (the old map's 99th percentile). 0: the same up to scale and
    shift, which are each map's own. An old map that goes below zero is shifted up to it first. Maps of different sizes are compared at the
    smaller one's places. NaN where nothing can be compared: the old map is flat, or too little is known of them.
    """
    height, width = min(old.shape[0], new.shape[0]), min(old.shape[1], new.shape[1])
    a, b = at_places(old, height, width), at_places(new, height, width)
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3:
        return float("nan")
    reference, other = a[known], b[known]
    lowest, nearest = np.percentile(reference, (1, 99))
    if nearest <= lowest:
        return float("nan")
    if lowest < 0:
        reference, nearest = reference - lowest, nearest - lowest
    floor = FAR * float(nearest)
    aligned = np.maximum(align(other, reference), floor)
    return float((np.abs(aligned - np.maximum(reference, floor)) / aligned).mean())


def at_places(depth: NDArray[np.floating], height: int, width: int) -> NDArray[np.float64]:
    """A map at the places of a coarser one: values as they are, none mixed."""
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * depth.shape[1] / width).astype(int)
    return np.asarray(depth[rows][:, columns], np.float64)


def matched(
    old: NDArray[np.floating], old_phrases: Sequence[str], new: NDArray[np.floating], new_phrases: Sequence[str]
) -> list[tuple[int, int, float]]:
    """Boxes that belong together, as (index of the old one, index of the new one, IoU): within a phrase, the best pairs first, IoU > 0.

    Args:
        old: [N, 4], normalised xyxy.
        old_phrases: of them.
        new: [M, 4].
        new_phrases: of them.
    """
    overlap = iou(old, new)
    overlap[np.array([[a != b for b in new_phrases] for a in old_phrases], bool).reshape(overlap.shape)] = 0
    pairs = []
    while overlap.size and (best := float(overlap.max())) > 0:
        i, j = (int(place) for place in np.unravel_index(int(overlap.argmax()), overlap.shape))
        pairs.append((i, j, best))
        overlap[i, :], overlap[:, j] = 0, 0
    return pairs


def ks_distance(old: NDArray[np.floating], new: NDArray[np.floating]) -> float:
    """Kolmogorov and Smirnov's distance of two samples: the largest difference of their distribution functions, 0 … 1; NaN if one is empty.

    max(abs((old <= t).mean() - (new <= t).mean()) for t in [*old, *new])
    """
    if not len(old) or not len(new):
        return float("nan")
    a, b = np.sort(old), np.sort(new)
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b)).max())
