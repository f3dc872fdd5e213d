"""Captions by the script they are written in."""

from __future__ import annotations

import functools
import re
from typing import ClassVar, Literal

from pydantic import Field

from mtv_core.data.filters.base import Filter, Received
from mtv_core.data.filters.words import is_letter

ScriptName = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "armenian", "georgian", "devanagari", "bengali", "gurmukhi", "gujarati", "tamil",
    "telugu", "kannada", "malayalam", "sinhala", "thai", "lao", "khmer", "myanmar", "tibetan", "ethiopic", "mongolian", "han", "kana",
    "hangul",
]  # fmt: skip

# Blocks of Unicode, letters and their signs.
_RANGES: dict[ScriptName, str] = {
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u0250-\u02af\u1d00-\u1d25\u1d2c-\u1d5c\u1d62-\u1d65\u1d6b-\u1d77\u1d79-\u1dbe\u1e00-\u1eff"
    "\u2071\u207f\u2c60-\u2c7f\ua722-\ua787\ua78b-\ua7ff\uab30-\uab64\ufb00-\ufb06\uff21-\uff3a\uff41-\uff5a",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u1d2b\u2de0-\u2dff\ua640-\ua69f",
    "greek": "\u0370-\u03e1\u03f0-\u03ff\u1d26-\u1d2a\u1f00-\u1fff",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufefc",
    "hebrew": "\u0590-\u05ff\ufb1d-\ufb4f",
    "armenian": "\u0530-\u058f\ufb13-\ufb17",
    "georgian": "\u10a0-\u10ff\u1c90-\u1cbf\u2d00-\u2d2f",
    "devanagari": "\u0900-\u097f\ua8e0-\ua8ff",
    "bengali": "\u0980-\u09ff",
    "gurmukhi": "\u0a00-\u0a7f",
    "gujarati": "\u0a80-\u0aff",
    "tamil": "\u0b80-\u0bff",
    "telugu": "\u0c00-\u0c7f",
    "kannada": "\u0c80-\u0cff",
    "malayalam": "\u0d00-\u0d7f",
    "sinhala": "\u0d80-\u0dff",
    "thai": "\u0e00-\u0e7f",
    "lao": "\u0e80-\u0eff",
    "khmer": "\u1780-\u17ff",
    "myanmar": "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff",
    "tibetan": "\u0f00-\u0fff",
    "ethiopic": "\u1200-\u139f\u2d80-\u2ddf\uab01-\uab2e",
    "mongolian": "\u1800-\u18af",
    "han": "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "kana": "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f",
    "hangul": "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff\uffa1-\uffdc",
}


class Script(Filter, frozen=True):
    """Share of the caption's letters that are of given scripts. The script, not the language: latin keeps Vietnamese and Turkish."""

    reason: ClassVar[str] = "OtherScript"

    name: Literal["script"] = "script"
    scripts: tuple[ScriptName, ...] = Field(min_length=1, description="wanted scripts; Japanese is han and kana")
    minimum: float = Field(0.5, ge=0, le=1, description="share of letters of these scripts, 0 to 1; captions without any letter pass")

    @functools.cached_property
    def _letter(self) -> re.Pattern[str]:
        return re.compile("[" + "".join(_RANGES[script] for script in self.scripts) + "]")

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        # Accents that are characters of their own belong to every script.
        letters = [char for char in sample.caption if is_letter(char) and not "\u0300" <= char <= "\u036f"]
        wanted = sum(1 for char in letters if self._letter.match(char))
        if wanted >= self.minimum * len(letters):
            return None
        return f"{wanted} of {len(letters)} letters are {' or '.join(self.scripts)}; a share of at least {self.minimum:g} is kept"
