"""Charts of reports as HTML and inline SVG: nothing is fetched, everything can be selected, and hovering tells the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

_WIDTH, _HEIGHT, _FOOT = 300, 96, 18  # px of a histogram, and below it for its scale


def number(value: float) -> str:
    """Whole numbers with thin spaces between thousands; others to three digits."""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.3g}"


def size(num_bytes: float) -> str:
    """Bytes as people read them: 980 B, 12.3 kB, 4.5 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} PB"


def share(part: float, whole: float) -> str:
    """A part in per cent; small ones keep a digit that says something."""
    percent = 100 * part / whole if whole else 0.0
    if part >= whole or not percent or 9.95 <= percent < 98.95:
        return f"{percent:.0f} %"
    return "< 0.1 %" if percent < 0.095 else f"{percent:.1f} %" if percent < 99.95 else "> 99.9 %"


def histogram(
    title: str,
    note: str,
    bars: Sequence[float],
    told: Callable[[int], str],
    ticks: Iterable[tuple[float, str]],
    line: Sequence[float] = (),
) -> str:
    """A figure: bars, and a line over them, which say what share of their own total is in each bin.

    Args:
        title: of the figure.
        note: what stands below it, as HTML.
        bars: the share of each bin; none where there is only a line.
        told: bin → what a person reads who points at its bar.
        ticks: (place along the axis, 0 … 1; what is written there).
        line: shares of what the bars are compared with, in the same bins.
    """
    top, width = max([*bars, *line]) or 1.0, _WIDTH / len(bars or line)
    parts = []
    for i, share_ in enumerate(bars):
        if share_:
            height = max(share_ / top * (_HEIGHT - 4), 1.0)
            parts.append(
                f'<rect class="bar" x="{i * width + 0.5:.1f}" y="{_HEIGHT - height:.1f}" width="{max(width - 1, 1):.1f}" '
                f'height="{height:.1f}"><title>{escape(told(i))}</title></rect>'
            )
    if line:
        points = [(i * width + dx, _HEIGHT - share_ / top * (_HEIGHT - 4)) for i, share_ in enumerate(line) for dx in (0, width)]
        parts.append('<polyline class="line" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>')
    for place, label in ticks:
        x = place * _WIDTH
        anchor = "start" if x < 12 else "end" if x > _WIDTH - 12 else "middle"
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_HEIGHT}" y2="{_HEIGHT + 3}"/>'
            f'<text x="{x:.1f}" y="{_HEIGHT + 15}" text-anchor="{anchor}">{escape(label)}</text>'
        )
    return (
        f'<figure class="histogram"><figcaption><h3>{escape(title)}</h3>{f"<p>{note}</p>" if note else ""}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def bars(title: str, values: Iterable[tuple[str, float]], note: str = "", say: Callable[[float], str] | None = None) -> str:
    """A figure: a list of names with a bar each. Values are shares, unless `say` writes them otherwise."""
    rows = list(values)
    if not rows:
        return ""
    most = max(value for _, value in rows) or 1.0
    lines = [
        f'<tr><th title="{escape(name)}">{escape(name)}</th>'
        f'<td><span class="bar" style="width:{max(100 * value / most, 0.5):.1f}%"></span></td>'
        f"<td>{escape(say(value) if say else share(value, 1))}</td></tr>"
        for name, value in rows
    ]
    return (
        f'<figure class="list"><figcaption><h3>{escape(title)}</h3>{f"<p>{escape(note)}</p>" if note else ""}</figcaption>'
        f"<table>{''.join(lines)}</table></figure>"
    )
