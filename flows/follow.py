"""Start a deployment and show how far its run is, from the run folder's `progress.json` and the state Prefect has of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from flows.commands.console import Bar, bars, err
from mtv_core import runs
from mtv_core.runs import RunRecord

POLL = 0.5  # seconds between looks at the run folder
ASK = 2.0  # seconds between questions to Prefect
QUIET = 15.0  # seconds between lines where there is no terminal to redraw
START = 120.0  # seconds after which a run nobody picked up is given up


def submit(deployment: str, parameters: Mapping[str, Any]) -> UUID:
    """Start a run of a deployment.

    Raises:
        ValueError: the deployment is not there, or refuses the parameters.
        ConnectionError: the Prefect server does not answer.
    """
    import httpx
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    try:
        flow_run = run_deployment(deployment, parameters=dict(parameters), timeout=0, as_subflow=False)
    except ObjectNotFound:
        raise ValueError(f"there is no deployment {deployment}; run `mtv deploy`") from None
    except PrefectHTTPStatusError as error:
        raise ValueError(f"{deployment} refuses the parameters: {_detail(error.response)}") from None
    except (httpx.ConnectError, RuntimeError) as error:
        raise ConnectionError(f"the Prefect server does not answer ({error}); start it with `mtv up`") from None
    assert not isinstance(flow_run, (str, bytes))
    return UUID(str(getattr(flow_run, "id")))  # noqa: B009  the stub says it may be a coroutine


def _detail(response: Any) -> str:
    try:
        return str(response.json().get("detail", response.text))
    except ValueError:
        return str(response.text)[:500]


def follow(flow_run_id: UUID) -> tuple[str, RunRecord | None]:
    """Show the stages until the run has ended.

    Returns:
        name of the final state ('Completed', 'Failed', 'Crashed', 'Cancelled') and the run's record, None if it never began.

    Raises:
        RuntimeError: no worker picked the run up.
        ConnectionError: the Prefect server went away.
    """
    import httpx
    from prefect.client.orchestration import get_client

    began = asked = time.monotonic()
    show: _Lines | _Bars
    with get_client(sync_client=True) as client, bars() as progress:
        show = _Bars(progress) if err.is_terminal else _Lines(err)
        record: RunRecord | None = None
        while True:
            record = _find(flow_run_id, record)
            if record is not None:
                show(record, _progress(record.folder))
            if time.monotonic() - asked >= ASK:
                asked = time.monotonic()
                try:
                    state = client.read_flow_run(flow_run_id).state
                except httpx.HTTPError as error:
                    record = _find(flow_run_id, record)
                    said = f"; run.json says {runs.effective_status(record).value}" if record else ""
                    raise ConnectionError(
                        f"the Prefect server stopped answering ({type(error).__name__}){said}. See `mtv status`; the run can be resumed"
                    ) from None
                if state is not None and state.is_final():
                    record = _find(flow_run_id, record)
                    if record is not None:
                        show(record, {})
                    return str(state.name), record
                if record is None and asked - began > START and (state is None or not state.is_running()):
                    known = state.name if state else "unknown"
                    raise RuntimeError(f"no worker took the run up in {START:.0f} s ({known}); see `mtv status` and the worker's log")
            time.sleep(POLL)


def _find(flow_run_id: UUID, known: RunRecord | None) -> RunRecord | None:
    return runs.load(known.run_id) if known is not None else runs.of_flow_run(str(flow_run_id))


def _progress(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return state


_SAID = {"ran": "done", "reused": "nothing to do, already done", "failed": "failed"}


class _Bars:
    """One bar a stage, on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.bars = progress, dict[str, Bar]()

    def __call__(self, record: RunRecord, state: Mapping[str, Any]) -> None:
        for name, stage in record.stages.items():
            bar = self.bars.setdefault(name, Bar(self.progress, name))
            if stage.status == "running":
                if state.get("stage") == name:
                    bar(state["done"], state["total"], escape(state["message"]))
            else:
                total = self.progress.tasks[bar.task].total or 1
                bar(int(total), int(total), _SAID[stage.status])
                self.progress.stop_task(bar.task)


class _Lines:
    """One line when a stage begins, when it ends, and now and then in between."""

    def __init__(self, console: Console) -> None:
        self.console, self.said, self.last = console, dict[str, str](), time.monotonic()

    def __call__(self, record: RunRecord, state: Mapping[str, Any]) -> None:
        for name, stage in record.stages.items():
            if self.said.get(name) != stage.status:
                self.said[name] = stage.status
                self.last = time.monotonic()
                self.console.print(f"{name:<9} {'…' if stage.status == 'running' else f'{_SAID[stage.status]} ({stage.seconds:.1f} s)'}")
            elif stage.status == "running" and state.get("stage") == name and time.monotonic() - self.last > QUIET:
                self.last = time.monotonic()
                self.console.print(f"{name:<9} {state['done']} of {state['total']}  {escape(state['message'])}")
