"""Train: a tag → a backbone, by torchrun in a child process; its metrics go to MLflow as they appear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtv_core.config import PipelineConfig, table_uri
from mtv_core.executor import Progress
from mtv_core.report import StageRef, StageReport
from tasks import tracking
from tasks.run import Run, resumable, stage_key

VERSION = 1


def check(config: PipelineConfig) -> None:
    """Refuse a configuration that could not be trained.

    Raises:
        ValueError: a label an objective needs is not made by any expert; the slice's condition is none over the table's columns.
    """
    if config.train.data.where is not None:
        _check_where(config)
    objectives = config.train.objectives
    for objective, expert in (("grounding", "detection"), ("depth", "depth")):
        if getattr(objectives, objective) is not None and getattr(config.label, expert) is None:
            raise ValueError(
                f"the objective {objective} learns from labels of the {expert} expert, which label.{expert}: null turns off; "
                f"configure the expert, or set train.objectives.{objective} to null"
            )


def _check_where(config: PipelineConfig) -> None:
    from mtv_core.store.slices import check_where, known_schema
    from mtv_core.store.table import Table

    # Labels may come between now and the training, so their columns count as being there.
    table = Table(table_uri(config), config.table.storage_options)
    try:
        check_where(config.train.data.where, known_schema(table.dataset().schema if table.exists() else None))
    except ValueError as error:
        raise ValueError(f"train.data.where: {error}") from None


def key(run: Run, labelled: StageRef) -> str:
    """Depends on the tag, which stands for exactly these rows and labels, and on what of the configuration changes the result."""
    return stage_key("train", VERSION, table=run.table, tag=labelled.tag, config=run.config.train.fixed())


def train(run: Run, key: str, labelled: StageRef, progress: Progress) -> StageRef:
    """Train from a tag, going on from the checkpoint of an earlier run that did not finish the same work."""
    from mtv_core.training import launch

    assert labelled.tag is not None
    assert labelled.version is not None
    tracked = tracking.start_run(run.record, run.config, labelled)
    run.record.mlflow_run_id, run.record.mlflow_url = tracked.run_id, tracked.url
    run.record.save()
    earlier = resumable("train", key, lambda record: _checkpoints(record.folder) is not None, but=run.run_id)
    job = launch.TrainJob(
        folder=run.folder,
        table_uri=run.table,
        version=labelled.version,
        tag=labelled.tag,
        config=run.config.train,
        resume_from=_checkpoints(earlier.folder) if earlier else None,
        storage_options=run.config.table.storage_options,
    )
    steps = run.config.train.steps

    def on_metrics(rows: list[dict[str, Any]]) -> None:
        tracked.log_metrics(rows)
        last = rows[-1]
        eta = last.get("eta_seconds")
        progress(
            int(last["step"]), steps,
            f"loss {last['loss']:.3f} · {last['samples_per_second']:.0f} samples/s" + (f" · {eta:.0f} s left" if eta is not None else "")
            + "".join(f" · ALARM {alarm}" for alarm in last.get("alarms", ())),
        )  # fmt: skip

    try:
        result = launch.run(job, on_metrics)
    except BaseException as error:
        tracked.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracked.end("FINISHED")
    return StageRef(
        stage="train",
        run_id=run.run_id,
        uri=str(result.model_folder),
        version=labelled.version,
        tag=labelled.tag,
        revisions=labelled.revisions,
        metrics={f"train/{name}": value for name, value in result.metrics.items()},
        outputs={
            "baseline": str(result.baseline_folder),
            "metrics": str(run.folder / "metrics.jsonl"),
            "mlflow_run_id": tracked.run_id,
            "mlflow_url": tracked.url,
            **({"resumed_from": earlier.run_id} if earlier else {}),
        },
        report=StageReport(rows_in=result.steps * run.config.train.global_batch, seconds=result.seconds, counts={"steps": result.steps}),
    )


def _checkpoints(folder: Path) -> str | None:
    found = folder / "checkpoints"
    return str(found) if found.is_dir() and any(found.iterdir()) else None


def valid(ref: StageRef) -> bool:
    """Whether the model is still there."""
    return (Path(ref.uri) / "model.safetensors").is_file() and (Path(ref.outputs["baseline"]) / "model.safetensors").is_file()


def worth_retrying(state: Any) -> bool:
    """A mistake of the user's stays one; whatever else stopped the ranks may not happen again."""
    try:
        state.result()
    except (ValueError, FileNotFoundError, MemoryError):
        return False
    except Exception:
        return True
    return False
