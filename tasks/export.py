"""Export: the model as folders that other libraries load, with a card; registered in MLflow as champion."""

from __future__ import annotations

from pathlib import Path

from mtv_core.config import PipelineConfig
from mtv_core.executor import Progress
from mtv_core.report import StageRef
from mtv_core.store.table import Table
from tasks import tracking
from tasks.run import Run, stage_key

VERSION = 1


def check(config: PipelineConfig) -> None:
    """Refuse a format that the model has no exact form of.

    Raises:
        ValueError: with the reason.
    """
    from mtv_core import export

    export.check(config.train.model, config.export)


def key(run: Run, trained: StageRef, evaluated: StageRef | None) -> str:
    """Depends on the model, on the evaluation that its card reports, and on the formats."""
    report = evaluated.uri if evaluated else None
    return stage_key("export", VERSION, model=trained.uri, report=report, config=run.config.export.model_dump(mode="json"))


def export(run: Run, key: str, trained: StageRef, evaluated: StageRef | None, progress: Progress) -> StageRef:
    """Write the folder, check that it answers as the trained model does, register it."""
    from mtv_core import export as core
    from mtv_core.export.model_card import ModelFacts

    progress(0, 2, "converting and comparing")
    facts = ModelFacts(
        run_id=run.run_id,
        tag=trained.tag,
        table=run.table,
        experts=_experts(run, trained),
        metrics=dict(evaluated.metrics) if evaluated else {},
        protocols=_protocols(evaluated),
        data_licenses=_data_licenses(run, trained),
        config=run.config.model_dump(mode="json"),
        git_commit=run.record.git_commit,
    )
    result = core.run(Path(trained.uri), run.config.export, run.folder / "export", facts)
    outputs = {"formats": ",".join(result.formats)}
    if run.config.export.register_model:
        progress(1, 2, "registering")
        tracked = tracking.resume_run(run.record, run.config, trained)
        outputs["model_version"] = str(tracked.register(result.folder, run.config.export.name))
        outputs |= {"mlflow_run_id": tracked.run_id, "mlflow_url": tracked.url}
    progress(2, 2, "")
    return StageRef(
        stage="export",
        run_id=run.run_id,
        uri=str(result.folder),
        version=trained.version,
        tag=trained.tag,
        revisions=trained.revisions,
        metrics={"export/max_error": result.max_error},
        outputs=outputs,
    )


def _protocols(evaluated: StageRef | None) -> dict[str, str]:
    """What each number of the card was measured by."""
    from mtv_core.evaluation import suite

    if evaluated is None:
        return {}
    return {name: card.tag for name, card in suite.load(Path(evaluated.uri)).protocols.items()}


def _data_licenses(run: Run, trained: StageRef) -> list[str]:
    """What the rows say of their licences; 'unknown' for those that say nothing."""
    view = Table.at(run.table, version=trained.version, storage_options=run.config.table.storage_options)
    return sorted({value or "unknown" for batch in view.scan(["license"]) for value in batch["license"].unique().to_pylist()})


def _experts(run: Run, trained: StageRef) -> dict[str, dict[str, str]]:
    """Name, licence and revision of every expert whose labels the model learnt from."""
    accepted = Table.open(run.table, run.config.table.storage_options).accepted()
    found = {}
    for expert, revision in trained.revisions.items():
        source = accepted[expert].source if expert in accepted and accepted[expert].revision == revision else {}
        found[expert] = {"revision": revision, **{name: str(value) for name, value in source.items()}}
    return found


def valid(ref: StageRef) -> bool:
    """Whether the folder is still there."""
    return Path(ref.uri).is_dir() and any(Path(ref.uri).iterdir())
