"""A report of labels as Markdown, for a page of Prefect. What comes from the data cannot break out of its cell."""

from __future__ import annotations

import re
from html import escape

from mtv_core.charts import number, share
from mtv_core.data.funnel import describe
from mtv_core.label_report_facts import LabelReport
from mtv_core.label_report_pages import UNITS, coverage, described, found_in, headline, subtitle

_PHRASES = 15
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~])")


def markdown(report: LabelReport) -> str:
    """The numbers, without pictures."""
    lines = [f"# Labels of {cell(report.table)}", "", subtitle(report), ""]
    lines += ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in headline(report)), ""]
    for name, facts in report.experts.items():
        lines += [f"## {name.capitalize()}", "", "| | |", "|---|---|"]
        lines += [f"| {fact} | {cell(value)} |" for fact, value in described(facts)]
        about = "about " if facts.estimated else ""
        for kind, words, rows in coverage(facts):
            if rows or kind == "labelled":
                lines.append(f"| {words} | {about if kind in ('labelled', 'refused') else ''}{number(rows)}, {share(rows, report.rows)} |")
        lines += [f"| {cell(reason)} | {number(rows)}: {cell(describe(reason, name).what)} |" for reason, rows in facts.refused.items()]
        lines.append("")
    if report.checks:
        lines += ["## Labels against each other", "", "| check | share | of | what it may be |", "|---|---:|---|---|"]
        for check in report.checks:
            of = f"{number(check.flagged)} of {number(check.looked_at)} {check.unit}"
            lines.append(f"| {check.title} | {share(check.flagged, check.looked_at)} | {of} | {check.meaning} |")
        lines.append("")
    if report.changes:
        lines += [f"## What changed since version {report.before}", "", "| | changed | mean | 5 % above | in |", "|---|---:|---:|---:|---|"]
        for name, one in report.changes.items():
            changed = f"{share(one.changed, one.rows)} of {number(one.rows)}"
            lines.append(f"| {name} | {changed} | {one.mean:.3f} | {one.highest:.3f} | {UNITS[name]} |")
        lines.append("")
    if report.phrases:
        lines += ["## Phrases found most", "", "| phrase | boxes | mean score | looked for in | found in |", "|---|---:|---:|---:|---:|"]
        for phrase in report.phrases[:_PHRASES]:
            score = f"{phrase.score:.2f}" if phrase.score is not None else ""
            asked = number(phrase.asked) if phrase.asked is not None else ""
            lines.append(f"| {cell(phrase.phrase)} | {number(phrase.boxes)} | {score} | {asked} | {found_in(phrase)} |")
        lines.append("")
    if report.never_found:
        lines += ["## Looked for and never found", "", "| phrase | looked for in |", "|---|---:|"]
        lines += [f"| {cell(phrase.phrase)} | {number(phrase.asked or 0)} |" for phrase in report.never_found[:_PHRASES]]
        lines.append("")
    if report.dropped:
        lines += ["## Dropped by filters of the detector", "", "| filter | boxes |", "|---|---:|"]
        lines += [
            f"| {cell(name)} | {number(boxes)} |" for name, boxes in sorted(report.dropped.items(), key=lambda one: (-one[1], one[0]))
        ]
        lines.append("")
    return "\n".join(lines)


def cell(text: str) -> str:
    """A text as itself: on one line, no HTML, no Markdown."""
    return _SPECIAL.sub(r"\\\1", escape(" ".join(text.split())[:200], quote=False))
