"""A report of labels for people: a page to start from and a page for each group of rows. They open from a disk and fetch nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from mtv_core import label_report_charts as charts
from mtv_core.charts import bars, number, share
from mtv_core.data.funnel import describe
from mtv_core.label_checks import Check
from mtv_core.label_report_facts import Boxes, ExpertFacts, LabelReport, PhraseFacts
from mtv_core.label_report_pictures import figure
from mtv_core.label_report_rows import Row, Shown
from mtv_core.label_report_sample import BINS
from mtv_core.label_report_scan import MOST_BOXES, SCORE_BINS
from mtv_core.label_report_style import STYLE

_NAMES = {"depth": "Depth", "detection": "Detection"}
START = "index.html"
_PHRASES = 20  # of the lists on the page


def group_page(report: LabelReport, shown: Shown, rows: Sequence[Row]) -> str:
    """The page of a group of rows."""
    revisions = {name: facts.revision for name, facts in report.experts.items()}
    back = f'<a href="{START}">{escape(report.table)}, version {report.version}</a>'
    return rows_page(shown.title, f"{shown.meaning} · {number(len(rows))} row{'' if len(rows) == 1 else 's'}", rows, revisions, back)


def rows_page(title: str, subtitle: str, rows: Sequence[Row], revisions: Mapping[str, str], back: str = "") -> str:
    """A page of rows with everything that is to be seen of them.

    Args:
        title: of the page.
        subtitle: what the rows are.
        rows: in their order.
        revisions: expert → revision that labels should have; others are named.
        back: HTML above the title.
    """
    single = all("depth" not in row.values and row.before is None for row in rows)
    figures = "".join(figure(row, revisions) for row in rows)
    return _page(
        title,
        f'<header>{f"<p>{back}</p>" if back else ""}<h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p></header>'
        f'<section><div class="figures{" one" if single else ""}">{figures}</div></section>',
    )


def index(report: LabelReport, shown: Sequence[Shown], thumbnails: Mapping[str, Sequence[str]]) -> str:
    """The page to start from.

    Args:
        report: the numbers.
        shown: the groups of rows that have a page, in order.
        thumbnails: name of a group → some of its rows as HTML.
    """
    checks = {check.name for check in report.checks}
    sections = [
        ("Experts", f'<div class="experts">{"".join(_expert(name, facts, report) for name, facts in report.experts.items())}</div>'),
        ("Rows to look at", _cards([one for one in shown if one.name not in checks], thumbnails)),
        ("Boxes, scores and depth", _histograms(report)),
        ("Phrases", _phrases(report)),
        ("Labels against each other", _checks(report, thumbnails)),
        ("What changed", _changes(report)),
        ("Dropped by filters of the detector", _dropped(report)),
    ]
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections if content)
    tiles = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in headline(report))
    links = "".join(f'<a href="{one.name}.html">{escape(one.title)}</a>' for one in shown)
    return _page(
        f"Labels of {report.table}",
        f'<header><h1>Labels of {escape(report.table)}</h1><p class="faint">{escape(subtitle(report))}</p>'
        f'<div class="tiles">{tiles}</div><nav>{links}</nav></header>{body}',
    )


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def subtitle(report: LabelReport) -> str:
    """Of which labels the report is."""
    parts = [f"{report.written:%Y-%m-%d %H:%M} UTC", f"table version {report.version}"]
    parts += [f"tag {report.tag}"] if report.tag else []
    parts += [f"compared with version {report.before}"] if report.before is not None else []
    return " · ".join(parts)


def headline(report: LabelReport) -> list[tuple[str, str]]:
    """What one wants to know first: (name, value)."""
    found = [("rows", number(report.rows))]
    for name, facts in report.experts.items():
        found.append((f"have {name} labels", share(facts.labelled, report.rows)))
    if (boxes := report.boxes) is not None:
        labelled = boxes.with_boxes + boxes.without
        found += [("boxes", number(boxes.number)), ("boxes a picture", f"{boxes.number / labelled:.2f}" if labelled else "–")]
        found.append(("mean score", f"{boxes.mean_score:.2f}" if boxes.mean_score is not None else "–"))
        found.append(("pictures without a box", share(boxes.without, labelled)))
    return found


def coverage(facts: ExpertFacts) -> list[tuple[str, str, int]]:
    """Where an expert's labels stand: (class, words, rows)."""
    without = "without a label in the import" if facts.imported else "failed for good"
    return [
        ("labelled", "labelled", facts.labelled),
        ("refused", without, facts.without),
        ("stale", "with labels of another revision", facts.stale),
        ("waiting", "not labelled yet", facts.waiting),
    ]


