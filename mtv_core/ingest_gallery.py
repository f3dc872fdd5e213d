"""Pictures of a report: rows chosen by chance, as one sheet and as thumbnails for a page."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CELL = 208  # px, width and height of a picture on a sheet
COLUMNS = 6
_GAP, _LINE, _LINES = 10, 15, 3
_LONGEST = 120  # letters of a line
_PAPER, _INK, _FAINT = (255, 255, 255), (31, 41, 55), (240, 242, 245)


@dataclass(frozen=True)
class Thumbnail:
    """A small picture and what is said of it."""

    uid: str
    caption: str
    picture: Image.Image
    size: tuple[int, int]  # of the stored image, px

    @property
    def uri(self) -> str:
        """The picture itself, for a page that fetches nothing."""
        return "data:image/jpeg;base64," + base64.b64encode(jpeg(self.picture, 82)).decode()


def jpeg(picture: Image.Image, quality: int = 88) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    _rgb(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def thumbnails(rows: pa.Table) -> list[Thumbnail]:
    """Of rows with uid, image and caption, in their order. One row is in memory decoded at a time."""
    found = []
    for row in rows.to_pylist():
        small, size = _opened(row["image"])
        enlarge = max(1, CELL // max(small.size))  # a picture of a few pixels is seen as such
        if enlarge > 1:
            small = small.resize((small.width * enlarge, small.height * enlarge), Image.Resampling.NEAREST)
        small.thumbnail((CELL, CELL), Image.Resampling.HAMMING)
        found.append(Thumbnail(row["uid"], row["caption"], small, size))
    return found


def _opened(data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    """A picture at one to two times the size it is shown in, where it has that many pixels, and its own size; an empty one if it cannot be
    read. A JPEG is decoded at a half, a quarter or an eighth, which is the cheapest way to make it smaller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF, which is stored as it came
        try:
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
                longest = max(size)
                image.draft("RGB", (max(size[0] * CELL // longest, 1), max(size[1] * CELL // longest, 1)))
                image.load()
                return _rgb(image), size
        except (OSError, ValueError, SyntaxError):  # other decoders are more patient than Pillow
            return Image.new("RGB", (CELL, CELL), _FAINT), (0, 0)


def _rgb(picture: Image.Image) -> Image.Image:
    """Itself, if it is RGB: Pillow would make a copy."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def sheet(tiles: Sequence[Thumbnail], columns: int = COLUMNS) -> Image.Image | None:
    """Pictures with their captions on one sheet; None if there are none. Letters that the font lacks are boxes: the page has them right."""
    if not tiles:
        return None
    columns = min(columns, len(tiles))
    height = CELL + _LINES * _LINE + _GAP
    rows = -(-len(tiles) // columns)
    paper = Image.new("RGB", (columns * (CELL + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(paper)
    small = font()
    for i, tile in enumerate(tiles):
        x, y = _GAP + (i % columns) * (CELL + _GAP), _GAP + (i // columns) * (height + _GAP)
        draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=_FAINT)
        paper.paste(tile.picture, (x + (CELL - tile.picture.width) // 2, y + (CELL - tile.picture.height) // 2))
        for n, line in enumerate(wrapped(tile.caption, small, CELL, _LINES)):
            draw.text((x, y + CELL + 4 + n * _LINE), line, fill=_INK, font=small)
    return paper


@functools.cache
def font(size: int = 11) -> _Font:
    """Matplotlib's, which knows accents, Cyrillic, Greek and Arabic; Pillow's own has no letter beyond ASCII."""
    found = importlib.util.find_spec("matplotlib")  # not imported, which takes long
    if found is not None and found.origin is not None:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(str(Path(found.origin).with_name("mpl-data") / "fonts/ttf/DejaVuSans.ttf"), size)
    return ImageFont.load_default(size=size + 1)


def wrapped(text: str, font: _Font, width: float, lines: int) -> list[str]:
    """Text in at most `lines` lines of `width` px, cut with an ellipsis; a word that is too long is broken."""
    found: list[str] = []
    rest = text[:500]
    while rest and len(found) < lines:
        fits = max(_fitting(rest[:_LONGEST], font, width), 1)
        cut = (
            fits if fits == len(rest) or " " not in rest[:fits].strip() else rest[:fits].rstrip().rfind(" ") if rest[fits] != " " else fits
        )
        found.append(rest[: max(cut, 1)].strip())
        rest = rest[max(cut, 1) :].strip()
    if rest and found:
        found[-1] = found[-1][: _fitting(found[-1], font, width, "…")] + "…"
    return found


def _fitting(text: str, font: _Font, width: float, end: str = "") -> int:
    """How many letters of a text fit, with something at their end. To measure is slow: guessed from the letters alone, then made right."""
    room, fits = width - _alone(font, end), 0
    while fits < len(text) and (room := room - _alone(font, text[fits])) >= 0:
        fits += 1
    while fits < len(text) and font.getlength(text[: fits + 1] + end) <= width:
        fits += 1
    while fits and font.getlength(text[:fits] + end) > width:
        fits -= 1
    return fits


@functools.lru_cache(4096)
def _alone(font: _Font, text: str) -> float:
    return font.getlength(text)
