"""`mtv lineage`: which trained models learnt from labels that were replaced since."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.markup import escape

from flows.commands.console import err, out
from mtv_core.lineage import TrainedRun
from mtv_core.settings import resolve


def lineage(
    expert: Annotated[Literal["depth", "detection"] | None, typer.Option("--expert", help="Only labels of this expert.")] = None,
    table: Annotated[str | None, typer.Option("--table", "-t", help="Only runs on this table; by default on any.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Runs whose labels are the accepted ones, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every trained run, as one JSON object.")] = False,
) -> None:
    """List trained runs that used superseded labels. Needs no server; with MLflow it knows runs of other machines, too."""
    from tasks import lineage as stage

    found = stage.trace(expert, None if table is None else resolve(table))
    if as_json:
        typer.echo(json.dumps({"runs": [run.model_dump(mode="json") for run in found.runs], "problems": found.problems}, indent=2))
        return
    outdated = [run for run in found.runs if run.superseded]
    for run in found.runs if everything else outdated:
        _say(run)
    unknown = sum(run.superseded is None for run in found.runs)
    current = len(found.runs) - len(outdated) - unknown
    said = [f"{len(outdated)} of {len(found.runs)} trained runs used superseded labels"]
    said += [f"{current} did not"] if current else []
    said += [f"of {unknown} it cannot be told"] if unknown else []
    out.print(", ".join(said))
    for problem in found.problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")


def _say(run: TrainedRun) -> None:
    out.print(f"[bold]{escape(run.run_id or f'MLflow run {run.mlflow_run_id}')}[/]  {run.status}  {escape(run.table)}  {run.tag or ''}")
    for one in run.superseded or ():
        had = "its tag is gone" if one.rows is None else f"{one.rows} rows of its tag had it"
        left = f"{one.rows_left} rows have it still" if one.rows_left else "none has it any more"
        out.print(f"  {one.expert:<10} [yellow]{one.used}[/] is superseded by [green]{one.accepted}[/]: {had}, {left}")
    superseded = {one.expert for one in run.superseded or ()}
    now = "is the accepted one" if run.superseded is not None else "may be superseded: what the table accepts is not known"
    for expert, revision in run.revisions.items():
        if expert not in superseded:
            out.print(f"  {expert:<10} {revision} {now}")
    for name, value in (
        ("model", run.model),
        ("export", run.export),
        ("registered", ", ".join(run.registered)),
        ("mlflow", run.mlflow_url),
    ):
        if value:
            out.print(f"  {name:<10} {escape(value)}")
