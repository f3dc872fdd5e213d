"""`mtv/refresh-labels`: relabel what is stale in a table, and nothing else."""

from __future__ import annotations

from typing import Any

from prefect import flow

from mtv_core.compute import ComputeConfig
from mtv_core.config import resolve_config
from mtv_core.data.sources.config import SourceConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.config import TableConfig
from tasks import stages
from tasks.run import open_run


@flow(name="mtv", description="Relabel what is stale.")
def refresh_labels(
    sources: str | list[str | SourceConfig] | None = None,
    table: TableConfig | None = None,
    label: LabelConfig | None = None,
    compute: ComputeConfig | None = None,
    preset: str = "demo",
    overrides: dict[str, Any] | None = None,
) -> str:
    """Label rows that have no label, or one of a revision that is not accepted any more, and tag the table. Returns the run id.

    Args:
        sources: only says which table, when `table.uri` is 'auto'; nothing is ingested.
        table: which table.
        label: the experts, and what happens when one changed: `accept: immediate` relabels, `accept: gate` reports.
        compute: the Dask cluster.
        preset: values to start from.
        overrides: dotted key → value.
    """
    resolved = resolve_config(preset, {"sources": sources, "table": table, "label": label, "compute": compute}, overrides)
    with open_run(resolved, "refresh-labels") as run:
        stages.refresh(run)
        return run.run_id


if __name__ == "__main__":
    refresh_labels()
