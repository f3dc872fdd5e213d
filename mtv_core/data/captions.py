"""Captions as received → captions as stored: one line of normalised text that says something, or the reason why there is none.

What is done to a text, in this order, until nothing changes any more:

1. characters that nobody sees are taken out: controls, bidirectional marks and overrides, zero-width spaces, soft hyphens, byte order
   marks, lone surrogates, private use. Joiners stay where a script or an emoji is written with them, and so do the tags of emoji flags.
2. HTML is read: entities are written out (`&amp;` → `&`), tags and comments are removed. Alternative texts come from pages, and pages
   escape twice. Only what HTML knows counts as a tag, so `<3` and `a < b` stay, and `a<b then c>d`.
3. piles of combining marks are cut to four.
4. Unicode NFC: one spelling of each letter. Not NFKC, which would change what is said: ² is not 2.
5. white space of any kind and length becomes one space.

The text as received is kept beside it, byte for byte.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import BaseModel, Field, field_validator, model_validator

from mtv_core.data.boilerplate import is_boilerplate
from mtv_core.data.sources.base import CaptionKind, RawCaption

_MARKS = "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Scripts that are written with joiners: Arabic to Myanmar, Khmer, Mongolian, the Brahmic supplements; and what emoji are made of.
_JOINED = (
    "\u0600-\u109f\u1700-\u18af\u1900-\u1cff\ua800-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00010fff\U00011000-\U00011fff"
    "\u00a9\u00ae\u2190-\u2bff\ufe0f\U0001f000-\U0001faff"
)
_INVISIBLE = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f)"  # an emoji flag with its tags: kept
    f"|(?<![{_JOINED}])[\u200c\u200d]|[\u200c\u200d](?![^\\s\u200c\u200d])"  # a joiner that joins nothing
    f"|(?<=[{_SELECTORS}])[{_SELECTORS}]"  # a selector of a selector, which can only hide something
    "|[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
    "\U000f0000-\U0010ffff]"
)
_BLANK = re.compile("[\u2800\u3164\uffa0]")  # white space to the eye, not to Unicode
_PILE = re.compile(f"([{_MARKS}]{{4}})[{_MARKS}]+")

_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")  # escaped any number of times
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_INLINE = "a|abbr|b|bdi|bdo|big|cite|code|em|font|i|kbd|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_BLOCK = (
    "blockquote|body|br|center|dd|div|dl|dt|embed|figcaption|figure|footer|h[1-6]|head|header|hr|html|iframe|img|input|li|link|meta|nav|"
    "object|ol|p|picture|pre|script|section|style|table|tbody|td|th|thead|title|tr|ul|video"
)
# What follows a tag's name: nothing, or `name=` or an attribute that HTML knows without a value. Else it is a sum: `a<b then c>d`.
_ATTRIBUTES = (
    r"(?:\s+(?:[a-z@:_][\w@:.-]*\s*=[^<>]*"
    r"|(?:allowfullscreen|async|autoplay|checked|compact|controls|defer|disabled|download|hidden|ismap|itemscope|loop|multiple|muted|"
    r"nomodule|noshade|nowrap|playsinline|readonly|required|reversed|selected)(?:[\s/][^<>]*)?))?\s*/?"
)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK}){_ATTRIBUTES}>|<!--[^<>]{{0,500}}-->|<!doctype[^<>]*>", re.IGNORECASE)
_ROUNDS = 8  # of cleaning; two are enough but for texts made to need more


class BadCaptionError(ValueError):
    """A sample without a caption that can be stored. `reason` groups, the message explains."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CaptionConfig(BaseModel, frozen=True, extra="forbid"):
    """Which captions are kept, and in which form."""

    min_chars: int = Field(1, ge=1, description="characters of the cleaned text; one may be all there is: an ideograph is a word")
    max_chars: int = Field(4096, ge=1, description="characters of the cleaned text; longer ones are pages, not captions")
    max_bytes: int = Field(32_768, ge=1, le=1 << 20, description="of a caption as received; longer ones are refused before they are read")
    max_captions: int = Field(100, ge=1, description="of one sample and kind (web, synthetic), as received; what follows is left out")
    html: bool = Field(True, description="write out entities and remove tags")
    boilerplate: bool = Field(True, description="refuse file names, bare URLs and the phrases that pages put where a caption is missing")
    patterns: tuple[str, ...] = Field(
        (), description="more boiler-plate: regular expressions that match a whole caption, whatever its case"
    )

    @field_validator("patterns")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) is more than max_chars ({self.max_chars}): no caption would be kept")
        return self


