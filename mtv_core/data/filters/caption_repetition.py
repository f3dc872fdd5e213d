"""Captions that say one word over and over: lists of keywords."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

from pydantic import Field

from mtv_core.data.filters.base import Filter, Received
from mtv_core.data.filters.words import words


class CaptionRepetition(Filter, frozen=True):
    """One word that occurs often and is much of the caption. Both bounds have to be passed: a long caption may say 'the' ten times."""

    reason: ClassVar[str] = "RepetitiveCaption"

    name: Literal["caption_repetition"] = "caption_repetition"
    times: int = Field(5, ge=1, description="a word may occur so often whatever its share")
    share: float = Field(0.4, ge=0, le=1, description="of all words; a word may have so much of the caption however often it occurs")

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        text = sample.caption
        if len(text) <= self.times:  # as many words need at least as many characters
            return None
        found = words(text)
        if len(found) <= self.times:
            return None
        word, count = Counter(found).most_common(1)[0]
        if count <= self.times or count <= self.share * len(found):
            return None
        return f"{word!r} is {count} of the {len(found)} words of the caption"
