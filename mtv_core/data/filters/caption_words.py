"""Captions of too few or too many words."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from mtv_core.data.filters.base import Filter, Received, bounds, check_bounds, within
from mtv_core.data.filters.words import words


class CaptionWords(Filter, frozen=True):
    """Words of the caption. In scripts without blanks, such as Han and Thai, each character counts as one."""

    reason: ClassVar[str] = "CaptionWords"

    name: Literal["caption_words"] = "caption_words"
    minimum: int | None = Field(None, ge=0, description="words")
    maximum: int | None = Field(None, ge=0, description="words")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        check_bounds(self.minimum, self.maximum)
        return self

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        count = len(words(sample.caption))
        return None if within(count, self.minimum, self.maximum) else f"{count} words; {bounds(self.minimum, self.maximum)} are kept"
