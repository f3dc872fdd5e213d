"""An ingest's report for people: one page for a browser that fetches nothing, and the same in Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from mtv_core import ingest_charts as charts
from mtv_core.charts import bars, number, share, size
from mtv_core.data.funnel import describe
from mtv_core.data.stats import Histogram, Tally
from mtv_core.executor import amount, duration
from mtv_core.ingest_charts import ratio
from mtv_core.ingest_gallery import Thumbnail

if TYPE_CHECKING:
    from mtv_core.ingest_report import IngestReport, Refused

STYLE = """
:root { color-scheme: light dark; --paper:#fff; --ink:#1f2937; --faint:#6b7280; --rule:#e5e7eb; --card:#f9fafb; --blue:#2f6fbb;
  --orange:#d55e00; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171c; --ink:#e5e7eb; --faint:#9ca3af; --rule:#2b313a; --card:#1b2027;
  --blue:#6aa5e8; --orange:#f0894a; } }
* { box-sizing: border-box }
body { margin:0 auto; padding:28px 24px 60px; max-width:1080px; background:var(--paper); color:var(--ink); font:15px/1.5
  system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
h1 { font-size:26px; margin:0 } h2 { font-size:18px; margin:40px 0 12px; padding-top:14px; border-top:1px solid var(--rule) }
h3 { font-size:14px; margin:0 } p { margin:0 } small, .faint, figcaption p { color:var(--faint); font-size:13px }
code { font-size:13px }
.notes { margin:16px 0 0; padding:10px 14px; border-left:4px solid var(--orange); background:var(--card) }
.notes p { margin:2px 0 }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(126px,1fr)); gap:12px; margin-top:20px }
.tile { background:var(--card); border:1px solid var(--rule); border-radius:8px; padding:12px 14px }
.tile b { display:block; font-size:22px; line-height:1.25; font-variant-numeric:tabular-nums }
.tile span { color:var(--faint); font-size:13px }
.grid { display:grid; grid-template-columns:repeat(auto-fill,minmax(290px,1fr)); gap:26px 32px }
figure { margin:0; min-width:0 } figcaption { margin-bottom:6px }
svg { display:block; width:100%; height:auto; overflow:visible } svg text { font-size:11px; fill:var(--faint) }
rect.bar { fill:var(--blue) } .line { fill:none; stroke:var(--orange); stroke-width:1.5 }
.axis { stroke:var(--faint); stroke-width:1 } table { border-collapse:collapse; width:100%; font-size:14px }
th { text-align:left; font-weight:500 } td { font-variant-numeric:tabular-nums }
.list th { max-width:150px; width:40%; overflow:hidden; text-overflow:ellipsis; white-space:nowrap; padding:2px 10px 2px 0 }
.list td:nth-child(2) { width:45% } .list td:last-child { text-align:right; white-space:nowrap; padding-left:8px }
span.bar { display:block; height:12px; background:var(--blue); border-radius:2px }
.legend { display:flex; gap:18px; margin:-4px 0 16px }
.legend i { display:inline-block; width:14px; height:10px; margin-right:6px; background:var(--blue) }
.legend i.table { height:0; border-top:2px solid var(--orange); background:none; vertical-align:middle }
.funnel th, .funnel td { padding:4px 10px 4px 0; white-space:nowrap } .funnel td:last-child { white-space:normal; width:30% }
.funnel td:nth-child(3), .funnel td:nth-child(4), .funnel td:nth-child(5) { text-align:right }
.funnel thead th { color:var(--faint); font-size:12px }
.funnel thead th:nth-child(3), .funnel thead th:nth-child(4) { text-align:right }
.track { width:34%; white-space:nowrap; font-size:0 } .track span { display:inline-block; height:14px }
.left { background:var(--blue) } .lost { background:var(--orange) } .lost-number { color:var(--orange) }
tr.quiet th, tr.quiet td { color:var(--faint) } tr.quiet .left { opacity:.55 } tr.end th { font-weight:700 }
tr.end td:nth-child(3) { font-weight:700 }
.rows th, .rows td { padding:7px 14px 7px 0; border-bottom:1px solid var(--rule); vertical-align:top }
.rows td:nth-child(2) { text-align:right; white-space:nowrap } section { overflow-x:auto }
.rows code { overflow-wrap:anywhere; color:var(--faint) }
.pictures { display:grid; grid-template-columns:repeat(auto-fill,minmax(152px,1fr)); gap:18px 14px }
.pictures div { height:152px; display:flex; align-items:center; justify-content:center; background:var(--card);
  border-radius:6px; overflow:hidden }
