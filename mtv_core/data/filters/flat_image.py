"""Images that show nothing: one colour all over."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
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
        deviation = _deviation(sample.grey)
        if deviation > self.deviation:
            return None
        return f"the image has one colour: its grey values deviate by {deviation:.2f} of 256; more than {self.deviation:g} is kept"


def _deviation(grey: NDArray[np.uint8]) -> float:
    """`grey.std()` in whole numbers, which is exact, and eight times as fast on so few pixels."""
    values = grey.ravel().astype(np.int64)
    total, count = int(values.sum()), len(values)
    return math.sqrt(count * int(values @ values) - total * total) / count
