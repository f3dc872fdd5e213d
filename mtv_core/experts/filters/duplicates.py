"""Boxes of different phrases on the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mtv_core.experts.filters.base import Boxes, Filter

if TYPE_CHECKING:
    from torch import Tensor


class Duplicates(Filter, frozen=True):
    """One thing under several names ("man", "rider"), or one that is there under the name of one that is not: the best score stays."""

    alone: ClassVar[bool] = False

    name: Literal["duplicates"] = "duplicates"
    iou: float = Field(0.9, gt=0, lt=1, description="of two boxes that overlap more than this only the one with the better score is kept")

    def __call__(self, found: Boxes) -> Tensor:
        """Which boxes are kept [N]: greedily, best first."""
        kept = found.scores >= 0
        for better, overlap_N in enumerate(found.iou()):
            if kept[better]:
                same = overlap_N > self.iou
                same[: better + 1] = False
                kept &= ~same
        return kept
