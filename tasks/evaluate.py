"""Evaluate: the trained model and the same model untrained, against ground truth; numbers and plots go to MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtv_core.executor import Progress
from mtv_core.report import StageRef
from mtv_core.settings import home
from tasks import tracking
from tasks.run import Run, stage_key

VERSION = 1
# (what, metric, the untrained model's or chance, larger is better)
HEADLINES = (
    ("zero-shot top-1, 48 classes", "zero_shot/top1", "zero_shot/chance", True),
    ("shape given colour, 6 classes", "zero_shot/shape_given_colour", "zero_shot/shape_given_colour_chance", True),
    ("image → text R@1", "retrieval/i2t_r1", "retrieval/chance_r1", True),
    ("text → image R@1", "retrieval/t2i_r1", "retrieval/chance_r1", True),
    ("linear depth RMSE, m", "depth_probe/rmse", "baseline/depth_probe/rmse", False),
    ("linear segmentation mIoU", "segmentation_probe/miou", "baseline/segmentation_probe/miou", True),
)


def key(run: Run, trained: StageRef) -> str:
    """Depends on the model and on the protocols."""
    return stage_key(
        "evaluate", VERSION, model=trained.uri, config=run.config.evaluate.model_dump(mode="json", exclude={"threads", "batch_size"})
    )


def evaluate(run: Run, key: str, trained: StageRef, progress: Progress) -> StageRef:
    """Run the protocols and record what they say."""
    from mtv_core.evaluation import suite

    out = run.folder / "eval"
    result = suite.run(
        model_folder=Path(trained.uri),
        baseline_folder=Path(trained.outputs["baseline"]),
        config=run.config.evaluate,
        out=out,
        home=home(),
        progress=progress,
        metrics_file=Path(trained.outputs["metrics"]),
    )
    tracked = tracking.resume_run(run.record, run.config, trained)
    tracked.log_evaluation(result)
    return StageRef(
        stage="evaluate",
        run_id=run.run_id,
        uri=str(out),
        version=trained.version,
        tag=trained.tag,
        revisions=trained.revisions,
        metrics=result.metrics,
        outputs={"mlflow_run_id": tracked.run_id, "mlflow_url": tracked.url, "report": str(out / "evaluation.json"), "model": trained.uri},
    )


def valid(ref: StageRef) -> bool:
    """Whether the report is still there."""
    return Path(ref.outputs["report"]).is_file()


def result_rows(metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """The table of results: what, trained, untrained or chance, and the ratio or difference."""
    rows = []
    for what, metric, reference, larger in HEADLINES:
        if metric not in metrics:
            continue
        value, against = metrics[metric], metrics.get(reference)
        row: dict[str, Any] = {"what": what, "trained": _with_interval(metrics, metric)}
        row["compared with"] = (
            ""
            if against is None
            else f"{_with_interval(metrics, reference)} ({'untrained' if reference.startswith('baseline') else 'chance'})"
        )
        if against:
            row["gain"] = f"{value / against:.1f} ×" if larger else f"{100 * (value - against) / against:+.0f} %".replace("-", "−")
        rows.append(row)
    return rows


def _with_interval(metrics: Mapping[str, float], name: str) -> str:
    half = metrics.get(f"{name}_ci95")
    return f"{metrics[name]:.3f}" + (f" ± {half:.3f}" if half is not None else "")