def _expert(name: str, facts: ExpertFacts, report: LabelReport) -> str:
    parts = coverage(facts)
    colours = {"labelled": "--blue", "refused": "--orange", "stale": "--green", "waiting": "--grey"}
    about = "about " if facts.estimated else ""
    key = "".join(
        f'<span><i style="background:var({colours[kind]})"></i>{about if kind in ("labelled", "refused") else ""}{number(rows)} {words}, '
        f"{share(rows, report.rows)}</span>"
        for kind, words, rows in parts
        if rows or kind == "labelled"
    )
    said = [(fact, f"<code>{escape(value)}</code>") for fact, value in described(facts)]
    said = [(fact, value) if fact != "licence" else (fact, f"<b>{escape(facts.license or 'unknown')}</b>") for fact, value in said]
    reasons = "".join(
        f"<li>{number(rows)} × {escape(reason)}: {escape(describe(reason, name).what)}</li>" for reason, rows in facts.refused.items()
    )
    return (
        f'<div class="expert"><h3>{escape(_NAMES.get(name, name))}</h3>{charts.stack([(kind, rows) for kind, _, rows in parts])}'
        f'<div class="key">{key}</div><dl>{"".join(f"<dt>{escape(fact)}</dt><dd>{value}</dd>" for fact, value in said)}</dl>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div>"
    )


def described(facts: ExpertFacts) -> list[tuple[str, str]]:
    """What an expert is: (fact, value)."""
    found = [("model", facts.model or "not the accepted one: unknown"), ("licence", facts.license or "unknown")]
    found.append(("revision", facts.revision or "none yet"))
    found += [("imported", facts.imported)] if facts.imported else []
    found += [(name.replace("_", " "), value) for name, value in facts.identity.items()]
    others = {revision: rows for revision, rows in facts.stored.items() if revision not in ("", facts.revision)}
    return found + [
        ("stored too", f"{revision}: {number(rows)} rows") for revision, rows in sorted(others.items(), key=lambda one: -one[1])
    ]


def _histograms(report: LabelReport) -> str:
    parts: list[str] = []
    if report.boxes is not None and report.boxes.number:
        parts += _box_charts(report.boxes, report.boxes_before)
    sample = f"{number(report.sample)} rows by chance"
    ticks, ends = charts.unit_ticks(), charts.unit_ends(BINS)
    parts.append(charts.histogram("Size of boxes", report.areas, ticks, ends, "boxes", f"side of a square of that area; {sample}"))
    parts.append(
        charts.histogram("Range of depth maps", report.relief, ticks, ends, "maps", f"its middle 90 % in its largest value; {sample}")
    )
    if not any(parts):
        return ""
    legend = ""
    if report.boxes_before is not None and report.boxes_before.number:
        legend = (
            f'<p class="legend faint"><span><i></i>version {report.version}</span>'
            f'<span><i class="table"></i>version {report.before}, before</span></p>'
        )
    return f'{legend}<div class="grid four">{"".join(parts)}</div>'


