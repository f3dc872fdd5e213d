"""The life of a run: its folder, its record, its end, whatever that is."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mtv_core import runs
from mtv_core.config import PipelineConfig, Resolved, digest, table_uri
from mtv_core.executor import Progress
from mtv_core.labelling_config import LabelConfig
from mtv_core.report import StageRef, plain
from mtv_core.runs import RunRecord, RunStatus, StageRecord
from tasks import credentials

ROOT = Path(__file__).parent.parent


class Run:
    """A run while it works: its configuration and the record that is saved after every step.

    No dataclass, since Prefect looks into those when they are parameters and may hand the task a copy.
    """

    def __init__(self, record: RunRecord, config: PipelineConfig, origin: dict[str, str]) -> None:
        self.record, self.config, self.origin = record, config, origin

    @property
    def run_id(self) -> str:
        """Name of the run and of its folder."""
        return self.record.run_id

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.record.folder

    @property
    def table(self) -> str:
        """Absolute URI of the table."""
        return table_uri(self.config)

    @functools.cached_property
    def label_config(self) -> LabelConfig:
        """The label configuration, registered models (`models:/…`) as the folders they are now: one answer for the whole run.

        Raises:
            FileNotFoundError, ValueError, ConnectionError: as `tasks.experts.resolved`.
        """
        from tasks import experts

        return experts.resolved(self.config.label)

    def stage(self, name: str, key: str, work: Callable[[], StageRef]) -> StageRef:
        """Do one stage and keep book of it.

        Whether the result was reused is told from the reference itself: it names the run that did the work.
        """
        stage = self.record.stages[name] = StageRecord(key=key)
        self.record.save()
        began = time.monotonic()
        try:
            ref = work()
        except BaseException as error:
            stage.status, stage.message = "failed", plain(error)
            stage.seconds = time.monotonic() - began
            self.record.save()
            raise
        stage.seconds = round(time.monotonic() - began, 3)
        stage.status, stage.ref = ("ran" if ref.run_id == self.run_id else "reused"), ref
        self._absorb(ref)
        self.record.save()
        return ref

    def _absorb(self, ref: StageRef) -> None:
        record = self.record
        if ref.version is not None:
            record.table.uri, record.table.version, record.table.tag = self.table, ref.version, ref.tag
        if ref.revisions:
            record.experts = dict(ref.revisions)
        record.metrics |= ref.metrics
        record.mlflow_run_id = ref.outputs.get("mlflow_run_id", record.mlflow_run_id)
        record.mlflow_url = ref.outputs.get("mlflow_url", record.mlflow_url)
        if ref.stage == "export":
            record.export = ref.uri


@contextlib.contextmanager
def open_run(resolved: Resolved, flow: str) -> Iterator[Run]:
    """Make the run folder, yield the run, and record how it ended: completed, failed, cancelled, or suspended until a person answers.

    A retry of the same Prefect flow run goes on in the same folder, and so does one that was suspended. A run whose process is killed stays
    `running` in `run.json`; `mtv runs` sees that its process is gone and says `crashed`.
    """
    flow_run_id, url = _prefect_ids()
    record = (runs.of_flow_run(flow_run_id) if flow_run_id else None) or RunRecord(run_id=runs.new_run_id(), flow=flow)
    document = resolved.config.model_dump(mode="json")
    fresh = RunRecord(run_id=record.run_id, flow=flow, started=record.started, config=document)
    fresh.stages, fresh.mlflow_run_id = record.stages, record.mlflow_run_id
    fresh.prefect_flow_run_id, fresh.prefect_url, fresh.git_commit = flow_run_id, url, git_commit()
    fresh.save()
    runs.write_config(fresh.folder, document)
    run = Run(fresh, resolved.config, resolved.origin)
    try:
        credentials.load()
        yield run
    except BaseException as error:
        if type(error).__name__ == "Pause":  # Prefect's signal: the message was set by whoever suspends
            fresh.status = RunStatus.SUSPENDED
            raise
        stopped = isinstance(error, KeyboardInterrupt) or type(error).__name__ in ("TerminationSignal", "CancelledRun", "SystemExit")
        fresh.status = RunStatus.CANCELLED if stopped else RunStatus.FAILED
        fresh.message = "stopped from outside" if stopped else plain(error)
        raise
    else:
        fresh.status = RunStatus.COMPLETED
    finally:
        fresh.ended = None if fresh.status is RunStatus.SUSPENDED else datetime.now(UTC)
        fresh.save()


def _prefect_ids() -> tuple[str | None, str | None]:
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None, None
    from prefect.utilities.urls import url_for

    return str(context.flow_run.id), url_for("flow-run", obj_id=context.flow_run.id)


def git_commit() -> str | None:
    """The commit of MTV's own code, with '+dirty' when files differ from it; None outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+dirty" if dirty.stdout.strip() else "")


def stage_key(name: str, version: int, /, **inputs: Any) -> str:
    """The key of a stage's result: everything it depends on. The same key, the same result."""
    return f"mtv-{name}-{digest({'stage': name, 'version': version, 'inputs': inputs})}"


def resumable(name: str, key: str, left: Callable[[RunRecord], bool], but: str) -> RunRecord | None:
    """The latest run that began this very stage, did not finish it, and left something to go on from.

    A run between that died before it got anywhere does not hide it; one that is still alive is let alone.
    """
    records, _ = runs.load_all()
    for record in reversed(records):
        stage = record.stages.get(name)
        if record.run_id == but or stage is None or stage.key != key:
            continue
        if stage.ref is None and left(record) and runs.effective_status(record) is not RunStatus.RUNNING:
            return record
    return None


class FileProgress:
    """`progress.json` in the run folder, so that whoever started a run can show how far it is; and whatever else listens."""

    def __init__(self, run: Run, stage: str, *others: Progress, every: float = 0.5) -> None:
        self.path, self.stage, self.others, self.every = run.folder / "progress.json", stage, others, every
        self.last = float("-inf")

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Write at most every half second, and always at the end."""
        for other in self.others:
            other(done, total, message)
        now = time.monotonic()
        if now - self.last >= self.every or done >= total:
            self.last = now
            state = {"stage": self.stage, "done": done, "total": total, "message": message}
            runs.write_atomic(self.path, json.dumps(state))
