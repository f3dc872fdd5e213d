"""What a sample has to pass besides being whole. A filter is one module here and one line in `FilterConfig`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from mtv_core.data.filters.base import Filter, Received
from mtv_core.data.filters.caption_letters import CaptionLetters
from mtv_core.data.filters.caption_repetition import CaptionRepetition
from mtv_core.data.filters.caption_words import CaptionWords
from mtv_core.data.filters.flat_image import FlatImage
from mtv_core.data.filters.max_aspect import MaxAspect
from mtv_core.data.filters.meta_range import MetaRange
from mtv_core.data.filters.min_side import MinSide
from mtv_core.data.filters.num_bytes import NumBytes
from mtv_core.data.filters.script import Script
from mtv_core.data.filters.url_domain import UrlDomain

__all__ = ["DEFAULT", "Filter", "FilterConfig", "Received"]


def _named(value: Any) -> Any:
    """A bare name stands for the filter with its own defaults."""
    return {"name": value} if isinstance(value, str) else value


FilterConfig = Annotated[
    CaptionLetters | CaptionRepetition | CaptionWords | FlatImage | MaxAspect | MetaRange | MinSide | NumBytes | Script | UrlDomain,
    Field(discriminator="name"),
    BeforeValidator(_named),
]

# Mild: what no training can use. What is a matter of taste (language, size, aspect, scores) is left to the user.
DEFAULT: tuple[FilterConfig, ...] = (CaptionLetters(), CaptionRepetition(), FlatImage())
