"""Rules against label noise, over the boxes of one picture. A filter is one module here and one line in `FilterConfig`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mtv_core.experts.filters.base import Boxes, Filter
from mtv_core.experts.filters.duplicates import Duplicates
from mtv_core.experts.filters.frame_filling import FrameFilling
from mtv_core.experts.filters.repeats import Repeats
from mtv_core.experts.filters.slivers import Slivers
from mtv_core.experts.filters.weak import Weak

__all__ = ["Boxes", "Filter", "FilterConfig"]


def _named(value: Any) -> Any:
    """A bare name stands for the filter with its own defaults."""
    return {"name": value} if isinstance(value, str) else value


FilterConfig = Annotated[
    Duplicates | FrameFilling | Repeats | Slivers | Weak,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
