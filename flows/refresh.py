"""`mtv/refresh-labels`: try experts that have changed, and label what is stale in a table; nothing else."""

from __future__ import annotations

from typing import Any

from prefect import State, flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Completed

from mtv_core.compute import ComputeConfig
from mtv_core.config import resolve_config
from mtv_core.data.sources.config import SourceConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.report import StageRef
from mtv_core.store.config import TableConfig
from tasks import refresh, stages, watch
from tasks.run import Run, open_run
from tasks.watch import ExpertUpdate


@flow(name="mtv", description="Try changed experts, then relabel what is stale.")
def refresh_labels(
    sources: str | list[str | SourceConfig] | None = None,
    table: TableConfig | None = None,
    label: LabelConfig | None = None,
    compute: ComputeConfig | None = None,
    preset: str = "demo",
    overrides: dict[str, Any] | None = None,
    update: ExpertUpdate | None = None,
    force: bool = False,
) -> State[str]:
    """Try each expert that is not the accepted one on some rows; where it passes, label the stale rows with it, and tag the table.

    The run ends as Completed when rows were labelled or nothing was to be done, as Refused when no new revision passed: then nothing has
    changed. The data of the state is the run id.

    Args:
        sources: only says which table, when `table.uri` is 'auto'; nothing is ingested.
        table: which table.
        label: the experts, how a new revision of one is tried, and who decides: `gate`.
        compute: the Dask cluster.
        preset: values to start from.
        overrides: dotted key → value.
        update: what the watcher saw, if its event started this run: only that expert is tried.
        force: try revisions again that were refused before.
    """
    resolved = resolve_config(preset, {"sources": sources, "table": table, "label": label, "compute": compute}, overrides)
    with open_run(resolved, "refresh-labels") as run:
        if update is not None and (other := _same(run, update)):
            return _end(run, "Duplicate", f"the refresh {other} is about {update.expert} {update.revision} as well; nothing was done")
        plans = refresh.plans(run)
        for expert in refresh.proposed(run, names=[update.expert] if update else None, force=force):
            # The run may be suspended here. It then begins anew, and finds its canary; an accepted expert is proposed no more.
            stages.decide(run, stages.canary(run, expert, plans[expert], force))
        verdicts = [stage.ref for name, stage in run.record.stages.items() if name.startswith("gate-") and stage.ref is not None]
        said = [_said(verdict) for verdict in verdicts]
        said += [
            f"{name} {one.tracked} was refused before ({one.refusal.reason})" for name, one in plans.items() if one.refusal and not force
        ]
        if verdicts and all(verdict.outputs["verdict"] == "refused" for verdict in verdicts):
            return _end(run, "Refused", "; ".join([*said, "nothing was changed"]))
        labelled = stages.refresh(run)
        rows = labelled.report.rows_out if labelled.run_id == run.run_id else 0
        return _end(run, "Completed", "; ".join([*said, f"{rows} labels written" if rows else "no label was stale"]))


def _same(run: Run, update: ExpertUpdate) -> str | None:
    """An earlier refresh of the same table for the same revision, which has not ended. Events may come twice."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    return watch.unfinished(run.table, update, but=context.flow_run.id)


def _said(verdict: StageRef) -> str:
    return "{expert} {revision} {verdict}: {reason}".format(**verdict.outputs)


def _end(run: Run, name: str, message: str) -> State[str]:
    run.record.message = message
    get_run_logger().info("%s", message)
    return Completed(name=name, message=message, data=run.run_id)


if __name__ == "__main__":
    refresh_labels()
