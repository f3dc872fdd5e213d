"""The stages as the flow sees them: one Prefect task each, skipped when its result is already there.

A stage's result is kept under an explicit key of everything it depends on. After a hit the thing it points to is checked to exist still; if
not, the stage runs again. The work itself is in `tasks.ingest`, `tasks.label`, …, which know nothing of caching.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import Task, get_run_logger, task

from mtv_core.config import PipelineConfig
from mtv_core.executor import Progress
from mtv_core.labelling_plan import ExpertPlan
from mtv_core.report import StageRef
from tasks import artifacts, gate, label_report
from tasks import canary as canary_stage
from tasks import evaluate as evaluate_stage
from tasks import export as export_stage
from tasks import ingest as ingest_stage
from tasks import label as label_stage
from tasks import refresh as refresh_stage
from tasks import train as train_stage
from tasks.run import FileProgress, Run

# The key is worked out before the task is called, since it may have to look at the sources.
_STAGE: dict[str, Any] = {
    "persist_result": True,
    "result_serializer": "json",
    "cache_key_fn": lambda context, parameters: parameters["key"],
}


def _progress(run: Run, name: str) -> Progress:
    return FileProgress(run, name, artifacts.ProgressArtifact(name))


@task(name="ingest", **_STAGE)
def ingest_task(run: Run, key: str) -> StageRef:
    """Shards → rows and refusals."""
    ref = ingest_stage.ingest(run, key, _progress(run, "ingest"))
    artifacts.report(ref)
    artifacts.ingest_report(ref, run.config.table.storage_options)
    return ref


@task(name="label", **_STAGE)
def label_task(run: Run, key: str, ingested: StageRef) -> StageRef:
    """Rows → rows with depth and boxes, under a tag."""
    ref = label_stage.label(run, key, _progress(run, "label"))
    ref = ref.model_copy(update={"outputs": {**ref.outputs, **label_report.report(run, ref, ingested.version)}})
    artifacts.report(ref)
    label_report.artifacts(ref, run.config.table.storage_options)
    gallery = label_stage.gallery(run, ref)
    if gallery is not None:
        artifacts.picture("labels", gallery, "Labels: image, depth (near is bright), boxes with phrases and scores")
    return ref


@task(name="canary", task_run_name="canary-{expert}", **_STAGE)
def canary_task(run: Run, key: str, expert: str, force: bool) -> StageRef:
    """Some rows, labelled aside by a new revision → how its labels differ, and whether that may be."""
    ref = canary_stage.try_out(run, expert, force, _progress(run, f"canary-{expert}"))
    artifact = canary_stage.show(run, canary_stage.of(ref))
    return ref.model_copy(update={"outputs": {**ref.outputs, "artifact": artifact}})


@task(
    name="train", retries=1, retry_delay_seconds=5, retry_condition_fn=lambda task, run, state: train_stage.worth_retrying(state), **_STAGE
)
def train_task(run: Run, key: str, labelled: StageRef) -> StageRef:
    """Tagged rows → a backbone. A retry continues from the last checkpoint."""
    ref = train_stage.train(run, key, labelled, _progress(run, "train"))
    artifacts.report(ref)
    if url := ref.outputs.get("mlflow_url"):
        artifacts.link("mlflow", url, "The run in MLflow")
    return ref


@task(name="evaluate", **_STAGE)
def evaluate_task(run: Run, key: str, trained: StageRef) -> StageRef:
    """The model, and the same model untrained → numbers and plots, in MLflow."""
    ref = evaluate_stage.evaluate(run, key, trained, _progress(run, "evaluate"))
    artifacts.report(ref)
    artifacts.results(evaluate_stage.result_rows(ref.metrics))
    return ref


@task(name="export", **_STAGE)
def export_task(run: Run, key: str, trained: StageRef, evaluated: StageRef) -> StageRef:
    """The model → folders that other libraries load, registered as champion."""
    ref = export_stage.export(run, key, trained, evaluated, _progress(run, "export"))
    artifacts.report(ref)
    return ref


def _stage(run: Run, name: str, key: str, prefect_task: Task[..., StageRef], valid: Callable[[StageRef], bool], **inputs: Any) -> StageRef:
    def work() -> StageRef:
        ref = prefect_task(run=run, key=key, **inputs)
        if ref.run_id != run.run_id:
            if valid(ref):
                get_run_logger().info("%s: done by run %s, reused", name, ref.run_id)
                return ref
            get_run_logger().warning("%s: the result of run %s is gone or was superseded; doing it again", name, ref.run_id)
            ref = prefect_task.with_options(refresh_cache=True)(run=run, key=key, **inputs)
        return ref

    return run.stage(name, key, work)


def preflight(config: PipelineConfig) -> None:
    """Refuse before the first stage what a later one could not do: an expert that is not there, an export the model has no form for."""
    label_stage.check(config)
    train_stage.check(config)
    export_stage.check(config)


def ingest(run: Run) -> StageRef:
    """Ingest, unless these very shards are in the table."""
    return _stage(run, "ingest", ingest_stage.key(run), ingest_task, lambda ref: ingest_stage.valid(run, ref))


def label(run: Run, ingested: StageRef) -> StageRef:
    """Label, unless nothing is stale."""
    return _stage(run, "label", label_stage.key(run, ingested), label_task, lambda ref: label_stage.valid(run, ref), ingested=ingested)


def canary(run: Run, expert: str, plan: ExpertPlan, force: bool = False) -> StageRef:
    """Try an expert's new revision on some rows, unless this run has."""
    key = canary_stage.key(run, expert, plan)
    return _stage(run, f"canary-{expert}", key, canary_task, lambda ref: True, expert=expert, force=force)


def decide(run: Run, tried: StageRef) -> StageRef:
    """Accept the revision of a canary or refuse it, as the thresholds or a person say; the flow run may be suspended for that."""
    canary = canary_stage.of(tried)
    why = refresh_stage.why_a_person(run, canary)
    form = gate.ask(run, canary, tried.outputs["artifact"], why) if why else None

    def work() -> StageRef:
        decision = refresh_stage.decide(run, canary, form.decision if form else None, form.reason if form else "")
        return StageRef(stage="gate", run_id=run.run_id, uri=run.table, outputs={**decision.model_dump(), "page": canary.page})

    return run.stage(f"gate-{canary.expert}", "", work)


def refresh(run: Run) -> StageRef:
    """Label what is stale in a table as it is."""
    ingested = label_stage.as_it_is(run)
    return _stage(run, "label", label_stage.key(run, ingested), label_task, lambda ref: label_stage.valid(run, ref), ingested=ingested)


def train(run: Run, labelled: StageRef) -> StageRef:
    """Train, unless this configuration was trained on this tag."""
    return _stage(run, "train", train_stage.key(run, labelled), train_task, train_stage.valid, labelled=labelled)


def evaluate(run: Run, trained: StageRef) -> StageRef:
    """Evaluate, unless this model was evaluated in this way."""
    return _stage(run, "evaluate", evaluate_stage.key(run, trained), evaluate_task, evaluate_stage.valid, trained=trained)


def export(run: Run, trained: StageRef, evaluated: StageRef) -> StageRef:
    """Export, unless this model was exported in this way."""
    return _stage(
        run, "export", export_stage.key(run, trained, evaluated), export_task, export_stage.valid, trained=trained, evaluated=evaluated
    )
