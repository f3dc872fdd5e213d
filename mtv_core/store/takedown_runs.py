"""Which runs worked with tags that had rows that are taken down: from their run folders, so without any server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mtv_core import runs
from mtv_core.data.files import Files
from mtv_core.runs import RunRecord, RunStatus

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".svg"}


class RunUse(BaseModel, frozen=True, extra="forbid"):
    """A run that had such rows before it. What it made cannot be taken back by removing rows: it is listed, for people to decide."""

    run_id: str
    folder: str
    status: RunStatus
    tags: list[str] = Field(description="the tags it worked with")
    rows: int = Field(description="rows of theirs that go")
    trained: bool = Field(description="whether a model was trained on them, in this run or one that it reused")
    model: str | None = Field(None, description="folder of the weights")
    exports: list[str] = Field(default_factory=list, description="folders of exported models")
    registered: list[str] = Field(default_factory=list, description="versions of registered models, '<name> <version>'")
    pictures: list[str] = Field(default_factory=list, description="pictures in its run folder, which may show them")
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None
    prefect_flow_run_id: str | None = None
    prefect_url: str | None = None


def uses(table_uri: str, tags: Mapping[str, int]) -> tuple[list[RunUse], list[str]]:
    """Runs on this table with one of the tags (tag → rows that go), oldest first; and a message for each run that cannot be read."""
    records, problems = runs.load_all()
    found = [_use(record, table_uri, tags) for record in records]
    return [use for use in found if use is not None], problems


def _use(record: RunRecord, table_uri: str, tags: Mapping[str, int]) -> RunUse | None:
    job = _job(record.folder)
    on_table = [record.table.uri, job.get("table_uri")]
    if not any(uri is not None and Files(uri).uri == Files(table_uri).uri for uri in on_table):
        return None
    refs = {name: stage.ref for name, stage in record.stages.items() if stage.ref is not None}
    used = {tag for tag in (record.table.tag, job.get("tag"), *(ref.tag for ref in refs.values())) if tag in tags}
    if not used:
        return None
    trained = refs.get("train")
    export = refs.get("export")
    name = (record.config.get("export") or {}).get("name") if isinstance(record.config.get("export"), dict) else None
    version = export.outputs.get("model_version") if export is not None else None
    return RunUse(
        run_id=record.run_id,
        folder=str(record.folder),
        status=runs.effective_status(record),
        tags=sorted(str(tag) for tag in used),
        rows=max(tags[str(tag)] for tag in used),
        trained="train" in record.stages or "export" in record.stages,
        model=trained.uri if trained is not None else None,
        exports=[export.uri] if export is not None else [],
        registered=[f"{name} {version}"] if name and version else [],
        pictures=_pictures(record.folder),
        mlflow_run_id=record.mlflow_run_id,
        mlflow_url=record.mlflow_url,
        prefect_flow_run_id=record.prefect_flow_run_id,
        prefect_url=record.prefect_url,
    )


def _job(folder: Path) -> dict[str, Any]:
    """What a training was told, which the record does not say before it has ended."""
    try:
        job = json.loads((folder / "train.json").read_text())
    except (OSError, ValueError):
        return {}
    return job if isinstance(job, dict) else {}


def _pictures(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in _PICTURES and path.is_file())
