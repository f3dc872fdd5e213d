"""Charts of an ingest's report: `charts` on its scales, and the funnel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from mtv_core import charts
from mtv_core.charts import number, share
from mtv_core.data.funnel import Step
from mtv_core.data.stats import BINS, Histogram

_BARS = 36  # at most


def ratio(value: float) -> str:
    """An aspect as one says it: 3:2 is 1.5, upright ones are below 1."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _ticks(low: float, high: float) -> list[float]:
    """Round values of a logarithmic scale, five or so."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), range(10, 100, 5), range(10, 100)):
        scale = 0.1 if len(steps) > 7 else 1.0
        places = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        found = [step * scale * 10.0**place for place in places for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 6)]
    return found


def histogram(title: str, new: Histogram, table: Histogram | None, say: Callable[[float], str], unit: str = "") -> str:
    """A figure: bars for this ingest, a line for the whole table; both in shares, on a logarithmic scale."""
    shown = new if new.count else table
    if shown is None or not shown.count:
        return ""
    if shown.low == shown.high and (table is None or table.low == table.high):
        said = f"{escape(say(shown.low or 0.0))}{unit}"
        return f'<figure class="histogram"><figcaption><h3>{escape(title)}</h3><p>all <b>{said}</b></p></figcaption></figure>'
    bins = [place for one in (new, table) if one is not None for place in one.bins]
    first, last = min(bins), max(bins)
    step = max(1, math.ceil((last - first + 1) / _BARS))
    if last - first < 12:  # one size only: leave room, so that it is seen as one of many
        first, last = first - 16, last + 16
    count = (last - first) // step + 1

    def heights(one: Histogram) -> list[float]:
        found = [0.0] * count
        for place, rows in one.bins.items():
            found[(place - first) // step] += rows / one.count
        return found

    bars, line = heights(new) if new.count else [], heights(table) if table is not None and table.count else []
    low, high = 2 ** (first / BINS), 2 ** ((first + count * step) / BINS)

    def told(i: int) -> str:
        ends = f"{say(2 ** ((first + i * step) / BINS))} – {say(2 ** ((first + (i + 1) * step) / BINS))}{unit}"
        return f"{ends}: {bars[i]:.1%} of this ingest"

    ticks = {say(tick): math.log2(tick / low) / math.log2(high / low) for tick in _ticks(low, high)}
    quantiles = [value for q in (0.05, 0.5, 0.95) if (value := shown.quantile(q)) is not None]
    said = f"median <b>{escape(say(quantiles[1]))}{unit}</b>, 90 % within {escape(say(quantiles[0]))} – {escape(say(quantiles[2]))}"
    return charts.histogram(title, said, bars, told, [(place, label) for label, place in ticks.items()], line)


def shares(counts: Mapping[str, int], most: int = 8) -> list[tuple[str, float]]:
    """The most frequent with their share of all, the rest as one."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    total = sum(counts.values())
    rest = sum(count for _, count in ordered[most:])
    return [(name, count / total) for name, count in ordered[:most]] + ([("others", rest / total)] if rest else [])


def funnel(steps: Sequence[Step]) -> str:
    """The funnel: how many are left after each step as a bar, and what the step took in words."""
    received = max(steps[0].left, 1)
    rows = []
    for i, step in enumerate(steps):
        left, lost = 100 * step.left / received, 100 * step.lost / received
        reasons = ", ".join(f"{escape(reason)} {number(count)}" for reason, count in step.reasons.items()) if len(step.reasons) > 1 else (
            escape(next(iter(step.reasons), ""))
        )  # fmt: skip
        took = f"−{number(step.lost)}</td><td><small>{share(step.lost, received)}</small>" if step.lost else "</td><td>"
        ends = ' class="end"' if i in (0, len(steps) - 1) else ' class="quiet"' if not step.lost else ""
        lost_bar = f'<span class="lost" style="width:{max(lost, 0.25):.2f}%"></span>' if step.lost else ""
        rows.append(
            f'<tr{ends}><th>{escape(step.name)}</th><td class="track"><span class="left" style="width:{left:.2f}%"></span>{lost_bar}</td>'
            f'<td>{number(step.left)}</td><td class="lost-number">{took}</td><td><small>{reasons}</small></td></tr>'
        )
    head = "<tr><th></th><th></th><th>left</th><th>taken</th><th></th><th>why</th></tr>"
    return f'<table class="funnel"><thead>{head}</thead>{"".join(rows)}</table>'
