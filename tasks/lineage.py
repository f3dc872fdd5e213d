"""Lineage: run folders, tags, and MLflow where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mtv_core import lineage
from mtv_core.lineage import Lineage, Use
from tasks import tracking


def trace(expert: str | None = None, table: str | None = None, storage_options: Mapping[str, str] | None = None) -> Lineage:
    """Which trained runs used superseded labels. MLflow adds runs whose folders are elsewhere, and registered models; it may be away.

    Raises as `mtv_core.lineage.trace`.
    """
    uses, problems = lineage.from_folders()
    try:
        recorded = tracking.trainings()
    except (ConnectionError, OSError) as error:
        recorded = []
        problems.append(f"MLflow could not be asked, so runs of other machines and registered models are not listed: {error}")
    return lineage.trace(_merged(uses, recorded), expert, table, storage_options, problems)


def _merged(uses: list[Use], recorded: list[tracking.Training]) -> list[Use]:
    known = {training.run_id: training for training in recorded}
    found = [
        replace(use, registered=tuple(known[use.mlflow_run_id].models)) if use.mlflow_run_id in known and use.mlflow_run_id else use
        for use in uses
    ]
    here = {use.mlflow_run_id for use in uses} | {use.run_id for use in uses}
    found += [
        Use(
            run_id=None,
            status=training.status,
            table=training.table,
            tag=training.tag,
            version=training.version,
            revisions=training.revisions,
            mlflow_run_id=training.run_id,
            mlflow_url=training.url or None,
            registered=tuple(training.models),
        )
        for training in recorded
        if training.run_id not in here and training.name not in here
    ]
    return found
