"""Pictures side by side, so that a person can judge a threshold: what was taken for the same picture, and what was not by a little."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 160  # px, of the square that each picture is fitted into
_GAP, _LINE = 8, 15
_BACKGROUND, _FRAME, _INK, _FAINT = (250, 250, 250), (225, 225, 225), (40, 40, 40), (120, 120, 120)
_SAME, _OTHER = (213, 94, 0), (0, 114, 178)  # told apart by people with any colour vision: Okabe and Ito (2008)


@dataclass(frozen=True)
class PairPictures:
    """Two pictures as JPEGs, and what they are to each other."""

    left: bytes
    right: bytes
    left_name: str
    right_name: str
    distance: int  # bits of 64
    same: bool  # within the threshold


def pairs_gallery(pairs: Sequence[PairPictures], columns: int = 3, verdicts: tuple[str, str] = ("leak", "kept")) -> Image.Image:
    """Pairs as a grid: both pictures, their distance and what came of it, and their names.

    Args:
        pairs: in the order to be shown.
        columns: pairs in a row.
        verdicts: what pairs within the threshold are called, and the others.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs to show")
    columns = min(columns, len(pairs))
    width, height = 2 * SIDE + 3 * _GAP, SIDE + 3 * _LINE + 3 * _GAP
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(size=13), ImageFont.load_default(size=11)
    for index, pair in enumerate(pairs):
        left, top = index % columns * width, index // columns * height
        draw.rectangle((left + 2, top + 2, left + width - 3, top + height - 3), outline=_SAME if pair.same else _OTHER, width=2)
        for x, picture in ((left + _GAP, pair.left), (left + SIDE + 2 * _GAP, pair.right)):
            draw.rectangle((x, top + _GAP, x + SIDE - 1, top + _GAP + SIDE - 1), fill=_FRAME)
            fitted = _fitted(picture)
            sheet.paste(fitted, (x + (SIDE - fitted.width) // 2, top + _GAP + (SIDE - fitted.height) // 2))
        below = top + SIDE + 2 * _GAP
        words = f"{pair.distance} of 64 bits: {verdicts[0] if pair.same else verdicts[1]}"
        draw.text((left + _GAP, below - 3), words, fill=_SAME if pair.same else _OTHER, font=bold)
        for line, name in enumerate((pair.left_name, pair.right_name), 1):
            draw.text(
                (left + _GAP, below + line * _LINE), _cut(name, plain, width - 2 * _GAP), fill=_INK if line == 1 else _FAINT, font=plain
            )
    return sheet


def _fitted(picture: bytes) -> Image.Image:
    """A picture scaled to the square, small ones up as well."""
    with Image.open(io.BytesIO(picture)) as image:
        image.draft("RGB", (SIDE, SIDE))
        scale = SIDE / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def _cut(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A name that fits, its beginning and its end kept."""
    shown, half = name, len(name) // 2
    while half > 1 and font.getlength(shown) > width:
        half -= 1
        shown = f"{name[:half]}…{name[-half:]}"
    return shown
