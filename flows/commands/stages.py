"""One subcommand a stage, here and now, without a server: the same code as in the flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flows.commands.console import (
    Bar,
    PresetOption,
    RunArgument,
    SetOption,
    SourcesOption,
    TableOption,
    bars,
    out,
    overrides_of,
    resolve_options,
)
from mtv_core import runs
from mtv_core.charts import number, size
from mtv_core.config import Resolved, resolve_values
from mtv_core.executor import Progress
from mtv_core.report import StageRef
from mtv_core.runs import RunRecord

if TYPE_CHECKING:
    from mtv_core.training.estimate import Estimate

TagOption = Annotated[
    str | None, typer.Option("--tag", help="Train on exactly these rows and labels; by default on the table as it stands.")
]


def ingest(preset: PresetOption = "demo", sources: SourcesOption = None, table: TableOption = None, options: SetOption = None) -> None:
    """Bring shards into a table. What is there already is not read again."""
    from tasks import ingest as stage
    from tasks.run import open_run

    resolved = resolve_options(preset, sources, table, options)
    with open_run(resolved, "ingest") as run:
        key = stage.key(run)
        ref = run.stage("ingest", key, lambda: _with_bar("ingest", lambda progress: stage.ingest(run, key, progress)))
    _say(ref)


def label(preset: PresetOption = "demo", sources: SourcesOption = None, table: TableOption = None, options: SetOption = None) -> None:
    """Let the experts label what is missing or stale, and tag the result."""
    from tasks import label as stage
    from tasks import label_report
    from tasks.run import open_run

    resolved = resolve_options(preset, sources, table, options)
    stage.check(resolved.config)
    with open_run(resolved, "label") as run:
        before = stage.as_it_is(run).version

        def work() -> StageRef:
            ref = _with_bar("label", lambda progress: stage.label(run, "", progress))
            return ref.model_copy(update={"outputs": {**ref.outputs, **label_report.report(run, ref, before)}})

        ref = run.stage("label", "", work)
        stage.gallery(run, ref)
        out.print(f"pictures of labels: {run.folder / 'reports' / 'labels.jpg'}")
    _say(ref)


def train(
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    tag: TagOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and stop. Needs no table.")] = False,
    options: SetOption = None,
) -> None:
    """Pretrain a backbone from a labelled table. An unfinished run of the same configuration is continued."""
    from tasks import export as export_stage
    from tasks import label as label_stage
    from tasks import train as stage
    from tasks.run import open_run

    resolved = resolve_options(preset, sources, table, options)
    if dry_run:
        from mtv_core.training.estimate import estimate

        _take(estimate(resolved.config.train))
        return
    stage.check(resolved.config)
    export_stage.check(resolved.config)
    with open_run(resolved, "train") as run:
        labelled = label_stage.current(run, tag)
        key = stage.key(run, labelled)
        ref = run.stage("train", key, lambda: _with_bar("train", lambda progress: stage.train(run, key, labelled, progress)))
    _say(ref)


def _take(found: Estimate) -> None:
    """What a training would take, for people."""
    counts = {**found.parameters, "trained": found.trained}
    rows = {
        "parameters": ", ".join(f"{name} {count / 1e6:.3g} M" for name, count in counts.items()),
        "steps": f"{number(found.steps)} of {number(found.global_batch)} samples, {number(found.samples)} in all",
        "work": f"{found.flop_per_sample / 1e9:.4g} GFLOP a sample, forward and backward; {found.flop:.2g} FLOP in all",
        "memory": f"a rank: {size(found.state_bytes)} for weights, gradients, moments and teacher, and about "
        f"{size(found.activation_bytes)} for {found.samples_per_rank} samples on their way",
    }
    for name, value in rows.items():
        out.print(f"{name:<11}{value}")


def evaluate(run_id: RunArgument = None, options: SetOption = None) -> None:
    """Measure a trained model, and the same model untrained, against ground truth."""
    from tasks import evaluate as stage
    from tasks.run import open_run

    record, trained = _stage_of(run_id, "train")
    with open_run(_config_of(record, options), "evaluate") as run:
        key = stage.key(run, trained)
        ref = run.stage("evaluate", key, lambda: _with_bar("evaluate", lambda progress: stage.evaluate(run, key, trained, progress)))
    _say(ref)
    from flows.results import results_table

    out.print(results_table(ref.metrics))


def export(run_id: RunArgument = None, options: SetOption = None) -> None:
    """Write a trained model as folders that transformers and timm load, and register it."""
    from tasks import export as stage
    from tasks.run import open_run

    record, trained = _stage_of(run_id, "train")
    evaluated = _evaluation_of(trained)
    resolved = _config_of(record, options)
    stage.check(resolved.config)
    with open_run(resolved, "export") as run:
        key = stage.key(run, trained, evaluated)
        ref = run.stage("export", key, lambda: _with_bar("export", lambda progress: stage.export(run, key, trained, evaluated, progress)))
    _say(ref)


def _with_bar(name: str, work: Callable[[Progress], StageRef]) -> StageRef:
    with bars() as progress:
        return work(Bar(progress, name))


def _say(ref: StageRef) -> None:
    report = ref.report
    counts = [f"{report.rows_in} rows in", f"{report.rows_out} out"] if report.rows_in or report.rows_out else []
    counts += [
        f"{value} {name.replace('_', ' ')}"
        for name, value in (("rejected", report.rows_rejected), ("skipped", report.rows_skipped))
        if value
    ]
    counts += [f"{value} {name}" for name, value in sorted(report.counts.items())]
    out.print(f"{ref.stage}: {', '.join(counts) or 'done'}")
    pages = ref.outputs.get("report/report.html") or ref.outputs.get("report/labels/index.html")
    outputs = (("report", pages), ("mlflow", ref.outputs.get("mlflow_url")))
    for name, value in (("where", ref.uri), ("version", ref.version), ("tag", ref.tag), *outputs):
        if value:
            out.print(f"  {name:<8} {escape(str(value))}")
    for note in ref.outputs.get("notes", "").splitlines():
        out.print(f"  {'note':<8} {escape(note)}")
    out.print(f"  {'run':<8} {ref.run_id}")


def _stage_of(run_id: str | None, name: str) -> tuple[RunRecord, StageRef]:
    """A run's result of a stage: of the named run, or of the latest that has one."""
    record = runs.latest_with(name, run_id)
    ref = record.stages[name].ref
    assert ref is not None
    return record, ref


def _evaluation_of(trained: StageRef) -> StageRef | None:
    """The latest evaluation of a model, for its card."""
    for record in reversed(runs.load_all()[0]):
        train_stage, evaluate_stage = record.stages.get("train"), record.stages.get("evaluate")
        if (
            evaluate_stage
            and evaluate_stage.ref
            and ((train_stage and train_stage.ref == trained) or evaluate_stage.ref.outputs.get("model") == trained.uri)
        ):
            return evaluate_stage.ref
    return None


def _config_of(record: RunRecord, options: list[str] | None) -> Resolved:
    """The configuration of a run, with what the command line changes."""
    return resolve_values([(f"run {record.run_id}", record.config)], overrides_of(options))
