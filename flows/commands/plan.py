"""`mtv plan`: what labelling would do now and what it would cost, from the table's manifest. Changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table as Grid

from flows.commands.console import PresetOption, SetOption, SourcesOption, TableOption, out, resolve_options
from mtv_core.charts import size
from mtv_core.config import table_uri
from mtv_core.executor import amount, duration

if TYPE_CHECKING:
    from mtv_core.labelling_plan import ExpertPlan, Work


def plan(
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    options: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Say what labelling would do, by expert: revisions, stale rows, time, bytes and cost. Needs no server and loads no weights."""
    from mtv_core import labelling_plan
    from tasks import experts

    config = resolve_options(preset, sources, table, options).config
    uri = table_uri(config)
    plans = labelling_plan.plan(uri, experts.resolved(config.label), config.table.storage_options)
    if as_json:
        typer.echo(json.dumps({"table": uri, "experts": {name: one.model_dump(mode="json") for name, one in plans.items()}}, indent=2))
        return
    out.print(escape(uri))
    for name, one in plans.items():
        _expert(name, one)
    if not plans:
        out.print("no expert is configured: set label.depth or label.detection")


def _expert(name: str, plan: ExpertPlan) -> None:
    rows = Grid(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column(style="bold", min_width=9)
    rows.add_column(min_width=8)
    rows.add_column(overflow="fold")
    facts = [("tracked", _tracked(name, plan)), ("accepted", plan.accepted or "none yet: the first labelling accepts what is tracked")]
    if plan.imported is not None:
        facts.append(("imported", f"from {plan.imported}: rows that it does not have get no label"))
    facts.append(("stored", _stored(plan)))
    facts += [("rejected", f"{one.revision}  on {one.at[:10]}: {one.reason}") for one in plan.rejected]
    facts.append(("stale", said(plan.stale)))
    if plan.proposal is not None:
        facts.append(("proposal", said(plan.proposal)))
    measured = (plan.proposal or plan.stale).rate
    if measured is not None:
        of = "" if measured.revision == (plan.proposal or plan.stale).revision else f" of revision {measured.revision}"
        speed = f"{amount(measured.rows_per_second)} rows/s with {_many(measured.workers, 'worker')}"
        facts.append(("measured", f"{speed}, on {measured.at[:10]}, {_many(measured.rows, 'row')}{of}"))
    for index, (fact, value) in enumerate(facts):
        rows.add_row(name if index == 0 else "", fact, escape(value))
    out.print(rows)


def _tracked(name: str, plan: ExpertPlan) -> str:
    if plan.unresolved is not None:
        return f"nothing: {plan.unresolved}"
    if plan.imported is not None and plan.proposed:
        return f"{plan.tracked}  not used: the labels were imported; `mtv refresh --expert {name}` tries it against them"
    if plan.refusal is not None:
        return f"{plan.tracked}  refused before; `mtv refresh --force` tries it again"
    if plan.proposed:
        return f"{plan.tracked}  not accepted; `mtv refresh` tries it and labels every row with it if it passes"
    return plan.tracked


def _stored(plan: ExpertPlan) -> str:
    ordered = sorted(plan.stored.items(), key=lambda one: -one[1])
    return ", ".join(f"{revision or 'no labels'}: {_many(rows, 'row')}" for revision, rows in ordered) or "no rows"


def said(work: Work) -> str:
    """What is to be done, in a line."""
    if not work.num_stale:
        return "nothing"
    parts = [f"{_many(work.num_stale, 'row')} in {_many(work.num_fragments, 'fragment')}"]
    if work.seconds is None or work.bytes_to_write is None:
        return f"{parts[0]}; time and bytes unknown: no run has measured it yet"
    parts += [f"about {duration(work.seconds)}", size(work.bytes_to_write)]
    if work.cost is not None:
        parts.append(f"cost {work.cost:.2f}" if work.cost >= 0.01 or not work.cost else "cost below 0.01")
    return ", ".join(parts)


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}".replace(",", " ")
