"""Refusals tried again: those of ingest from their shards, those of an expert by labelling their rows once more."""

from __future__ import annotations

from collections.abc import Collection

from mtv_core.executor import Progress
from mtv_core.report import StageRef
from tasks import ingest as ingest_stage
from tasks.cluster import connect
from tasks.run import Run


def ingest(run: Run, reasons: Collection[str] | None, progress: Progress) -> StageRef:
    """Read refused samples again, with the limits that hold now."""
    from mtv_core import ingest as core

    options = run.config.table.storage_options
    with connect(run.config.compute) as executor:
        sources = [ingest_stage.made(source, executor, progress) for source in run.config.sources]
        result = core.retry(sources, run.table, run.config.ingest, executor, reasons=reasons, progress=progress, storage_options=options)
    return ingest_stage.ref_of(run, result)


def label(run: Run, expert: str, reasons: Collection[str] | None, progress: Progress) -> StageRef:
    """Label refused rows again."""
    from mtv_core import labelling_retry

    with connect(run.config.compute) as executor:
        result = labelling_retry.retry(
            run.table,
            run.config.label,
            executor,
            stage=expert,
            reasons=reasons,
            progress=progress,
            storage_options=run.config.table.storage_options,
        )
    return StageRef(
        stage="label",
        run_id=run.run_id,
        uri=run.table,
        version=result.version,
        tag=result.tag,
        revisions=result.revisions,
        report=result.report,
    )
