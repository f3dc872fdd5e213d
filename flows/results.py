"""What a run ended with, as a person reads it on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mtv_core.runs import RunRecord
from tasks.evaluate import result_rows


def results_table(metrics: Mapping[str, float]) -> Table:
    """The trained model beside chance or beside the same model untrained."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = result_rows(metrics)
    for column in ("what", "trained", "compared with", "gain"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in ("what", "trained", "compared with", "gain")))
    return table


def show_run(console: Console, record: RunRecord) -> None:
    """Results, where the model is, and the links."""
    if record.metrics:
        console.print()
        console.print(results_table(record.metrics))
    facts = {
        "run": f"{record.run_id}  ({record.folder})",
        "table": f"{record.table.uri}  {record.table.tag or ''}",
        "model": record.export,
        "Prefect": record.prefect_url,
        "MLflow": record.mlflow_url,
    }
    console.print()
    for name, value in facts.items():
        if value:
            console.print(f"[bold]{name:<8}[/] {escape(value)}")
