"""All protocols on a trained model and on its untrained twin, as numbers, figures, tables and one JSON file.

Metrics are `<protocol>/<metric>` for the trained model, `baseline/<protocol>/<metric>` for the untrained. What models are compared by has a
`gain/<protocol>/<metric>` too (positive is better), and `…_beyond_interval`: 1 if the 95 % intervals of the two do not touch, else 0.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from mtv_core.evaluation import losses, plots
from mtv_core.evaluation.base import Evaluator, ProtocolCard
from mtv_core.evaluation.config import EvaluateConfig
from mtv_core.evaluation.datasets import blocks
from mtv_core.evaluation.encoder import ModelEncoder
from mtv_core.evaluation.linear_depth import LinearDepth
from mtv_core.evaluation.linear_segmentation import LinearSegmentation
from mtv_core.evaluation.retrieval import Retrieval
from mtv_core.evaluation.statistics import beyond
from mtv_core.evaluation.zero_shot import ZeroShot
from mtv_core.executor import Progress, silent
from mtv_core.model.mtv import load_model
from mtv_core.runs import write_atomic

FILE = "evaluation.json"
_CHANCE = {"zero_shot/top1": "zero_shot/chance", "retrieval/i2t_r1": "retrieval/chance_r1", "retrieval/t2i_r1": "retrieval/chance_r1"}

log = logging.getLogger(__name__)


class Evaluation(BaseModel, frozen=True, extra="forbid"):
    """What was found."""

    metrics: dict[str, float]
    plots: dict[str, str] = Field(description="name → path of a PNG; relative to the folder in the file")
    tables: dict[str, list[dict[str, Any]]]
    protocols: dict[str, ProtocolCard] = Field(description="first part of a metric's name → the protocol it was measured with")


def build(config: EvaluateConfig, home: Path) -> list[Evaluator]:
    """The configured protocols on the embedded benchmark, which is rendered now if it is not there yet."""
    size = config.picture_size
    dense = functools.cache(lambda: blocks.dense(home, train=config.dense_train, val=config.dense_val, size=size))
    probes: dict[str, int] = {
        "seeds": config.probe_seeds,
        "steps": config.probe_steps,
        "examples": config.examples,
        "threads": config.threads,
    }
    registry: dict[str, Callable[[], Evaluator]] = {
        "zero_shot": lambda: ZeroShot(blocks.classification(home, per_class=config.per_class, size=size)),
        "retrieval": lambda: Retrieval(blocks.retrieval(home, count=config.retrieval_count, size=size), config.examples),
        "depth_probe": lambda: LinearDepth(dense(), **probes),
        "segmentation_probe": lambda: LinearSegmentation(dense(), **probes),
    }
    return [registry[name]() for name in config.protocols]


def run(
    model_folder: Path,
    baseline_folder: Path | None,
    config: EvaluateConfig,
    out: Path,
    home: Path,
    progress: Progress = silent,
    metrics_file: Path | None = None,
) -> Evaluation:
    """Evaluate a model.

    Args:
        model_folder: what `save_model` wrote.
        baseline_folder: the same architecture untrained; None, or `config.baseline` off: no baseline and no gains.
        config: which protocols, how thoroughly.
        out: folder for figures and `evaluation.json`, which is written last and at once.
        home: `MTV_HOME`; the benchmark is kept there.
        progress: told of every step.
        metrics_file: the training's `metrics.jsonl`, to see whether every loss fell.

    Raises:
        FileNotFoundError: a folder or file is not there.
    """
    folders = {"": Path(model_folder)}
    if baseline_folder is not None and config.baseline:
        folders["baseline/"] = Path(baseline_folder)
    total = 1 + len(config.protocols) * (len(folders) + 1)
    steps = iter(range(total + 1))
    started = time.perf_counter()

    def say(message: str) -> None:
        done = next(steps)
        log.info("%5.1f s  %d of %d: %s", time.perf_counter() - started, done, total, message)
        progress(done, total, message)

    with _one_thread_inside_torch():
        encoders = {
            prefix: ModelEncoder(prefix or "trained", *load_model(folder), config.batch_size, config.threads)
            for prefix, folder in folders.items()
        }
        say("rendering the benchmark, the first time only")
        evaluators = build(config, Path(home))
        metrics: dict[str, float] = {}
        figures: dict[str, str] = {}
        for evaluator in evaluators:
            for prefix, encoder in encoders.items():
                say(f"{evaluator.card.name}, {'untrained' if prefix else 'trained'} model")
                metrics |= {f"{prefix}{evaluator.name}/{metric}": value for metric, value in evaluator(encoder)}
        metrics |= gains(evaluators, metrics)
        for evaluator in evaluators:
            say(f"figures of {evaluator.card.name}")
            figures |= {name: str(path) for name, path in evaluator.figures(encoders[""], out)}
    tables = {"results": results(evaluators, metrics)}
    figures["summary"] = str(plots.summary(_bars(tables["results"]), out / "summary.png"))
    if metrics_file is not None:
        curves = losses.read(Path(metrics_file))
        metrics |= losses.metrics(curves)
        figures["losses"] = str(plots.losses({name: (curve.steps, curve.values) for name, curve in curves.items()}, out / "losses.png"))
        tables["losses"] = [{"loss": n, "first 5 %": c.first, "last 10 %": c.last, "fell": c.fell} for n, c in curves.items()]
    found = Evaluation(metrics=metrics, plots=figures, tables=tables, protocols={e.name: e.card for e in evaluators})
    save(found, out)
    say("done")
    return found


def save(evaluation: Evaluation, out: Path) -> None:
    """Write `evaluation.json` with the figures' paths relative to its folder, at once or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    content = evaluation.model_dump(mode="json")
    content["plots"] = {name: str(Path(path).relative_to(out)) for name, path in evaluation.plots.items()}
    write_atomic(out / FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")


def load(out: Path) -> Evaluation:
    """What `save` wrote in that folder.

    Raises:
        FileNotFoundError: nothing was evaluated there.
    """
    path = Path(out) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; run `mtv evaluate` first")
    content = json.loads(path.read_text())
    content["plots"] = {name: str(path.parent / place) for name, place in content["plots"].items()}
    return Evaluation.model_validate(content)


def gains(evaluators: list[Evaluator], metrics: Mapping[str, float]) -> dict[str, float]:
    """What training brought, for every metric that both models have."""
    found: dict[str, float] = {}
    for name, higher in _compared(evaluators):
        ours, theirs = metrics.get(name), metrics.get(f"baseline/{name}")
        if ours is None or theirs is None:
            continue
        found[f"gain/{name}"] = ours - theirs if higher else theirs - ours
        intervals = metrics[f"{name}_ci95"], metrics[f"baseline/{name}_ci95"]
        found[f"gain/{name}_beyond_interval"] = float(beyond(ours, intervals[0], theirs, intervals[1], higher))
    return found


def results(evaluators: list[Evaluator], metrics: Mapping[str, float]) -> list[dict[str, Any]]:
    """The table of a report: a row for each metric that models are compared by."""
    protocols = {evaluator.name: evaluator.card.tag for evaluator in evaluators}
    rows = []
    for name, higher in _compared(evaluators):
        row: dict[str, Any] = {
            "metric": name,
            "trained": metrics[name],
            "trained_ci95": metrics[f"{name}_ci95"],
            "higher_is_better": higher,
        }
        row["untrained"], row["untrained_ci95"] = metrics.get(f"baseline/{name}"), metrics.get(f"baseline/{name}_ci95")
        row["chance"] = metrics.get(_CHANCE.get(name, f"{name}_chance"))
        gain = metrics.get(f"gain/{name}_beyond_interval")
        row["beyond_interval"] = None if gain is None else bool(gain)
        row["protocol"] = protocols[name.split("/")[0]]
        rows.append(row)
    return rows


def _compared(evaluators: list[Evaluator]) -> Iterator[tuple[str, bool]]:
    for evaluator in evaluators:
        for metric, higher in evaluator.compared.items():
            yield f"{evaluator.name}/{metric}", higher


def _bars(rows: list[dict[str, Any]]) -> list[plots.Bar]:
    return [
        plots.Bar(
            label=row["metric"].replace("/", "\n").replace("_", " "),
            trained=row["trained"],
            trained_ci=row["trained_ci95"],
            untrained=row["untrained"],
            untrained_ci=row["untrained_ci95"] or 0.0,
            chance=row["chance"],
            higher_is_better=row["higher_is_better"],
        )
        for row in rows
        if math.isfinite(row["trained"])
    ]


@contextmanager
def _one_thread_inside_torch() -> Iterator[None]:
    """Batches and seeds run side by side instead: operations this small wait for each other's threads, on busy cores for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
