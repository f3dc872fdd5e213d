"""A row on a page: its picture with boxes, its depth in colour, its phrases as text that can be selected, in any script.

Boxes are SVG over the picture, so they stay sharp, and hovering names them. Everything that comes from the data is escaped.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from mtv_core import viz
from mtv_core.data.depth import decode
from mtv_core.label_report_rows import Row

SIDE = 360  # px at most of a picture on a page
_LISTED = 40  # boxes that are named on a page
_DRAWN = 200  # and drawn
_ACROSS = 240  # px of a picture on a page, about: two beside each other
_LETTERS = 600  # of a caption
_TALLEST = 420  # px of a picture on a page
_WIDE = 1.8  # width in heights from which pictures are not beside each other


def figure(row: Row, revisions: Mapping[str, str]) -> str:
    """A row with everything that is to be seen of it.

    Args:
        row: the row.
        revisions: expert → revision that its labels should have; another one is named.
    """
    values = row.values
    jpeg, size = _picture(values["image"])
    uri = _uri(jpeg)
    seen = _labels(uri, size, values) if row.before is None else _change(uri, size, row.before, values)
    caption = str(values["caption"])
    cut = caption[:_LETTERS] + ("…" if len(caption) > _LETTERS else "")
    note = f'<p class="why">{escape(row.note)}</p>' if row.note else ""
    return (
        f'<figure class="row" id="{escape(values["uid"])}">{note}{seen}'
        f'<p class="caption" dir="auto" title="{escape(cut)}">{escape(cut)}</p><p class="faint"><code>{escape(values["uid"])}</code> '
        f"{values['width']} × {values['height']} px{_revisions(values, revisions)}</p></figure>"
    )


def thumbnail(row: Row) -> str:
    """A row, small: its picture with its boxes, or its depth where that is all there is; where it changed, before and now."""
    jpeg, size = _picture(row.values["image"], 160)
    uri = _uri(jpeg)

    def small(labels: Mapping[str, Any]) -> str:
        inside = _depth(labels["depth"], size) if "depth" in labels and "boxes" not in labels else _boxed(uri, size, labels, numbers=False)
        # In a square: an upright picture is as narrow as it has to be.
        return f'<div class="square"><div style="width:{100 * min(size[0] / size[1], 1):.1f}%">{inside}</div></div>'

    said = f'title="{escape(str(row.values["caption"])[:200])}"'
    if row.before is None:
        return f'<div class="thumb" {said}>{small(row.values)}</div>'
    return f'<div class="thumb pair n2" {said}>{small(row.before)}{small(row.values)}</div>'


def _labels(uri: str, size: tuple[int, int], values: Mapping[str, Any]) -> str:
    parts = [_boxed(uri, size, values)]
    if "depth" in values:
        parts.append(_depth(values["depth"], size))
    number = 1 if size[0] > _WIDE * size[1] else len(parts)  # a panorama has its depth below
    return f'<div class="pair n{number}">{"".join(parts)}</div>{_list(values) if "boxes" in values else ""}'


def _change(uri: str, size: tuple[int, int], before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Labels before and now, side by side."""

    def state(name: str, inside: str) -> str:
        return f"<div><h4>{name}</h4>{inside}</div>"

    found, wide = "", size[0] > _WIDE * size[1]
    if "boxes" in before:
        both = (state(name, _boxed(uri, size, labels) + _list(labels)) for name, labels in (("before", before), ("now", now)))
        found += f'<div class="pair n{1 if wide else 2}">{"".join(both)}</div>'
    if "depth" in before:
        both = (state(name, _depth(labels["depth"], size)) for name, labels in (("before", before), ("now", now)))
        found += f'<div class="pair n{1 if wide else 3}">{state("picture", _boxed(uri, size, {}))}{"".join(both)}</div>'
    return found


def _depth(value: bytes | None, size: tuple[int, int]) -> str:
    if value is None:
        return f'<div class="picture missing" style="{_shape(size)}">no depth label</div>'
    depth = decode(value)
    known = depth[np.isfinite(depth)]
    said = f"inverse depth {known.min():.3g} – {known.max():.3g}, near is bright" if known.size else "no value anywhere"
    picture = viz.colour_depth(depth)
    picture.thumbnail((SIDE, SIDE))
    return f'<div class="picture" style="{_shape(size)}"><img src="{_uri(_encoded(picture))}" alt="depth" title="{said}"></div>'


def _shape(size: tuple[int, int]) -> str:
    """As wide as there is room, but not too tall; never distorted, since boxes lie over it."""
    return f"aspect-ratio:{size[0]} / {size[1]};max-width:{_TALLEST * size[0] / size[1]:.0f}px"


