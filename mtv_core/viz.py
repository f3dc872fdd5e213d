"""Pictures of labels for people: boxes with their phrases on the image, the depth map beside it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mtv_core.data.depth import decode
from mtv_core.ingest_gallery import font as font_of
from mtv_core.ingest_gallery import wrapped

TILE = 224  # height of an image in a gallery, px
_LINES = 3  # of a caption
_WORDS = 12  # boxes of a picture that are named: of more nobody sees the picture
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


def colours(phrases: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Phrase → colour, in the order in which they come; six colours, then again."""
    return {phrase: _COLOURS[i % len(_COLOURS)] for i, phrase in enumerate(dict.fromkeys(phrases))}


def free_place(
    wanted: tuple[float, float],
    size: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
    room: tuple[float, float],
) -> tuple[float, float] | None:
    """Where a label of some width and height goes: as near to the place it wants as nothing lies there yet.

    Args:
        wanted: its left upper corner.
        size: width and height.
        taken: left, top, right, bottom of what lies there.
        room: width and height of the picture, which it does not leave.

    Returns:
        its left upper corner; None if everything around is full.
    """
    width, height = size

    def inside(x: float, y: float) -> tuple[float, float]:
        return max(0.0, min(x, room[0] - width)), max(0.0, min(y, room[1] - height))

    tried = [inside(wanted[0] + right * width, wanted[1] + down * height) for right, down in _STEPS]
    free = [(x, y) for x, y in tried if not any(x < r and left < x + width and y < b and top < y + height for left, top, r, b in taken)]
    return min(free, key=lambda place: (place[0] - wanted[0]) ** 2 + (place[1] - wanted[1]) ** 2, default=None)


