"""Charts of counts in even bins as inline SVG: nothing is fetched, and hovering tells the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from mtv_core.ingest_charts import number, share

_WIDTH, _HEIGHT, _FOOT = 300, 96, 18  # px of a histogram, and below it for its scale


def histogram(
    title: str,
    counts: Sequence[int],
    ticks: Sequence[tuple[float, str]],
    ends: Callable[[int], str],
    unit: str,
    note: str = "",
    before: Sequence[int] | None = None,
) -> str:
    """A figure: bars of the counts, and a line of those before. Each in shares of its own total, since rows may have come.

    Args:
        title: of the figure.
        counts: of each bin.
        ticks: (place along the axis, 0 … 1; what is written there).
        ends: bin → what it stands for, in words.
        unit: what is counted.
        note: what a person should know.
        before: counts of the version before, in the same bins.
    """
    total = sum(counts)
    if not total:
        return ""
    shares = [count / total for count in counts]
    total_before = sum(before or ())
    line = [count / total_before for count in before or ()] if total_before else []
    top, width = max([*shares, *line]), _WIDTH / len(counts)
    parts = []
    for i, (count, part) in enumerate(zip(counts, shares, strict=True)):
        if count:
            height = max(part / top * (_HEIGHT - 4), 1.0)
            parts.append(
                f'<rect class="bar" x="{i * width + 0.5:.1f}" y="{_HEIGHT - height:.1f}" width="{max(width - 1, 1):.1f}" '
                f'height="{height:.1f}"><title>{escape(ends(i))}: {number(count)} {escape(unit)}, {share(count, total)}</title></rect>'
            )
    if line:
        points = [(i * width + dx, _HEIGHT - part / top * (_HEIGHT - 4)) for i, part in enumerate(line) for dx in (0, width)]
        parts.append('<polyline class="line" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>')
    for place, label in ticks:
        x = place * _WIDTH
        anchor = "start" if x < 8 else "end" if x > _WIDTH - 8 else "middle"
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_HEIGHT}" y2="{_HEIGHT + 3}"/>'
            f'<text x="{x:.1f}" y="{_HEIGHT + 15}" text-anchor="{anchor}">{escape(label)}</text>'
        )
    return (
        f'<figure class="histogram"><figcaption><h3>{escape(title)}</h3>{f"<p>{escape(note)}</p>" if note else ""}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def unit_ticks() -> list[tuple[float, str]]:
    """Of an axis from 0 to 1."""
    return [(i / 5, f"{i / 5:g}") for i in range(6)]


def unit_ends(bins: int) -> Callable[[int], str]:
    """What a bin of an axis from 0 to 1 stands for."""
    return lambda i: f"{i / bins:.3g} – {(i + 1) / bins:.3g}"


def stack(parts: Sequence[tuple[str, int]]) -> str:
    """One bar of parts: (class, rows), as shares of their sum."""
    total = sum(rows for _, rows in parts)
    inside = "".join(
        f'<span class="{name}" style="width:{100 * rows / total:.2f}%" title="{escape(name)}: {number(rows)}"></span>'
        for name, rows in parts
        if rows
    )
    return f'<div class="stack">{inside}</div>'
