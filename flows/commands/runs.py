"""`mtv runs`: what every run made and where, read from the run folders alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.console import err, out
from mtv_core import runs
from mtv_core.runs import RunRecord, RunStatus

_STYLE = {"completed": "green", "running": "cyan", "suspended": "magenta", "failed": "red", "crashed": "red", "cancelled": "yellow"}
HEADLINE = ("zero_shot/top1", "retrieval/i2t_r1", "depth_probe/rmse", "segmentation_probe/miou")


def list_runs(
    run_id: Annotated[str | None, typer.Argument(help="One run in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as a JSON array of one object a run.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The latest N.")] = 20,
) -> None:
    """List what every run made and where. Needs no server."""
    if run_id is not None:
        records, problems = [runs.load(run_id)], list[str]()
    else:
        records, problems = runs.load_all()
    for record in records:
        record.status = runs.effective_status(record)
    if as_json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], indent=2))
    elif run_id is not None:
        _one(records[0])
    elif not records:
        out.print(f"no runs yet in {runs.runs_folder()}; start one with `mtv demo` or `prefect deployment run mtv/full-pipeline --watch`")
    else:
        _many(records[-limit:], hidden=max(0, len(records) - limit))
    for problem in problems:
        err.print(f"[yellow]warning:[/] {escape(problem)}")


def _many(records: list[RunRecord], hidden: int) -> None:
    rows = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("run", "flow", "status", "started", "took"):
        rows.add_column(column, no_wrap=True, min_width=len(records[0].run_id) if column == "run" else None)
    rows.add_column("stages", overflow="fold")
    rows.add_column("message", overflow="fold")
    for record in records:
        stages = " ".join(
            f"{name}{'·' if stage.status == 'reused' else '✓' if stage.status == 'ran' else '✗' if stage.status == 'failed' else '…'}"
            for name, stage in record.stages.items()
        )
        style = _STYLE[record.status.value]
        rows.add_row(
            record.run_id, record.flow, f"[{style}]{record.status.value}[/]", f"{record.started:%m-%d %H:%M}", took(record), stages,
            escape(record.message[:200]),
        )  # fmt: skip
    out.print(rows)
    out.print(f"[dim]✓ ran  · reused  ✗ failed{f'   {hidden} earlier ones not shown' if hidden else ''}   in {runs.runs_folder()}[/]")


def _one(record: RunRecord) -> None:
    rows = Table(box=None, show_header=False, pad_edge=False)
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    table = " ".join(f"{part}" for part in (record.table.uri, f"version {record.table.version}", record.table.tag) if part)
    facts = {
        "run": record.run_id, "status": record.status.value, "message": record.message, "took": took(record), "folder": str(record.folder),
        "table": table, "experts": "  ".join(f"{name} {revision}" for name, revision in record.experts.items()),
        "export": record.export, "mlflow": record.mlflow_url, "prefect": record.prefect_url, "git commit": record.git_commit,
    }  # fmt: skip
    for name, value in facts.items():
        if value:
            rows.add_row(name, escape(str(value)))
    for name, stage in record.stages.items():
        rows.add_row(f"  {name}", f"{stage.status}  {stage.seconds:.1f} s  {escape(stage.message)}")
    for name, number in sorted(record.metrics.items()):
        rows.add_row(f"  {name}", f"{number:.4g}")
    out.print(rows)


def took(record: RunRecord) -> str:
    """Wall time of a run, '4 min 10 s'."""
    end = record.ended or (datetime.now(UTC) if record.status is RunStatus.RUNNING else None)
    if end is None:
        return ""
    seconds = round((end - record.started).total_seconds())
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
