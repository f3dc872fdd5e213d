"""Captions that are numbers, codes and signs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mtv_core.data.filters.base import Filter, Received
from mtv_core.data.filters.words import is_letter


class CaptionLetters(Filter, frozen=True):
    """Share of letters among the characters of the caption that are not white space. Vowel signs and accents count with their letters."""

    reason: ClassVar[str] = "TooFewLetters"

    name: Literal["caption_letters"] = "caption_letters"
    minimum: float = Field(0.25, ge=0, le=1, description="share of letters, 0 to 1; captions below it are refused")

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        text = sample.caption.replace(" ", "")
        letters = sum(map(str.isalpha if text.isascii() else is_letter, text))
        if text and letters >= self.minimum * len(text):
            return None
        return f"{letters} of {len(text)} characters of the caption are letters; a share of at least {self.minimum:g} is kept"
