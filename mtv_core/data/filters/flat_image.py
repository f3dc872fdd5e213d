"""Images that show nothing: one colour all over."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mtv_core.data.filters.base import Filter, Received


class FlatImage(Filter, frozen=True):
    """Standard deviation of the image, grey and scaled to 32 × 32. Empty pages, placeholders of one colour, blank tiles."""

    reason: ClassVar[str] = "FlatImage"
    needs_pixels: ClassVar[bool] = True

    name: Literal["flat_image"] = "flat_image"
    deviation: float = Field(1.0, ge=0, le=128, description="grey levels of 256; images at or below it are refused")

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        assert sample.grey is not None
        deviation = float(sample.grey.std())
        if deviation > self.deviation:
            return None
        return f"the image has one colour: its grey values deviate by {deviation:.2f} of 256; more than {self.deviation:g} is kept"