.pictures img { max-width:100%; max-height:100%; display:block }
.pictures figcaption { margin:5px 0 0; font-size:13px; line-height:1.35; display:-webkit-box; -webkit-line-clamp:3;
  -webkit-box-orient:vertical; overflow:hidden }
.wide img { max-width:100%; border-radius:6px }
pre { background:var(--card); border:1px solid var(--rule); border-radius:8px; padding:12px 14px; overflow:auto;
  font-size:12.5px; line-height:1.45 }
"""


def html(report: IngestReport, pictures: Sequence[Thumbnail], sheets: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        report: the numbers.
        pictures: rows to show; none: the section is left out.
        sheets: title → JPEG of what else is to be looked at, such as pairs of near duplicates.
    """
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    tiles = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in headline(report))
    shown = "".join(
        f'<figure><div><img src="{one.uri}" alt="" title="{escape(one.uid)}, {one.size[0]} × {one.size[1]} px"></div>'
        f"<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in pictures
    )
    wide = "".join(
        f'<h2>{escape(title)}</h2><p class="wide"><img src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}" alt=""></p>'
        for title, picture in sheets.items()
    )
    legend = (
        '<p class="legend faint"><span><i></i>samples of this ingest, before deduplication</span>'
        '<span><i class="table"></i>all rows of the table</span></p>'
    )
    sections = [
        ("From shards to rows", charts.funnel(report.funnel)),
        ("Refused, and what to do", _refused(report)),
        ("What the samples look like", legend + f'<div class="grid">{_shapes(report)}</div>'),
        ("What they are made of", f'<div class="grid">{_parts(report)}</div>'),
        ("Where the time went", f'<div class="grid">{_time(report)}</div>'),
        (f"{len(pictures)} rows of this ingest, chosen by chance", f'<div class="pictures">{shown}</div>' if pictures else ""),
    ]
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections if content)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Ingest into {escape(report.table)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>Ingest into {escape(report.table)}</h1><p class="faint">{escape(_subtitle(report))}</p>'
        f'{f"""<div class="notes">{notes}</div>""" if notes else ""}<div class="tiles">{tiles}</div></header>{body}{wide}'
        f'<section><h2>Configuration</h2><p class="faint">revision <code>{escape(report.revision)}</code></p>'
        f"<pre>{escape(report.config)}</pre></section></body></html>\n"
    )


def _subtitle(report: IngestReport) -> str:
    shards = f"{number(report.stats.shards)} shard{'s' if report.stats.shards != 1 else ''}"
    when = f"{report.written:%Y-%m-%d %H:%M} UTC · {shards} in {duration(report.seconds)}"
    return f"{when} · ingest {report.ingest_id} · table version {report.version}"


def headline(report: IngestReport) -> list[tuple[str, str]]:
    """What one wants to know first: (name, value)."""
    stats, refused = report.stats, sum(report.stats.refused.values())
    speed = stats.received / report.seconds if report.seconds else 0.0
    return [
        ("rows added", number(stats.added)),
        ("samples received", number(stats.received)),
        (f"refused, {share(refused, stats.received)}", number(refused)),
        ("rows in the table", number(report.table_stats.rows)),
        ("samples/s", amount(speed)),
        ("read" + (f", {size(stats.bytes_read / report.seconds)}/s" if report.seconds else ""), size(stats.bytes_read)),
        ("images written", size(stats.bytes_written)),
    ]


def _refused(report: IngestReport) -> str:
    rows = []
    for one in report.refused:
        known = describe(one.reason)
        example = f"<br><code>{escape(one.example)}</code>" if one.example else ""
        rows.append(
            f"<tr><th>{escape(one.reason)}</th><td>{_number(one)}</td>"
            f"<td>{_code(_sentence(known.what))}. {_code(_sentence(known.do))}.{example}</td></tr>"
        )
    more = '<p class="faint" style="margin-top:10px"><code>mtv failures</code> lists, exports and retries them.</p>'
    return f'<table class="rows">{"".join(rows)}</table>{more}' if rows else ""


def _number(one: Refused) -> str:
    return number(one.number) + ((" shard" if one.number == 1 else " shards") if one.shards else "")


