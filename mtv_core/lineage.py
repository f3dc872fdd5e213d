"""Which trained models learnt from labels that were replaced since: from the run folders and the table's tags, without any server.

A label is superseded when the table accepts another revision of its expert now. A model used an expert's labels if an objective of its
training learns from them. The tag that it was trained on says how many rows had which revision.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field

from mtv_core import runs
from mtv_core.data.files import Files
from mtv_core.runs import RunRecord
from mtv_core.store.table import Table

EXPERTS = {"grounding": "detection", "depth": "depth"}  # objective → whose labels it learns from; as mtv_core.training.batches


class Superseded(BaseModel, frozen=True, extra="forbid"):
    """Labels of one expert that a model learnt from and that are not the accepted ones any more."""

    expert: str
    used: str = Field(description="revision that the model learnt from")
    accepted: str = Field(description="revision that the table's labels are to have now")
    rows: int | None = Field(description="rows of the model's tag that had it; None: the tag is gone")
    rows_left: int = Field(description="rows of the table that have it still")


class TrainedRun(BaseModel, frozen=True, extra="forbid"):
    """One run that trained a model, or reused one."""

    run_id: str | None = Field(description="None: there is no folder of it here, only a record in MLflow")
    status: str
    table: str
    tag: str | None
    version: int | None
    revisions: dict[str, str] = Field(description="expert → revision of the labels it learnt from")
    superseded: list[Superseded] | None = Field(description="None: it cannot be told, since the table or what it accepts is not known")
    model: str | None = Field(None, description="folder of the weights")
    export: str | None = Field(None, description="folder of the exported model")
    registered: list[str] = Field(default_factory=list, description="versions of registered models, as MLflow has them")
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None


@dataclass(frozen=True)
class Use:
    """What a run says that it learnt from."""

    run_id: str | None
    status: str
    table: str
    tag: str | None
    version: int | None
    revisions: Mapping[str, str]
    model: str | None = None
    export: str | None = None
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None
    registered: tuple[str, ...] = ()


@dataclass
class Lineage:
    """Trained runs, oldest first, and what could not be looked at."""

    runs: list[TrainedRun] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def from_folders() -> tuple[list[Use], list[str]]:
    """What the run folders say; a message for each that cannot be read."""
    records, problems = runs.load_all()
    return [use for record in records if (use := _use(record)) is not None], problems


def trace(
    uses: Iterable[Use],
    expert: str | None = None,
    table_uri: str | None = None,
    storage_options: Mapping[str, str] | None = None,
    problems: Iterable[str] = (),
) -> Lineage:
    """Compare what was used with what is accepted now.

    Args:
        uses: what runs learnt from.
        expert: only labels of this one.
        table_uri: only runs on this table.
        storage_options: of the tables.
        problems: that were met before.

    Raises:
        FileNotFoundError: `table_uri` is no table, and no run names it.
    """
    found = Lineage(problems=list(problems))
    tables: dict[str, _Now | None] = {}
    here = None if table_uri is None else Files(table_uri).uri
    for use in uses:
        uri = Files(use.table).uri
        if here not in (None, uri):
            continue
        if uri not in tables:
            tables[uri] = _look(uri, storage_options, found.problems)
        now = tables[uri]
        revisions = {name: revision for name, revision in use.revisions.items() if expert in (None, name)}
        if not revisions:
            continue
        found.runs.append(
            TrainedRun(
                run_id=use.run_id,
                status=use.status,
                table=uri,
                tag=use.tag,
                version=use.version,
                revisions=revisions,
                superseded=None if now is None else _superseded(now, use, revisions),
                model=use.model,
                export=use.export,
                registered=list(use.registered),
                mlflow_run_id=use.mlflow_run_id,
                mlflow_url=use.mlflow_url,
            )
        )
    if here is not None and here not in tables and not Table(here, storage_options).exists():
        raise FileNotFoundError(
            f"there is no table at {here}, and no run names it; `mtv runs` lists runs, `mtv lineage` those of any table"
        )
    return found


# What is accepted now


@dataclass(frozen=True)
class _Now:
    accepted: dict[str, str]
    counts: dict[str, dict[str, int]]  # expert → revision → rows
    tagged: dict[str, dict[str, dict[str, int]]]  # tag → expert → revision → rows


def _look(uri: str, storage_options: Mapping[str, str] | None, problems: list[str]) -> _Now | None:
    table = Table(uri, storage_options)
    try:
        state = table.label_state()
    except (OSError, ValueError) as error:
        problems.append(f"the table {uri} cannot be looked at: {error}")
        return None
    tagged = {name: json.loads((tag.get("metadata") or {}).get("counts", "{}")) for name, tag in state.dataset.tags.list().items()}
    accepted = {name: one.revision for name, one in table.accepted(state.dataset).items()}
    return _Now(accepted, {name: state.counts(name) for name in state.experts}, tagged)


def _superseded(now: _Now, use: Use, revisions: Mapping[str, str]) -> list[Superseded] | None:
    """Of a mixed tag, every revision that rows had. None: none is known to be, and of some the table accepts no labels to compare with."""
    found = list[Superseded]()
    for expert, revision in sorted(revisions.items()):
        counts = now.tagged.get(use.tag or "", {}).get(expert, {})
        tagged: dict[str, int | None] = {name: rows for name, rows in counts.items() if name and rows}
        used = tagged or {revision: None}
        accepted = now.accepted.get(expert)
        found += [
            Superseded(expert=expert, used=name, accepted=accepted, rows=rows, rows_left=now.counts.get(expert, {}).get(name, 0))
            for name, rows in used.items()
            if accepted is not None and name != accepted
        ]
    return found if found or revisions.keys() <= now.accepted.keys() else None


# What runs used


def _use(record: RunRecord) -> Use | None:
    """Of a run that trained a model, or began to; None of others."""
    trained = record.stages.get("train")
    if trained is None:
        return None
    labelled = record.stages.get("label")
    refs = [stage.ref for stage in (trained, labelled) if stage is not None and stage.ref is not None]
    job = _job(record)
    table = job.get("table_uri") or record.table.uri or next((ref.uri for ref in refs if ref.stage == "label"), None)
    tag = next((ref.tag for ref in refs if ref.tag), None) or job.get("tag") or record.table.tag
    if table is None or tag is None:
        return None
    said = next((ref.revisions for ref in refs if ref.revisions), record.experts)
    learnt = experts_of(record.config)
    return Use(
        run_id=record.run_id,
        status=runs.effective_status(record).value,
        table=table,
        tag=tag,
        version=next((ref.version for ref in refs if ref.version is not None), record.table.version),
        revisions={name: revision for name, revision in said.items() if name in learnt},
        model=None if trained.ref is None else trained.ref.uri,
        export=record.export,
        mlflow_run_id=record.mlflow_run_id,
        mlflow_url=record.mlflow_url,
    )


def experts_of(config: Mapping[str, Any]) -> set[str]:
    """The experts whose labels a training with this configuration learns from: those of the objectives that are on."""
    train = config.get("train")
    objectives = train.get("objectives") if isinstance(train, dict) else None
    if not isinstance(objectives, dict):
        return set(EXPERTS.values())
    return {expert for objective, expert in EXPERTS.items() if objectives.get(objective) is not None}


def _job(record: RunRecord) -> dict[str, Any]:
    """What the training was told; the record does not say it before the training has ended."""
    try:
        job = json.loads((record.folder / "train.json").read_text())
    except (OSError, ValueError):
        return {}
    return job if isinstance(job, dict) else {}
