"""Small images."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mtv_core.data.filters.base import Filter, Received


class MinSide(Filter, frozen=True):
    """The shorter side of the image as received. `ingest.min_side` is the hard limit below which nothing is decoded; this is a choice."""

    reason: ClassVar[str] = "SideBelowMinimum"

    name: Literal["min_side"] = "min_side"
    px: int = Field(ge=1, description="px; images with a shorter side are refused")

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        if min(sample.width, sample.height) >= self.px:
            return None
        return f"{sample.width} × {sample.height} px; sides are at least {self.px} px"
