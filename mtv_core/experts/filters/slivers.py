"""Boxes that are much longer than wide."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mtv_core.experts.filters.base import Boxes, Filter

if TYPE_CHECKING:
    from torch import Tensor


class Slivers(Filter, frozen=True):
    """Strips along an edge, a horizon or a frame."""

    alone: ClassVar[bool] = True

    name: Literal["slivers"] = "slivers"
    max_aspect: float = Field(20, gt=1, description="largest ratio, in px, of a kept box's longer side to its shorter")

    def __call__(self, found: Boxes) -> Tensor:
        """Which boxes are kept [N]."""
        sides_N2 = found.pixels[:, 2:] - found.pixels[:, :2]
        return sides_N2.amax(dim=-1) <= self.max_aspect * sides_N2.amin(dim=-1)