def _box_charts(boxes: Boxes, before: Boxes | None) -> list[str]:
    mean = f"mean {boxes.mean_score:.2f}" if boxes.mean_score is not None else ""
    if before is not None and before.mean_score is not None:
        mean += f", before {before.mean_score:.2f}"
    last = max([i for one in (boxes, before) if one is not None for i, rows in enumerate(one.a_row) if rows] or [0]) + 1
    step = max(1, -(-last // 8))
    ticks = [((i + 0.5) / last, f"{i}{'+' if i == MOST_BOXES else ''}") for i in range(0, last, step)]
    return [
        charts.histogram(
            "Scores",
            boxes.scores,
            charts.unit_ticks(),
            charts.unit_ends(SCORE_BINS),
            "boxes",
            f"{mean}; of all {number(boxes.number)} boxes",
            before.scores if before is not None else None,
        ),
        charts.histogram(
            "Boxes a picture",
            boxes.a_row[:last],
            ticks,
            lambda i: f"{i}{' or more' if i == MOST_BOXES else ''}",
            "pictures",
            "of all pictures that the detector looked at",
            before.a_row[:last] if before is not None else None,
        ),
    ]


def _phrases(report: LabelReport) -> str:
    found, missed = report.phrases[:_PHRASES], report.never_found[:_PHRASES]
    if not found and not missed:
        return ""
    note = f"{number(report.num_phrases)} different ones in the sample of {number(report.sample)} rows"
    parts = [_phrase_list("Found most", note, found)] if missed or len(found) < _PHRASES else [
        _phrase_list("Found most", note, found[: _PHRASES // 2]), _phrase_list("", "", found[_PHRASES // 2 :])
    ]  # fmt: skip
    if missed:
        parts.append(_phrase_list("Looked for and never found", "in the sample, what was looked for most first", missed))
    return f'<div class="grid two">{"".join(part for part in parts if part)}</div>'


def _phrase_list(title: str, note: str, phrases: Sequence[PhraseFacts]) -> str:
    if not phrases:
        return ""
    known = any(one.asked is not None for one in phrases)
    boxes = any(one.boxes for one in phrases)
    head = (["boxes", "mean score"] if boxes else []) + (["looked for in"] if known else []) + (["found in"] if boxes else [])
    lines = []
    for one in phrases:
        cells = [number(one.boxes), f"{one.score:.2f}" if one.score is not None else ""] if boxes else []
        cells += [number(one.asked) if one.asked is not None else ""] if known else []
        cells += [found_in(one)] if boxes else []
        lines.append(f'<tr><th dir="auto">{escape(one.phrase[:120])}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return (
        f'<figure class="phrases"><figcaption><h3>{escape(title) or "&nbsp;"}</h3><p>{escape(note) or "&nbsp;"}</p></figcaption>'
        f"<table><thead><tr><th>phrase</th>"
        f"{''.join(f'<th>{name}</th>' for name in head)}</tr></thead><tbody>{''.join(lines)}</tbody></table></figure>"
    )


def found_in(phrase: PhraseFacts) -> str:
    """In which share of the pictures it was found, of those in which it was looked for; the number, where that is not known."""
    known = phrase.asked is not None and phrase.found <= phrase.asked
    return share(phrase.found, phrase.asked or 1) if known else number(phrase.found)


def _checks(report: LabelReport, thumbnails: Mapping[str, Sequence[str]]) -> str:
    return "".join(_check(check, thumbnails.get(check.name, ())) for check in report.checks)


def _check(check: Check, thumbnails: Sequence[str]) -> str:
    title = f'<a href="{check.name}.html">{escape(check.title)}</a>' if thumbnails else escape(check.title)
    details = "".join(f"<li>{escape(one)}</li>" for one in check.details[:8])
    thumbs = f'<div class="thumbs">{"".join(thumbnails)}</div>' if thumbnails else ""
    listed = f"<ul>{details}</ul>" if details else ""
    return (
        f'<div class="check"><div><h3>{title}</h3><p class="faint">{escape(check.meaning)}</p>{listed}</div>'
        f'<div class="share">{share(check.flagged, check.looked_at)}<small>{number(check.flagged)} of {number(check.looked_at)} '
        f"{escape(check.unit)}</small></div>{thumbs}</div>"
    )


def _changes(report: LabelReport) -> str:
    found = []
    for name, one in report.changes.items():
        note = f"{share(one.changed, one.rows)} of {number(one.rows)} rows changed, by {one.mean:.3f} on average. {UNITS[name]}"
        bins = charts.unit_ends(len(one.amounts))
        found.append(charts.histogram(_NAMES.get(name, name), one.amounts, charts.unit_ticks(), bins, "rows", note))
    return f'<div class="grid two">{"".join(found)}</div>' if found else ""


UNITS = {
    "depth": "0: the same but for scale and shift; 0.25: two maps that have nothing to do with each other",
    "detection": "0: the same boxes; 1: none of them again",
}


def _dropped(report: LabelReport) -> str:
    total = sum(report.dropped.values()) or 1
    ordered = sorted(report.dropped.items(), key=lambda one: (-one[1], one[0]))
    values = [(f"{name} ({number(boxes)})", boxes / total) for name, boxes in ordered]
    return f'<div class="grid">{bars("Boxes", values, "in the labelling run before this report")}</div>' if values else ""


def _cards(shown: Sequence[Shown], thumbnails: Mapping[str, Sequence[str]]) -> str:
    cards = "".join(
        f'<div><h3><a href="{one.name}.html">{escape(one.title)}</a></h3><p class="faint">{escape(one.meaning)}</p>'
        f'<div class="thumbs">{"".join(thumbnails.get(one.name, ()))}</div></div>'
        for one in shown
    )
    return f'<div class="cards">{cards}</div>' if cards else ""
