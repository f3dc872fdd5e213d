"""A canary for people: one page for a browser that fetches nothing. Everything that comes from data or configuration is escaped."""

from __future__ import annotations

import base64
import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtv_core import viz
from mtv_core.canary_rows import Row
from mtv_core.charts import number, size
from mtv_core.data.depth import decode
from mtv_core.executor import duration

if TYPE_CHECKING:
    from mtv_core.canary_gate import GateCheck
    from mtv_core.canary_record import Canary

_TILE, _GAP = 208, 6  # px
_PAPER, _FAINT, _INK = (255, 255, 255), (240, 242, 245), (107, 114, 128)
_REASONS = 8  # of failures, named on the page
_LETTERS = 300  # of a caption
_WIDTH, _HEIGHT, _FOOT = 300, 96, 18  # px of a histogram, and below it for its scale

_STYLE = """
:root { color-scheme: light dark; --paper:#fff; --ink:#1f2937; --faint:#6b7280; --rule:#e5e7eb; --card:#f9fafb; --blue:#2f6fbb;
  --orange:#d55e00; --green:#00795a; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171c; --ink:#e5e7eb; --faint:#9ca3af; --rule:#2b313a; --card:#1b2027;
  --blue:#6aa5e8; --orange:#f0894a; --green:#3fc79a; } }
* { box-sizing: border-box }
body { margin:0 auto; padding:28px 24px 60px; max-width:1080px; background:var(--paper); color:var(--ink); font:15px/1.5
  system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
h1 { font-size:26px; margin:0; overflow-wrap:anywhere } h2 { font-size:18px; margin:40px 0 12px; padding-top:14px;
  border-top:1px solid var(--rule) } h3 { font-size:14px; margin:0 } p { margin:0 }
small, .faint, figcaption p { color:var(--faint); font-size:13px } code { font-size:13px; overflow-wrap:anywhere }
.verdict { margin:16px 0 0; padding:10px 14px; border-left:4px solid var(--green); background:var(--card) }
.verdict.failed { border-color:var(--orange) } .verdict p { margin:2px 0 }
table { border-collapse:collapse; width:100%; font-size:14px } th { text-align:left; font-weight:500 }
td { font-variant-numeric:tabular-nums } th, td { padding:7px 14px 7px 0; border-bottom:1px solid var(--rule); vertical-align:top }
thead th { color:var(--faint); font-size:12px } th code { white-space:nowrap } td.number, th.number { text-align:right; white-space:nowrap }
.passed { color:var(--green) } .failed { color:var(--orange) } section { overflow-x:auto }
.grid { display:grid; grid-template-columns:repeat(auto-fill,minmax(290px,1fr)); gap:26px 32px }
figure { margin:0; min-width:0 } figcaption { margin-bottom:6px }
svg { display:block; width:100%; height:auto; overflow:visible } svg text { font-size:11px; fill:var(--faint) }
rect.bar { fill:var(--blue) } .line { fill:none; stroke:var(--orange); stroke-width:1.5 } .axis { stroke:var(--faint); stroke-width:1 }
.legend { display:flex; gap:18px; margin:-4px 0 16px }
.legend i { display:inline-block; width:14px; height:10px; margin-right:6px; background:var(--blue) }
.legend i.old { height:0; border-top:2px solid var(--orange); background:none; vertical-align:middle }
.pictures { display:grid; grid-template-columns:repeat(auto-fill,minmax(480px,1fr)); gap:20px 18px }
.pictures img { max-width:100%; display:block; border-radius:6px } .pictures figcaption { margin:5px 0 0; font-size:13px; line-height:1.35 }
"""


@dataclass(frozen=True)
class Picture:
    """A row as it is shown: its image, its old label and its new one."""

    name: str  # of the file
    group: str  # changed | chance
    uid: str
    caption: str
    said: str  # what changed
    jpeg: bytes


