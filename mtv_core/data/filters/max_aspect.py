"""Banners and columns."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mtv_core.data.filters.base import Filter, Received


class MaxAspect(Filter, frozen=True):
    """Long side over short side. `ingest.max_aspect` is the hard limit beyond which nothing is decoded; this is a choice."""

    reason: ClassVar[str] = "AspectAboveMaximum"

    name: Literal["max_aspect"] = "max_aspect"
    ratio: float = Field(3.0, ge=1, description="long side over short side; images beyond it are refused")

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        long, short = max(sample.width, sample.height), min(sample.width, sample.height)
        return None if long <= self.ratio * short else f"{sample.width} × {sample.height} px; the aspect is at most {self.ratio:g}"
