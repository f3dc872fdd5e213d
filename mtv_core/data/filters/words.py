"""Words and letters of any language."""

from __future__ import annotations

import re
import unicodedata

# Han, kana, Thai, Lao, Khmer and Myanmar are written without blanks: each of their characters counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}](?:[^\\s{_UNSPACED}]*[^\\W_{_UNSPACED}])?")


def words(text: str) -> list[str]:
    """The words of a text in small letters, without the punctuation around them: "Levi's – 501" → ["levi's", "501"]."""
    return _WORD.findall(text.lower())


def is_letter(char: str) -> bool:
    """Whether a character is a letter, or an accent or vowel sign of one. What selects the look of an emoji is none."""
    if char.isalpha():
        return True
    return char >= "\u0300" and not "\ufe00" <= char <= "\ufe0f" and char < "\U000e0000" and unicodedata.category(char) in ("Mn", "Mc")