def draw(expert: str, image: bytes, old: Mapping[str, Any], new: Mapping[str, Any]) -> bytes:
    """Image, old label and new label beside each other, as JPEG; an empty tile for what is missing or cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF, which is stored as it came
            picture = Image.open(io.BytesIO(image)).convert("RGB")
    except (OSError, ValueError, SyntaxError):
        picture = None
    tiles = [_fit(picture, "cannot be read"), *(_fit(_label(expert, picture, label), "no label") for label in (old, new))]
    sheet = Image.new("RGB", (3 * _TILE + 2 * _GAP, max(tile.height for tile in tiles)), _PAPER)
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index * (_TILE + _GAP) + (_TILE - tile.width) // 2, (sheet.height - tile.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=86)
    return buffer.getvalue()


def _label(expert: str, picture: Image.Image | None, label: Mapping[str, Any]) -> Image.Image | None:
    if expert == "depth":
        depth = None if label["depth"] is None else decode(label["depth"])
        if depth is None or picture is None:
            return None
        return viz.colour_depth(depth).resize(picture.size, Image.Resampling.BILINEAR)
    if picture is None or label["boxes"] is None:
        return None
    boxes = np.asarray(label["boxes"], np.float32).reshape(-1, 4)
    # What is no box cannot be drawn; the figures count it.
    drawn = [i for i, (left, top, right, bottom) in enumerate(boxes) if np.isfinite(boxes[i]).all() and left <= right and top <= bottom]
    phrases, scores = ([label[name][i] for i in drawn] for name in ("phrases", "scores"))
    return viz.overlay(picture, None, np.clip(boxes[drawn], 0, 1), phrases, scores)


def _fit(picture: Image.Image | None, otherwise: str) -> Image.Image:
    if picture is None:
        tile = Image.new("RGB", (_TILE, _TILE), _FAINT)
        ImageDraw.Draw(tile).text((_TILE // 2, _TILE // 2), otherwise, fill=_INK, font=ImageFont.load_default(size=13), anchor="mm")
        return tile
    scale = _TILE / max(picture.size)
    way = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), way)


def html(canary: Canary, rows: Sequence[Row], pictures: Sequence[Picture], table: str) -> str:
    """The page.

    Args:
        canary: figures, checks and verdict.
        rows: of the canary, for the histograms.
        pictures: the most changed first.
        table: URI.
    """
    changed, chance = ([one for one in pictures if one.group == group] for group in ("changed", "chance"))
    sections = [
        ("The gate", checks_table(canary.checks)),
        ("Why rows have no new label", _failures(rows)),
        ("Figures", _figures(canary)),
        ("What accepting takes", _work(canary)),
        ("Old and new", _experts(canary)),
        ("How they are spread", _histograms(canary, rows)),
        (f"The {len(changed)} rows that changed most: image, old, new", _shown(changed)),
        (f"{len(chance)} rows by chance: image, old, new", _shown(chance)),
    ]
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections if content)
    title = f"Canary: {canary.expert} {canary.revision}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><header><h1>{escape(title)}</h1>"
        f'<p class="faint">{number(canary.rows)} rows of {escape(table)}, version {canary.version}, labelled aside '
        f"{escape(canary.at[:16].replace('T', ' '))} UTC and compared with {escape(canary.accepted)}</p>{_verdict(canary)}</header>"
        f"{body}</body></html>\n"
    )


def _verdict(canary: Canary) -> str:
    if canary.passed:
        said, way = "All checks passed.", "<code>mtv refresh</code> accepts it, or asks a person where label.gate.approval is set."
    else:
        said = f"{len(canary.failed)} of {len(canary.checks)} checks failed: {', '.join(one.name for one in canary.failed)}."
        way = "It is refused, unless a person says otherwise: <code>mtv refresh --force --approve</code>."
    return f'<div class="verdict{"" if canary.passed else " failed"}"><p><b>{escape(said)}</b></p><p class="faint">{way}</p></div>'


def checks_table(checks: Sequence[GateCheck]) -> str:
    """The gate; what a check means stands below its name, so that the table fits into a narrow window."""
    rows = []
    for one in checks:
        verdict = '<span class="passed">passed</span>' if one.passed else '<b class="failed">failed</b>'
        value = "–" if one.value is None else f"{one.value:.3g}"
        rows.append(
            f'<tr><th><code>{escape(one.name)}</code><br><small>{escape(one.meaning)}</small></th><td class="number">{value}</td>'
            f'<td class="number">{one.sign} {one.limit:g}</td><td>{verdict}</td></tr>'
        )
    head = '<tr><th>label.gate.</th><th class="number">measured</th><th class="number">limit</th><th></th></tr>'
    return f"<table><thead>{head}</thead>{''.join(rows)}</table>"


def _failures(rows: Sequence[Row]) -> str:
    """The most frequent reasons, each with what was said of one row."""
    failed = [row for row in rows if row.failure is not None]
    reasons = Counter(row.failure for row in failed).most_common(_REASONS)
    lines = []
    for reason, count in reasons:
        example = next(row.message or "" for row in failed if row.failure == reason)
        lines.append(
            f'<tr><th>{escape(str(reason))}</th><td class="number">{number(count)}</td><td><code>{escape(example)}</code></td></tr>'
        )
    return f"<table>{''.join(lines)}</table>" if lines else ""


def _figures(canary: Canary) -> str:
    """Old beside new where both are there, then what compares them."""
    found = canary.figures
    pairs = [
        ("maps that say nothing", "constant", True),
        ("boxes a picture", "boxes", False),
        ("pictures without a box", "none", True),
        ("boxes that fill the picture", "filling", True),
        ("mean score", "score", False),
    ]
    lines = [
        f'<tr><th>{title}</th><td class="number">{_value(found.get(f"{name}_old"), part)}</td>'
        f'<td class="number">{_value(found.get(f"{name}_new"), part)}</td></tr>'
        for title, name, part in pairs
        if f"{name}_new" in found
    ]
    single = [
        ("AbsRel of the new maps against the old, median", "abs_rel_median", False),
        ("AbsRel, 95th percentile", "abs_rel_p95", False),
        ("how much better a new map fits its own picture than others", "skill", True),
        ("mean IoU of boxes that belong together", "iou", False),
        ("old boxes found again", "found", True),
        ("new boxes that no old one was", "new", True),
        ("phrases that lost their boxes", "phrases_lost", True),
        ("phrases with boxes that had none", "phrases_gained", True),
        ("distance of the scores (Kolmogorov, Smirnov)", "score_ks", False),
        ("boxes that are none", "broken", True),
        ("pictures on which the new expert fails", "failed", True),
        ("rows without an old label", "rows_without_old", None),
        ("rows whose stored image cannot be read", "rows_unreadable", None),
        ("rows that failed for now", "rows_transient", None),
    ]
    lines += [
        f'<tr><th>{title}</th><td></td><td class="number">{number(found[name]) if part is None else _value(found[name], part)}</td></tr>'
        for title, name, part in single
        if name in found
    ]
    head = '<tr><th></th><th class="number">old</th><th class="number">new</th></tr>'
    return f"<table><thead>{head}</thead>{''.join(lines)}</table>"


def _value(value: float | None, share: bool) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if share else f"{value:.3f}"


def _work(canary: Canary) -> str:
    work = canary.work
    parts = [f"{number(work.num_stale)} rows in {number(work.num_fragments)} fragments are labelled again"]
    if work.seconds is None or work.bytes_to_write is None:
        parts.append("how long that takes and what it writes is not known: no run has measured it yet")
    else:
        parts.append(f"about {duration(work.seconds)} and {size(work.bytes_to_write)} if it goes as the last run")
        if work.cost is not None:
            parts.append(f"at a cost of {work.cost:.2f}" if work.cost >= 0.01 or not work.cost else "at a cost below 0.01")
    return f"<p>{escape(', '.join(parts))}. Other columns, and labels of other experts, stay as they are.</p>"


def _experts(canary: Canary) -> str:
    rows = [
        ("model", canary.accepted_model, canary.model),
        ("revision", canary.accepted, canary.revision),
        ("licence", canary.accepted_license, canary.license),
    ]
    lines = "".join(
        f"<tr><th>{name}</th><td><code>{escape(old)}</code></td><td><code>{escape(new)}</code></td></tr>" for name, old, new in rows
    )
    return f"<table><thead><tr><th></th><th>old</th><th>new</th></tr></thead>{lines}</table>"


def _histograms(canary: Canary, rows: Sequence[Row]) -> str:
    compared = [row for row in rows if row.compared]
    if canary.expert == "depth":
        errors = np.array([row.abs_rel for row in compared])
        charts = [_histogram("AbsRel of the new map against the old", errors[np.isfinite(errors)], None)]
    else:
        scores = [np.array([score for row in compared for score in row.scores[side]]) for side in (0, 1)]
        counts = [np.array([row.boxes[side] for row in compared], np.float64) for side in (0, 1)]
        overlaps = np.array([overlap for row in compared for overlap in row.ious])
        charts = [
            _histogram("IoU of boxes that belong together", overlaps, None, (0.0, 1.0)),
            _histogram("Scores", scores[1][np.isfinite(scores[1])], scores[0], (0.0, 1.0)),
            _histogram("Boxes a picture", counts[1], counts[0], whole=True),
        ]
    shown = "".join(charts)
    both = "" if canary.expert == "depth" else '<span><i class="old"></i>old labels</span>'
    return f'<p class="legend faint"><span><i></i>new labels</span>{both}</p><div class="grid">{shown}</div>' if shown else ""


def _histogram(
    title: str, new: NDArray[np.floating], old: NDArray[np.floating] | None, span: tuple[float, float] | None = None, whole: bool = False
) -> str:
    """A figure: bars for the new labels, a line for the old ones; both in shares of their own number. Empty without values."""
    values = [part for part in (new, old) if part is not None and part.size]
    if not values:
        return ""
    most = max(float(part.max()) for part in values)
    if whole:
        count = int(most) + 1
        low, high = -0.5, count - 0.5
    else:
        count, (low, high) = 30, span or (0.0, max(most, 1e-9))
    shares = [np.histogram(part, bins=count, range=(low, high))[0] / max(part.size, 1) for part in (new, old) if part is not None]
    top, width = max(float(part.max()) for part in shares) or 1.0, _WIDTH / count
    parts = []
    for i, height in enumerate(shares[0]):
        if height:
            tall = max(float(height) / top * (_HEIGHT - 4), 1.0)
            ends = f"{i}" if whole else f"{low + (high - low) * i / count:.2f} – {low + (high - low) * (i + 1) / count:.2f}"
            parts.append(
                f'<rect class="bar" x="{i * width + 0.5:.1f}" y="{_HEIGHT - tall:.1f}" width="{max(width - 1, 1):.1f}" height="{tall:.1f}">'
                f"<title>{ends}: {height:.1%} of the new ones</title></rect>"
            )
    if len(shares) > 1:
        points = [
            (i * width + dx, _HEIGHT - float(height) / top * (_HEIGHT - 4)) for i, height in enumerate(shares[1]) for dx in (0, width)
        ]
        parts.append('<polyline class="line" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>')
    ticks = range(0, count, max(1, count // 6)) if whole else [low + (high - low) * part / 4 for part in range(5)]
    for tick in ticks:
        place = (tick - low) / (high - low) * _WIDTH
        anchor = "start" if place < 12 and not whole else "end" if place > _WIDTH - 12 and not whole else "middle"
        parts.append(f'<text x="{place:.1f}" y="{_HEIGHT + 15}" text-anchor="{anchor}">{tick:.3g}</text>')
    medians = [f"median {np.median(part):.3g}" for part in (new,) if part.size] or ["none"]
    medians += [f"old {np.median(old):.3g}"] if old is not None and old.size else []
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3><p>{', '.join(medians)}</p></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _shown(pictures: Sequence[Picture]) -> str:
    figures = []
    for one in pictures:
        caption = one.caption[:_LETTERS] + ("…" if len(one.caption) > _LETTERS else "")
        uri = f"data:image/jpeg;base64,{base64.b64encode(one.jpeg).decode()}"
        figures.append(
            f'<figure><img src="{uri}" alt="image, old label, new label"><figcaption><b>{escape(one.said)}</b> '
            f'<span dir="auto">{escape(caption)}</span> <small><code>{escape(one.uid)}</code></small></figcaption></figure>'
        )
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""
