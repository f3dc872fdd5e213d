"""Boxes that are nearly the whole picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mtv_core.experts.filters.base import Boxes, Filter

if TYPE_CHECKING:
    from torch import Tensor


class FrameFilling(Filter, frozen=True):
    """A detector that is asked for a scene ("kitchen", "winter day") answers with the frame. It says what, and not where."""

    alone: ClassVar[bool] = True

    name: Literal["frame_filling"] = "frame_filling"
    max_area: float = Field(0.95, gt=0, lt=1, description="largest share of the picture that a kept box covers")

    def __call__(self, found: Boxes) -> Tensor:
        """Which boxes are kept [N]."""
        return found.areas <= self.max_area
