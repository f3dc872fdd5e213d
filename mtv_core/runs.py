"""The run folder and its `run.json`: what every run made and where, readable with every server down.

`<runs>/<run_id>/{run.json, config.yaml, train.json, metrics.jsonl, train.log, checkpoints/, model/, init/, eval/, export/, reports/}`
"""

from __future__ import annotations

import json
import os
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import yaml
from pydantic import BaseModel, Field, ValidationError

from mtv_core.report import StageRef
from mtv_core.settings import home


class RunStatus(StrEnum):
    """Where a run stands. A run whose process died without a word stays `running` until `mtv runs` sees that nobody runs it."""

    RUNNING = "running"
    SUSPENDED = "suspended"  # waits for a person, without a process
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CRASHED = "crashed"


class StageRecord(BaseModel, extra="forbid"):
    """One stage of a run: its key (what the result depends on), how it went, what it made."""

    key: str = ""
    status: str = Field("running", description="running | ran | reused | failed")
    seconds: float = 0.0
    ref: StageRef | None = None
    message: str = ""


class TableState(BaseModel, extra="forbid"):
    """The rows and labels a run trained on."""

    uri: str | None = None
    version: int | None = None
    tag: str | None = None


class RunRecord(BaseModel, extra="forbid"):
    """`run.json`."""

    run_id: str
    status: RunStatus = RunStatus.RUNNING
    message: str = Field("", description="why it failed, and what to do")
    flow: str = "full-pipeline"
    started: datetime = Field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None
    pid: int = Field(default_factory=os.getpid)
    process_started: float = Field(
        default_factory=lambda: psutil.Process().create_time(), description="tells the process from a later one of the same pid"
    )
    host: str = Field(default_factory=lambda: os.uname().nodename)
    git_commit: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    table: TableState = Field(default_factory=TableState)
    experts: dict[str, str] = Field(default_factory=dict, description="expert → revision of its labels")
    metrics: dict[str, float] = Field(default_factory=dict)
    export: str | None = Field(None, description="folder of the exported model")
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None
    prefect_flow_run_id: str | None = None
    prefect_url: str | None = None
    stages: dict[str, StageRecord] = Field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return runs_folder() / self.run_id

    def save(self) -> None:
        """Write `run.json` at once or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "run.json", self.model_dump_json(indent=2) + "\n")


def runs_folder() -> Path:
    """Where run folders lie."""
    return home() / "runs"


def new_run_id() -> str:
    """UTC time and 6 hex digits: sorts by time, and two runs of one second differ."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write_atomic(path: Path, text: str) -> None:
    """Write a small file beside its place, flush it to disk, and rename it into its place."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(run_id: str) -> RunRecord:
    """The record of a run.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: its `run.json` cannot be read.
    """
    path = runs_folder() / run_id / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no run {run_id!r} in {runs_folder()}; `mtv runs` lists them")
    try:
        return RunRecord.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path} is damaged or was written by another version: {error.errors()[0]['msg']}") from None


def load_all() -> tuple[list[RunRecord], list[str]]:
    """Every run, oldest first, and a message for each that cannot be read."""
    records, problems = [], []
    for path in sorted(runs_folder().glob("*/run.json")):
        try:
            records.append(load(path.parent.name))
        except ValueError as error:
            problems.append(str(error))
    return records, problems


def of_flow_run(flow_run_id: str) -> RunRecord | None:
    """The run that a Prefect flow run made, if it has begun."""
    return next((record for record in reversed(load_all()[0]) if record.prefect_flow_run_id == flow_run_id), None)


def latest_with(stage: str, run_id: str | None = None) -> RunRecord:
    """The named run, or the latest, that has a result of a stage.

    Raises:
        FileNotFoundError: there is none.
    """
    for record in [load(run_id)] if run_id else list(reversed(load_all()[0])):
        if stage in record.stages and record.stages[stage].ref is not None:
            return record
    if run_id:
        raise FileNotFoundError(f"run {run_id} has not finished the stage {stage!r}; see `mtv runs {run_id}`")
    raise FileNotFoundError(f"no run in {runs_folder()} has finished the stage {stage!r}; see `mtv runs`")


def effective_status(record: RunRecord) -> RunStatus:
    """The status as far as this machine can tell: `crashed` when a run says `running` and its process is gone.

    Runs of other hosts are believed.
    """
    if record.status is not RunStatus.RUNNING or record.host != os.uname().nodename:
        return record.status
    try:
        alive = abs(psutil.Process(record.pid).create_time() - record.process_started) < 1.0
    except psutil.Error:
        alive = False
    return RunStatus.RUNNING if alive else RunStatus.CRASHED


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """`config.yaml`: the resolved configuration, in the order of the fields."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "config.yaml", yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True))
