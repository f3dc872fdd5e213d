"""Charts of a label report: `charts` of counts in even bins, and parts of a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from mtv_core import charts
from mtv_core.charts import number, share


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
    total_before = sum(before or ())

    def told(i: int) -> str:
        return f"{ends(i)}: {number(counts[i])} {unit}, {share(counts[i], total)}"

    line = [count / total_before for count in before or ()] if total_before else []
    return charts.histogram(title, escape(note), [count / total for count in counts], told, ticks, line)


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
