"""`mtv/full-pipeline`: raw shards in, an evaluated and exported model out."""

from __future__ import annotations

from typing import Any

from prefect import flow

from mtv_core.compute import ComputeConfig
from mtv_core.config import resolve_config
from mtv_core.data.sources.config import SourceConfig
from mtv_core.evaluation.config import EvaluateConfig
from mtv_core.export.config import ExportConfig
from mtv_core.ingest_config import IngestConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.config import TableConfig
from mtv_core.training.config import TrainConfig
from tasks import stages
from tasks.run import open_run


@flow(name="mtv", description="Ingest, label, train, evaluate and export.", log_prints=False)
def full_pipeline(
    sources: str | list[str | SourceConfig] | None = None,
    table: TableConfig | None = None,
    ingest: IngestConfig | None = None,
    label: LabelConfig | None = None,
    train: TrainConfig | None = None,
    evaluate: EvaluateConfig | None = None,
    export: ExportConfig | None = None,
    compute: ComputeConfig | None = None,
    preset: str = "demo",
    overrides: dict[str, Any] | None = None,
) -> str:
    """Run every stage whose result is not there yet, and return the run id.

    Args:
        sources: where the image-text data is: paths, globs, s3://…, blocks://…; one or a list. Changes nothing else.
        table: where the table is; by default one for each list of sources.
        ingest: how images and captions are read and checked.
        label: which experts write depth and boxes, and what happens when one changes.
        train: model, objectives, optimiser, number of processes.
        evaluate: which protocols are run on the trained and on the untrained model.
        export: formats, and whether the model is registered.
        compute: the Dask cluster that ingest and label use.
        preset: values to start from: the name of a preset, or the path of a YAML file.
        overrides: dotted key → value, stronger than everything else: {"train.steps": 100}.
    """
    resolved = resolve_config(
        preset,
        {
            "sources": sources, "table": table, "ingest": ingest, "label": label,
            "train": train, "evaluate": evaluate, "export": export, "compute": compute,
        },
        overrides,
    )  # fmt: skip
    with open_run(resolved, "full-pipeline") as run:
        stages.preflight(run.config)
        ingested = stages.ingest(run)
        labelled = stages.label(run, ingested)
        trained = stages.train(run, labelled)
        evaluated = stages.evaluate(run, trained)
        stages.export(run, trained, evaluated)
        return run.run_id


if __name__ == "__main__":
    full_pipeline()