@dataclass(frozen=True)
class Caption:
    """A caption as stored."""

    text: str
    kind: CaptionKind


@dataclass(frozen=True)
class Captions:
    """The captions of a sample: what is stored, the first is the one that counts; and the first as received, which the uid is made of.

    `raw` is the first received caption that is text and not blank. It does not depend on the configuration.
    """

    kept: list[Caption]
    raw: str


def clean(text: str, markup: bool = True) -> str:
    """The text in its stored form, on one line; may be empty. `markup`: read HTML."""
    text = " ".join(text.split())
    for _ in range(_ROUNDS):
        if text.isascii() and text.isprintable() and not (markup and ("&" in text or "<" in text)):
            return text
        before, text = text, _once(text, markup)
        if text == before:
            break
    return text


def choose(received: Sequence[RawCaption], config: CaptionConfig) -> Captions:
    """The captions that are kept, in their order, each text once. A bad one among good ones is left out.

    Raises:
        BadCaptionError: not one can be kept; the reason is that of the first.
    """
    kept: dict[str, Caption] = {}
    looked_at: Counter[CaptionKind] = Counter()
    first: BadCaptionError | None = None
    for one in received:
        looked_at[one.kind] += 1
        if looked_at[one.kind] > config.max_captions:  # each kind on its own: many of the web do not push out the synthetic ones
            continue
        try:
            text = _checked(_decode(one.text, config), config)
        except BadCaptionError as error:
            first = first or error
        else:
            kept.setdefault(text, Caption(text, one.kind))
    if not kept:
        raise first or BadCaptionError(
            "NoCaption", "the sample has no caption; add one, or say where captions are (the source's `columns`)"
        )
    return Captions(list(kept.values()), _original(received))


def _original(received: Sequence[RawCaption]) -> str:
    """The first that is text and not blank, whatever the limits are: the uid is made of it. There is one: a caption was kept."""
    for one in received:
        try:
            text = one.text.decode()
        except UnicodeDecodeError:
            continue
        if text.strip():
            return text
    raise AssertionError("a caption was kept, yet none is text")


def _decode(text: bytes, config: CaptionConfig) -> str:
    if len(text) > config.max_bytes:
        raise BadCaptionError(
            "CaptionTooLong", f"the caption has {len(text)} bytes; at most {config.max_bytes} are read (ingest.captions.max_bytes)"
        )
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        looks = "; it looks like UTF-16" if text.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        raise BadCaptionError("CaptionNotUtf8", f"the caption is not UTF-8 at byte {error.start}{looks}; convert it") from None


def _checked(received: str, config: CaptionConfig) -> str:
    text = clean(received, config.html)
    if not text:
        raise BadCaptionError(
            "NoCaption", "the caption is empty" if not received.strip() else "the caption holds nothing but markup or marks"
        )
    if len(text) > config.max_chars:
        raise BadCaptionError(
            "CaptionTooLong", f"the caption has {len(text)} characters; at most {config.max_chars} are kept (ingest.captions.max_chars)"
        )
    if len(text) < config.min_chars:
        raise BadCaptionError(
            "CaptionTooShort", f"the caption {text!r} has {len(text)} characters, fewer than {config.min_chars} (ingest.captions.min_chars)"
        )
    if (config.boilerplate and is_boilerplate(text)) or (config.patterns and _extra(config.patterns).fullmatch(text)):
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise BadCaptionError("BoilerplateCaption", f"{shown!r} says nothing about the image (ingest.captions.boilerplate, .patterns)")
    return text


@functools.lru_cache(16)
def _extra(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def _once(text: str, markup: bool) -> str:
    """One round. What one step removes may have kept something for an earlier one apart."""
    text = _INVISIBLE.sub(_flag, _BLANK.sub(" ", text))
    if markup and "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), _AMPERSANDS.sub("&", text))
    if markup and "<" in text:
        text = _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", text))
    if not text.isascii():
        text = _PILE.sub(r"\1", text)
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def _flag(found: re.Match[str]) -> str:
    return found[1] or ""
