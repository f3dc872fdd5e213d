"""Which runs worked with tags that had rows that go, or keep pictures of the table: from their folders, so without any server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mtv_core import runs
from mtv_core.data.files import Files
from mtv_core.runs import RunRecord, RunStatus

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".svg"}
_PAGES = {".html", ".htm", ".md"}
_PICTURE_INSIDE = b"data:image/"


class RunUse(BaseModel, frozen=True, extra="forbid"):
    """A run that had such rows before it, or may show them. Removing rows takes nothing of it back: it is listed, for people to decide."""

    run_id: str
    folder: str
    status: RunStatus
    tags: list[str] = Field(description="the tags with such rows that it worked with; none if it only keeps pictures")
    rows: int = Field(description="rows of theirs that go")
    trained: bool = Field(description="whether a model was trained on them, in this run or one that it reused")
    model: str | None = Field(None, description="folder of the weights")
    exports: list[str] = Field(default_factory=list, description="folders of exported models")
    registered: list[str] = Field(default_factory=list, description="versions of registered models, '<name> <version>'")
    pictures: list[str] = Field(
        default_factory=list, description="pictures, and pages with pictures, in its folder: they may show the rows"
    )
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None
    prefect_flow_run_id: str | None = None
    prefect_url: str | None = None


@dataclass
class RunUses:
    """What the run folders say of a table."""

    runs: list[RunUse] = field(default_factory=list)  # oldest first
    flow_runs: list[str] = field(default_factory=list)  # Prefect's ids of all runs on the table: it keeps galleries of its own
    problems: list[str] = field(default_factory=list)  # a message for each run that cannot be read


def uses(table_uri: str, tags: Mapping[str, int], configured: Callable[[RunRecord], str | None] = lambda record: None) -> RunUses:
    """Runs on this table that worked with one of the tags (tag → rows that go), or whose folders have pictures, of whatever rows.

    Args:
        table_uri: which table.
        tags: tags with rows that go.
        configured: the table that a run was told to work on; its record names it only when a stage has ended.
    """
    records, problems = runs.load_all()
    found = RunUses(problems=problems)
    here = Files(table_uri).uri
    for record in records:
        job = _job(record.folder)
        on_table = [record.table.uri, job.get("table_uri"), configured(record)]
        if not any(uri is not None and Files(uri).uri == here for uri in on_table):
            continue
        if record.prefect_flow_run_id is not None:
            found.flow_runs.append(record.prefect_flow_run_id)
        use = _use(record, job, tags)
        if use.tags or use.pictures:
            found.runs.append(use)
    return found


def _use(record: RunRecord, job: dict[str, Any], tags: Mapping[str, int]) -> RunUse:
    refs = {name: stage.ref for name, stage in record.stages.items() if stage.ref is not None}
    used = {tag for tag in (record.table.tag, job.get("tag"), *(ref.tag for ref in refs.values())) if tag in tags}
    trained = refs.get("train") if used else None
    export = refs.get("export") if used else None
    name = (record.config.get("export") or {}).get("name") if isinstance(record.config.get("export"), dict) else None
    version = export.outputs.get("model_version") if export is not None else None
    return RunUse(
        run_id=record.run_id,
        folder=str(record.folder),
        status=runs.effective_status(record),
        tags=sorted(str(tag) for tag in used),
        rows=max((tags[str(tag)] for tag in used), default=0),
        trained=bool(used) and ("train" in record.stages or "export" in record.stages),
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
    return sorted(str(path) for path in folder.rglob("*") if path.is_file() and _shows(path))


def _shows(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in _PAGES:
        return suffix in _PICTURES
    try:
        return _PICTURE_INSIDE in path.read_bytes()
    except OSError:  # nobody knows: a person looks
        return True
