"""Pictures of labels for people: boxes with their phrases on the image, the depth map beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtv_core.data.depth import decode

TILE = 224  # height of an image in a gallery, px
_BACKGROUND, _INK = (250, 250, 250), (40, 40, 40)
# Colours that are told apart by people with any colour vision: Okabe and Ito (2008), without black and yellow.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (0, 114, 178), (213, 94, 0), (204, 121, 167))
# Viridis at eight even steps: dark is far, bright is near, readable in grey too.
_VIRIDIS = np.array(
    [(68, 1, 84), (70, 50, 126), (54, 92, 141), (39, 127, 142), (31, 161, 135), (74, 193, 109), (160, 218, 57), (253, 231, 37)], np.float32
)
_UNKNOWN = (128, 128, 128)


def colour_depth(depth: NDArray[np.floating]) -> Image.Image:
    """Inverse depth [H, W] as colours: near is bright, the range is the picture's own 1st to 99th percentile, no value is grey."""
    known = np.isfinite(depth)
    low, high = np.percentile(depth[known], (1, 99)) if known.any() else (0.0, 1.0)
    position = np.clip((np.where(known, depth, low) - low) / max(high - low, 1e-9), 0, 1) * (len(_VIRIDIS) - 1)
    lower = np.minimum(position.astype(int), len(_VIRIDIS) - 2)
    share = (position - lower)[..., None]
    rgb = _VIRIDIS[lower] * (1 - share) + _VIRIDIS[lower + 1] * share
    rgb[~known] = _UNKNOWN
    return Image.fromarray(np.rint(rgb).astype(np.uint8))


def overlay(
    image: Image.Image,
    depth: NDArray[np.floating] | None = None,
    boxes: NDArray[np.floating] | Sequence[Sequence[float]] | None = None,
    phrases: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
) -> Image.Image:
    """An image with its boxes, and its depth beside it if there is one.

    Args:
        image: the stored image.
        depth: inverse depth [H, W] of the whole image, in any size.
        boxes: [N, 4] xyxy, normalised by the image.
        phrases: of the boxes.
        scores: of the boxes, 0–1.
    """
    scale = max(1, -(-TILE // max(image.size)))  # small pictures are enlarged, so that words fit
    picture = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, min(picture.size) // 20))
    colours = {phrase: _COLOURS[i % len(_COLOURS)] for i, phrase in enumerate(dict.fromkeys(phrases or ()))}
    for i, (left, top, right, bottom) in enumerate(np.asarray(boxes if boxes is not None else [], np.float32).reshape(-1, 4)):
        phrase = phrases[i] if phrases else ""
        colour = colours.get(phrase, _COLOURS[0])
        corner = (left * picture.width, top * picture.height)
        draw.rectangle((*corner, right * picture.width - 1, bottom * picture.height - 1), outline=colour, width=max(2, scale))
        words = f"{phrase} {scores[i]:.2f}" if scores is not None else phrase
        if words.strip():
            _tag(draw, words, corner, colour, font, picture.size)
    if depth is None:
        return picture
    both = Image.new("RGB", (2 * picture.width, picture.height), _BACKGROUND)
    both.paste(picture, (0, 0))
    both.paste(colour_depth(depth).resize(picture.size, Image.Resampling.BILINEAR), (picture.width, 0))
    return both


def _tag(draw: ImageDraw.ImageDraw, words: str, corner: tuple[float, float], colour: Any, font: Any, size: tuple[int, int]) -> None:
    """Words on a patch of the box's colour, above the box or inside it, never beyond the picture."""
    left, _, right, bottom = draw.textbbox((0, 0), words, font=font)
    width, height = right - left + 4, bottom + 2
    x = max(0.0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2, y), words, fill=(255, 255, 255), font=font)


def gallery(rows: pa.Table, columns: int = 4) -> Image.Image:
    """Rows of the samples table as a grid: each image with its labels, and its caption below.

    Columns `depth`, `boxes`, `phrases`, `scores` are shown where they are and are not null.

    Raises:
        ValueError: there are no rows.
    """
    tiles = [_tile(row) for row in rows.to_pylist()]
    if not tiles:
        raise ValueError("there are no rows to show")
    columns = min(columns, len(tiles))
    width = max(tile.width for tile in tiles) + 8
    lines = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in line) + 8 for line in lines]
    sheet = Image.new("RGB", (columns * width, sum(heights)), _BACKGROUND)
    for row, line in enumerate(lines):
        for column, tile in enumerate(line):
            sheet.paste(tile, (column * width + 4, sum(heights[:row]) + 4))
    return sheet


def _tile(row: dict[str, Any]) -> Image.Image:
    image = Image.open(io.BytesIO(row["image"])).convert("RGB")
    depth = decode(row["depth"]) if row.get("depth") is not None else None
    if row.get("boxes") is None:
        picture = overlay(image, depth)
    else:
        picture = overlay(image, depth, row["boxes"], row.get("phrases"), row.get("scores"))
    picture = picture.resize((max(1, round(picture.width * TILE / picture.height)), TILE))
    font = ImageFont.load_default(size=12)
    words = _wrap(row.get("caption") or "", font, picture.width)
    tile = Image.new("RGB", (picture.width, TILE + 16 * len(words) + 4), _BACKGROUND)
    tile.paste(picture, (0, 0))
    for i, line in enumerate(words):
        ImageDraw.Draw(tile).text((0, TILE + 2 + 16 * i), line, fill=_INK, font=font)
    return tile


def _wrap(text: str, font: Any, width: int, lines: int = 3) -> list[str]:
    """Text in at most `lines` lines of `width` px, cut with an ellipsis."""
    wrapped: list[str] = []
    for word in text.split():
        if wrapped and font.getlength(f"{wrapped[-1]} {word}") <= width:
            wrapped[-1] += f" {word}"
        else:
            wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " …"]
    return wrapped
