"""Files that are too small or too large for what they show."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from mtv_core.data.filters.base import Filter, Received, bounds, check_bounds, within


class NumBytes(Filter, frozen=True):
    """Bytes of the image file as received."""

    reason: ClassVar[str] = "FileSizeOutOfRange"

    name: Literal["num_bytes"] = "num_bytes"
    minimum: int | None = Field(None, ge=0, description="bytes")
    maximum: int | None = Field(None, ge=0, description="bytes")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        check_bounds(self.minimum, self.maximum)
        return self

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        if within(sample.num_bytes, self.minimum, self.maximum):
            return None
        return f"the image file has {sample.num_bytes} bytes; {bounds(self.minimum, self.maximum)} are kept"
