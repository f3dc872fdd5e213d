"""Boxes that are much weaker than the best of their phrase."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mtv_core.experts.filters.base import Boxes, Filter

if TYPE_CHECKING:
    from torch import Tensor


class Weak(Filter, frozen=True):
    """Where a phrase was found for sure, its faint second answers are mostly parts of it and things alike."""

    alone: ClassVar[bool] = False

    name: Literal["weak"] = "weak"
    share: float = Field(0.25, gt=0, lt=1, description="smallest share of the best score of its phrase in the picture that a kept box has")

    def __call__(self, found: Boxes) -> Tensor:
        """Which boxes are kept [N]."""
        same_NN = found.phrases[:, None] == found.phrases
        best_N = found.scores.where(same_NN, 0.0).amax(dim=1) if len(found) else found.scores
        return found.scores >= self.share * best_N
