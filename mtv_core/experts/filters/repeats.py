"""Many boxes of one phrase."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mtv_core.experts.filters.base import Boxes, Filter

if TYPE_CHECKING:
    from torch import Tensor


class Repeats(Filter, frozen=True):
    """A crowd ("people", "windows") would take all of a picture's places: of each phrase only the best few stay."""

    alone: ClassVar[bool] = False

    name: Literal["repeats"] = "repeats"
    max_boxes: int = Field(5, ge=1, description="boxes kept of one phrase in a picture, the best")

    def __call__(self, found: Boxes) -> Tensor:
        """Which boxes are kept [N]."""
        same_NN = found.phrases[:, None] == found.phrases
        better_N = same_NN.tril(diagonal=-1).sum(dim=1)  # boxes are best first
        return better_N < self.max_boxes