def _boxed(uri: str, size: tuple[int, int], values: Mapping[str, Any], numbers: bool = True) -> str:
    """The picture, with boxes over it."""
    ratio = size[0] / size[1]
    width = min(_ACROSS * (2 if ratio > _WIDE else 1), _TALLEST * ratio)  # as on the page, so that numbers are as large as words
    height = width / ratio
    phrases, scores = values.get("phrases") or [], values.get("scores") or []
    colours = colours_of(phrases)
    shapes, badges = [], []
    order = np.argsort([-_area(box) for box in values.get("boxes") or []], kind="stable")[:_DRAWN]  # small ones over large ones
    for i in map(int, order):
        left, top, right, bottom = (float(v) * side for v, side in zip(values["boxes"][i], (width, height, width, height), strict=True))
        colour = colours[phrases[i]]
        shapes.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1):.1f}" height="{max(bottom - top, 1):.1f}" stroke="{colour}">'
            f"<title>{i + 1} {escape(phrases[i])} {scores[i]:.2f}</title></rect>"
        )
        if numbers and i < _LISTED:
            wide = 9 + 7 * len(str(i + 1))
            x, y = min(max(left, 0), width - wide), min(max(top, 0), height - 16)
            badges.append((x, y, wide, colour, i + 1))
    drawn = "".join(
        f'<g class="badge"><rect x="{x:.1f}" y="{y:.1f}" width="{wide}" height="16" fill="{colour}"/>'
        f'<text x="{x + wide / 2:.1f}" y="{y + 12.5:.1f}" style="fill:{ink(colour)}">{number}</text></g>'
        for (x, y, wide, colour, number) in _apart(badges, width, height)
    )
    svg = f'<svg viewBox="0 0 {width:.1f} {height:.1f}" preserveAspectRatio="none">{"".join(shapes)}{drawn}</svg>'
    return f'<div class="picture" style="{_shape(size)}"><img src="{uri}" alt="">{svg}</div>'


_Badge = tuple[float, float, int, str, int]


def _apart(badges: Sequence[_Badge], width: float, height: float) -> list[_Badge]:
    """Badges moved aside where one would cover another, as long as there is room."""
    placed: list[_Badge] = []
    for x, y, wide, colour, number in sorted(badges, key=lambda badge: badge[4]):
        at = viz.free_place((x, y), (wide, 16), [(p[0], p[1], p[0] + p[2], p[1] + 16) for p in placed], (width, height))
        placed.append((*(at or (x, y)), wide, colour, number))
    return placed


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _list(values: Mapping[str, Any]) -> str:
    """The phrases of the boxes, with their numbers and scores."""
    if not values["boxes"]:
        return f'<p class="faint">{"no detection label" if values["boxes"] is None else "no box"}</p>'
    colours = colours_of(values["phrases"])
    items = "".join(
        f'<li><i style="background:{colours[phrase]};color:{ink(colours[phrase])}">{i + 1}</i>'
        f'<span dir="auto">{escape(phrase[:120])}</span> <b>{score:.2f}</b></li>'
        for i, (phrase, score) in enumerate(zip(values["phrases"][:_LISTED], values["scores"], strict=False))
    )
    more = len(values["phrases"]) - _LISTED
    return f'<ul class="boxes">{items}{f"<li>and {more} more</li>" if more > 0 else ""}</ul>'


def colours_of(phrases: Sequence[str]) -> dict[str, str]:
    """Phrase → colour in HTML; the same as in pictures."""
    return {phrase: "#{:02x}{:02x}{:02x}".format(*colour) for phrase, colour in viz.colours(phrases).items()}


def ink(colour: str) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "#fff"


def _revisions(values: Mapping[str, Any], wanted: Mapping[str, str]) -> str:
    """Revisions that are not as they should be."""
    said = [
        f"{expert} of revision {values[f'{expert}_rev']}" if values[f"{expert}_rev"] else f"{expert} not labelled yet"
        for expert, revision in wanted.items()
        if f"{expert}_rev" in values and values[f"{expert}_rev"] != revision
    ]
    return escape("".join(f" · {one}" for one in said))


def _picture(data: bytes, side: int = SIDE) -> tuple[bytes, tuple[int, int]]:
    """A stored picture, small, as a JPEG; and its own shape. Grey if it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF, large pictures: ingest decided what is stored
        try:
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
                image.draft("RGB", (side, side))  # a large JPEG is decoded at an eighth, a quarter or a half
                small = image.convert("RGB")
        except (OSError, ValueError, SyntaxError):
            return _encoded(Image.new("RGB", (side // 2, side // 2), (128, 128, 128))), (1, 1)
    small.thumbnail((side, side))
    return _encoded(small), size


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
