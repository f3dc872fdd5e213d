"""Which of a detector's candidates become labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.detectors.base import Candidates
from mtv_core.experts.filters import Boxes, Filter


@dataclass(frozen=True)
class Detections:
    """What is found in one picture, best first."""

    boxes: NDArray[np.float32]  # [N, 4] xyxy, normalised by the picture's own width and height
    phrases: list[str]
    scores: NDArray[np.float32]  # [N]


NOTHING = Detections(np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32))


def select(
    candidates: Candidates, size: tuple[int, int], asked: Sequence[str], config: DetectionExpertConfig, dropped: Counter[str]
) -> Detections:
    """The boxes of one picture of `size` (width, height) that are kept; adds to `dropped` how many each filter took, by its name."""
    # Order: score threshold, size, filters that judge a box alone, suppression within a phrase, filters that compare boxes, best few.
    # In px, so that a wide picture is thinned like a square one.
    pixels_N4 = candidates.boxes * candidates.boxes.new_tensor([*size, *size])
    seen_N2 = pixels_N4[:, 2:] - pixels_N4[:, :2] >= 1.0  # else it lies outside, or is no pixel wide
    keep = torch.nonzero((candidates.scores > config.threshold) & seen_N2[:, 0] & seen_N2[:, 1])[:, 0]
    if not len(keep):
        return NOTHING
    found = Boxes(candidates.boxes, pixels_N4, candidates.scores, candidates.phrases)[keep]
    if config.min_area > 0:
        found = found[found.areas >= config.min_area]
    for rule in config.filters:
        if rule.alone:
            found = _passed(found, rule, dropped)
    found = found[batched_nms(found.pixels, found.scores, found.phrases, config.nms)]  # and sorted by score
    for rule in config.filters:
        if not rule.alone:
            found = _passed(found, rule, dropped)
    found = found[: config.max_boxes]
    return Detections(found.boxes.numpy(), [asked[q] for q in found.phrases.tolist()], found.scores.numpy())


def _passed(found: Boxes, rule: Filter, dropped: Counter[str]) -> Boxes:
    kept = found[rule(found)]
    if len(kept) < len(found):
        dropped[rule.name] += len(found) - len(kept)
    return kept
