"""Pictures of a report: rows chosen by chance, as one sheet and as thumbnails for a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

CELL = 208  # px, width and height of a picture on a sheet
COLUMNS = 6
_GAP, _LINE, _LINES = 10, 15, 3
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
    picture.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def thumbnails(rows: pa.Table) -> list[Thumbnail]:
    """Of rows with uid, image and caption, in their order. One row is in memory decoded at a time."""
    found = []
    for row in rows.to_pylist():
        small, size = _opened(row["image"])
        enlarge = max(1, CELL // max(small.size))  # a picture of a few pixels is seen as such
        if enlarge > 1:
            small = small.resize((small.width * enlarge, small.height * enlarge), Image.Resampling.NEAREST)
        small.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        found.append(Thumbnail(row["uid"], row["caption"], small, size))
    return found


def _opened(data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    """A picture at about twice the size it is shown in, and its own size; an empty one if it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about EXIF, which is stored as it came
        try:
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
                image.draft("RGB", (2 * CELL, 2 * CELL))
                return image.convert("RGB"), size
        except (OSError, ValueError, SyntaxError):  # other decoders are more patient than Pillow
            return Image.new("RGB", (CELL, CELL), _FAINT), (0, 0)


def sheet(tiles: Sequence[Thumbnail], columns: int = COLUMNS) -> Image.Image | None:
    """Pictures with their captions on one sheet; None if there are none. Letters that the font lacks are boxes: the page has them right."""
    if not tiles:
        return None
    columns = min(columns, len(tiles))
    height = CELL + _LINES * _LINE + _GAP
    rows = -(-len(tiles) // columns)
    paper = Image.new("RGB", (columns * (CELL + _GAP) + _GAP, rows * (height + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(paper)
    font = ImageFont.load_default(size=12)
    for i, tile in enumerate(tiles):
        x, y = _GAP + (i % columns) * (CELL + _GAP), _GAP + (i // columns) * (height + _GAP)
        draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=_FAINT)
        paper.paste(tile.picture, (x + (CELL - tile.picture.width) // 2, y + (CELL - tile.picture.height) // 2))
        for n, line in enumerate(wrapped(tile.caption, font, CELL, _LINES)):
            draw.text((x, y + CELL + 4 + n * _LINE), line, fill=_INK, font=font)
    return paper


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, lines: int) -> list[str]:
    """Text in at most `lines` lines of `width` px, cut with an ellipsis; a word that is too long is broken."""
    found: list[str] = []
    rest = text[:500]
    while rest and len(found) < lines:
        fits = next((n for n in range(min(len(rest), 120), 0, -1) if font.getlength(rest[:n]) <= width), 1)
        cut = (
            fits if fits == len(rest) or " " not in rest[:fits].strip() else rest[:fits].rstrip().rfind(" ") if rest[fits] != " " else fits
        )
        found.append(rest[: max(cut, 1)].strip())
        rest = rest[max(cut, 1) :].strip()
    if rest and found:
        last = found[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        found[-1] = last + "…"
    return found