def _code(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _whole(value: float) -> str:
    return number(round(value))


def _charts(report: IngestReport) -> list[tuple[str, Histogram, Histogram | None, Callable[[float], str], str]]:
    stats, table = report.stats, report.table_stats
    found: list[tuple[str, Histogram, Histogram | None, Callable[[float], str], str]] = [
        ("Width, as stored", stats.kept.width, table.width, _whole, " px"),
        ("Height, as stored", stats.kept.height, table.height, _whole, " px"),
        ("Width / height", stats.kept.aspect, table.aspect, ratio, ""),
        ("Width, as received", stats.received_width, None, _whole, " px"),
        ("Height, as received", stats.received_height, None, _whole, " px"),
        ("Stored image", stats.image_bytes, None, size, ""),
    ]
    kinds = sorted({*stats.kept.characters, *table.characters}, key=lambda kind: kind != "web")
    for kind in kinds:
        name = f"{kind.capitalize()} captions" if len(kinds) > 1 else "Captions"
        for what, of in (("letters", "characters"), ("words", "words"), ("number a sample", "captions")):
            new, all_rows = (getattr(one, of).get(kind, Histogram()) for one in (stats.kept, table))
            found.append((f"{name}, {what}", new, all_rows, _whole, ""))
    return found


def _shapes(report: IngestReport) -> str:
    return "".join(charts.histogram(title, new, table, say, unit) for title, new, table, say, unit in _charts(report))


def _tally(tally: Tally, rows: int) -> tuple[list[tuple[str, float]], str]:
    """The most frequent values, and what is to be known of the count."""
    top = tally.top(8)
    rest = 1 - sum(part for _, part in top)
    note = f"known of {share(tally.total, rows)} of the rows"
    if not tally.exact:
        note += "; more than 1024 different ones, shares estimated from 512 rows"
    return [*top, *([("others", rest)] if rest > 1e-9 and top else [])], note


def _parts(report: IngestReport) -> str:
    stats, table = report.stats, report.table_stats
    licenses, license_note = _tally(table.licenses, table.rows)
    domains, domain_note = _tally(table.domains, table.rows)
    kept = {"kept byte for byte": stats.passthrough, "encoded anew": stats.reencoded}
    return "".join(
        [
            bars("Formats, as received", charts.shares(stats.formats), "of this ingest"),
            bars("Images", charts.shares({name: rows for name, rows in kept.items() if rows}), "of this ingest"),
            bars("Sources", charts.shares(table.sources), "of the table"),
            bars("Split", charts.shares(table.splits), "of the table"),
            bars("Licences", licenses, license_note) or bars("Licences", [("unknown", 1.0)], "of the table"),
            bars("Domains", domains, domain_note),
        ]
    )


def _time(report: IngestReport) -> str:
    seconds = report.stats.seconds()
    total = sum(seconds.values())
    note = f"{duration(total)} of work, added up over workers"
    return bars("Work", sorted(seconds.items(), key=lambda pair: -pair[1]), note, duration) if total else ""


def markdown(report: IngestReport) -> str:
    """The same without pictures, for a page of Prefect."""
    lines = [f"# Ingest into {report.table}", "", _subtitle(report), ""]
    lines += [f"> {note}" for note in report.notes] + ([""] if report.notes else [])
    lines += ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in headline(report)), ""]
    lines += ["## From shards to rows", "", "| step | left | taken | why |", "|---|---:|---:|---|"]
    for step in report.funnel:
        reasons = ", ".join(f"{reason} {number(count)}" for reason, count in step.reasons.items())
        lines.append(f"| {step.name} | {number(step.left)} | {f'−{number(step.lost)}' if step.lost else ''} | {reasons} |")
    if report.refused:
        lines += ["", "## Refused, and what to do", "", "| reason | number | what it means | what to do |", "|---|---:|---|---|"]
        for one in report.refused:
            known = describe(one.reason)
            lines.append(f"| {one.reason} | {_number(one)} | {known.what} | {known.do} |")
    lines += ["", "## What the samples look like", "", "| | 5 % | median | 95 % | median of the table |", "|---|---:|---:|---:|---:|"]
    for title, new, table, say, unit in _charts(report):
        if new.count:
            cells = [f"{say(value)}{unit}" for q in (0.05, 0.5, 0.95) if (value := new.quantile(q)) is not None]
            middle = table.quantile(0.5) if table is not None else None
            lines.append(f"| {title} | {' | '.join(cells)} | {'' if middle is None else f'{say(middle)}{unit}'} |")
    seconds = report.stats.seconds()
    if seconds:
        lines += ["", "## Where the time went", "", "| step | work | share |", "|---|---:|---:|"]
        total = sum(seconds.values())
        lines += [f"| {step} | {duration(spent)} | {share(spent, total)} |" for step, spent in sorted(seconds.items(), key=lambda p: -p[1])]
    return "\n".join(lines) + "\n"