_STEPS = sorted(
    ((right / 2, down) for right in range(-4, 5) for down in range(-6, 7)), key=lambda step: (abs(step[0]) + abs(step[1]), step)
)


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
    picture = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = font_of(max(10, min(picture.size) // 24))
    of_phrase = colours(phrases or ())
    array = np.asarray(boxes if boxes is not None else [], np.float32).reshape(-1, 4)
    tags: list[tuple[str, tuple[float, float], tuple[int, int, int]]] = []
    for i, (left, top, right, bottom) in enumerate(array):
        phrase = phrases[i] if phrases else ""
        colour = of_phrase.get(phrase, _COLOURS[0])
        corner = (left * picture.width, top * picture.height)
        opposite = (max(right * picture.width - 1, corner[0]), max(bottom * picture.height - 1, corner[1]))
        draw.rectangle((*corner, *opposite), outline=colour, width=max(2, min(scale, 3)))
        words = f"{phrase} {scores[i]:.2f}" if scores is not None else phrase
        if words.strip():
            tags.append((words, corner, colour))
    if scores is not None:
        tags = [tags[i] for i in np.argsort([-score for score in scores], kind="stable")]  # the surest where room is short
    taken: list[tuple[float, float, float, float]] = []  # words are written last, over all boxes, and none over another
    for words, corner, colour in tags[:_WORDS]:
        _tag(draw, words, corner, colour, font, picture.size, taken)
    if depth is None:
        return picture
    both = Image.new("RGB", (2 * picture.width, picture.height), _BACKGROUND)
    both.paste(picture, (0, 0))
    both.paste(colour_depth(depth).resize(picture.size, Image.Resampling.BILINEAR), (picture.width, 0))
    return both


def _tag(
    draw: ImageDraw.ImageDraw,
    words: str,
    corner: tuple[float, float],
    colour: tuple[int, int, int],
    font: Any,
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Words on a patch of the box's colour, above the box or near it, never beyond the picture or over others; none if there is no room."""
    while len(words) > 8 and font.getlength(words) > size[0] - 4:
        words = words[: len(words) // 2 - 2] + "…" + words[len(words) // 2 + 1 :]  # the score stays
    left, _, right, bottom = draw.textbbox((0, 0), words, font=font)
    width, height = right - left + 4, bottom + 2
    y = corner[1] - height if corner[1] >= height else corner[1]
    place = free_place((corner[0], y), (width, height), taken, size)
    if place is None:
        return
    x, y = place
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 130 else (255, 255, 255)
    draw.text((x + 2, y), words, fill=ink, font=font)
    taken.append((x, y, x + width, y + height))


def gallery(rows: pa.Table, columns: int = 4) -> Image.Image:
    """Rows of the samples table as a grid: each image with its labels, and its caption below.

    Columns `depth`, `boxes`, `phrases`, `scores` are shown where they are and are not null.

    Raises:
        ValueError: there are no rows.
    """
    return sheet([tile(row) for row in rows.to_pylist()], columns)


def sheet(tiles: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Tiles as a grid.

    Raises:
        ValueError: there are none.
    """
    if not tiles:
        raise ValueError("there are no rows to show")
    lines = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    widths = [max(tile.width for tile in tiles[column::columns]) + 8 for column in range(min(columns, len(tiles)))]
    heights = [max(tile.height for tile in line) + 8 for line in lines]
    paper = Image.new("RGB", (sum(widths), sum(heights)), _BACKGROUND)
    for row, line in enumerate(lines):
        for column, one in enumerate(line):
            paper.paste(one, (sum(widths[:column]) + 4, sum(heights[:row]) + 4))
    return paper


def tile(row: Mapping[str, Any], before: Mapping[str, Any] | None = None, note: str = "") -> Image.Image:
    """One row: its image with its labels, and its caption below.

    Args:
        row: image, caption, and labels, which may be null or missing.
        before: labels of one expert or more that it had before, shown beside those of now.
        note: a line above the caption.
    """
    image = _opened(row["image"])
    named = [("", _labelled(image, row))]
    if before is not None:
        named = [("", _labelled(image, {}))] if "depth" in before else []
        for name, labels in (("before", before), ("now", row)):
            named += [(name, _labelled(image, {**labels, "depth": None}))] if "boxes" in before else []
            named += [(name, _depth_alone(labels["depth"], image))] if "depth" in before else []
    width, font = sum(picture.width + 2 for _, picture in named) - 2, font_of()
    width = max(width, TILE // 2)  # words need room below a narrow picture
    words = ([note] if note else []) + wrapped(" ".join((row.get("caption") or "").split()), font, width, _LINES)
    paper = Image.new("RGB", (width, named[0][1].height + 16 * len(words) + 4), _BACKGROUND)
    left = 0
    for name, picture in named:
        paper.paste(picture, (left, 0))
        if name:
            _patch(ImageDraw.Draw(paper), name, (left, picture.height - 18), font)
        left += picture.width + 2
    for i, line in enumerate(words):
        ImageDraw.Draw(paper).text((0, paper.height - 16 * (len(words) - i) - 2), line, fill=_INK, font=font)
    return paper


def _patch(draw: ImageDraw.ImageDraw, words: str, corner: tuple[int, int], font: Any) -> None:
    draw.rectangle((*corner, corner[0] + font.getlength(words) + 8, corner[1] + 17), fill=_INK)
    draw.text((corner[0] + 4, corner[1] + 1), words, fill=(255, 255, 255), font=font)


def _opened(data: bytes) -> Image.Image:
    """A stored picture; a grey one if it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF, large pictures: ingest decided what is stored
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.draft("RGB", (2 * TILE, 2 * TILE))  # a large JPEG is decoded at an eighth, a quarter or a half
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError):
            return Image.new("RGB", (TILE, TILE), _UNKNOWN)


def _depth_alone(depth: bytes | None, image: Image.Image) -> Image.Image:
    size = _size(image)
    if depth is None:
        return Image.new("RGB", size, _UNKNOWN)
    return colour_depth(decode(depth)).resize(size, Image.Resampling.BILINEAR)


def _size(image: Image.Image) -> tuple[int, int]:
    """What a picture is shown in: TILE high, or less if it would be too wide."""
    scale = min(TILE / image.height, 1.5 * TILE / image.width)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _labelled(image: Image.Image, labels: Mapping[str, Any]) -> Image.Image:
    depth = decode(labels["depth"]) if labels.get("depth") is not None else None
    # Drawn at the size it is shown in, so that lines and words are as thick on every picture.
    scaled = image.resize(_size(image), Image.Resampling.LANCZOS)
    if labels.get("boxes") is None:
        return overlay(scaled, depth)
    return overlay(scaled, depth, labels["boxes"], labels.get("phrases"), labels.get("scores"))
