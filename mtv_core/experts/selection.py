"""Which of a detector's candidates become labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
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
    candidates: Sequence[Candidates],
    sizes: Sequence[tuple[int, int]],
    asked: Sequence[Sequence[str]],
    config: DetectionExpertConfig,
    dropped: Counter[str],
) -> list[Detections]:
    """The boxes that are kept of each picture.

    Args:
        candidates: of each picture.
        sizes: (width, height) of each picture, px.
        asked: phrases of each picture.
        config: thresholds and filters.
        dropped: gets how many boxes each filter took, by its name.
    """
    # Order: score threshold, size, filters that judge a box alone, suppression within a phrase, filters that compare boxes, best few. All
    # but the last two are done for the whole batch at once.
    picture = torch.repeat_interleave(torch.tensor([len(one.scores) for one in candidates]))
    scores = torch.cat([one.scores for one in candidates])
    sure = torch.nonzero(scores > config.threshold)[:, 0]
    boxes, picture = torch.cat([one.boxes for one in candidates])[sure], picture[sure]
    # In px, so that a wide picture is thinned like a square one.
    pixels = boxes * torch.tensor([[*size, *size] for size in sizes], dtype=boxes.dtype)[picture]
    found = Boxes(boxes, pixels, scores[sure], torch.cat([one.phrases for one in candidates])[sure])
    kept = (pixels[:, 2:] - pixels[:, :2] >= 1.0).all(dim=1)  # else it lies outside, or is no pixel wide
    if config.min_area > 0:
        kept &= found.areas >= config.min_area
    found, picture = found[kept], picture[kept]
    for rule in config.filters:
        if rule.alone:
            passed = rule(found)
            dropped.update(_dropped(rule, passed))
            found, picture = found[passed], picture[passed]
    # Phrases of different pictures are different ones. torchvision moves them apart, for which float32 is too coarse.
    phrase = picture * max(map(len, asked), default=0) + found.phrases
    kept = batched_nms(found.pixels.double(), found.scores.double(), phrase, config.nms)
    kept = kept[picture[kept].argsort(stable=True)]  # by picture, best first
    found, picture = found[kept], picture[kept]
    ends = torch.bincount(picture, minlength=len(candidates)).cumsum(0).tolist()
    chosen = []
    for first, end, phrases in zip([0, *ends], ends, asked, strict=False):
        one = found[first:end]
        for rule in config.filters:
            if not rule.alone:
                passed = rule(one)
                dropped.update(_dropped(rule, passed))
                one = one[passed]
        one = one[: config.max_boxes]
        chosen.append(Detections(one.boxes.numpy(), [phrases[q] for q in one.phrases.tolist()], one.scores.numpy()))
    return chosen


def _dropped(rule: Filter, passed: Tensor) -> dict[str, int]:
    number = len(passed) - int(passed.sum())
    return {rule.name: number} if number else {}
