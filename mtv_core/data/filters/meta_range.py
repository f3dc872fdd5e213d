"""Numbers that came with the sample: similarity, aesthetic score, probability of a watermark."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mtv_core.data.filters.base import Filter, Missing, Received, bounds, check_bounds, within
from mtv_core.data.meta import find


class MetaRange(Filter, frozen=True):
    """A number in the sample's own JSON, as LAION and img2dataset have it: `similarity`, `punsafe`, `pwatermark`."""

    reason: ClassVar[str] = "MetaOutOfRange"

    name: Literal["meta_range"] = "meta_range"
    field: str = Field(min_length=1, description="name in the JSON; `scores.aesthetic` is `aesthetic` in the object `scores`")
    minimum: float | None = Field(None, allow_inf_nan=False, description="smallest value that is kept")
    maximum: float | None = Field(None, allow_inf_nan=False, description="largest value that is kept")
    missing: Missing = Field("keep", description="what becomes of a sample whose JSON has no such number, or NaN")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        check_bounds(self.minimum, self.maximum)
        return self

    @property
    def told_apart_by(self) -> str:
        """The label, or the field: `MetaOutOfRange:punsafe`."""
        return self.label or re.sub(r"[^\w.-]", "_", self.field)[:40]

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        value = _number(find(sample.meta, self.field))
        if value is None:
            return None if self.missing == "keep" else f"the sample's JSON has no number {self.field!r}"
        if within(value, self.minimum, self.maximum):
            return None
        return f"{self.field} is {value:g}; {bounds(self.minimum, self.maximum)} is kept"


def _number(value: Any) -> float | None:
    """A number, or text that is one; neither NaN nor a truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # OverflowError: JSON has integers of any length
        return None
    return None if math.isnan(number) else number
