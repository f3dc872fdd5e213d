"""`mtv up`, `down`, `status` and `deploy`: the services of this machine."""

from __future__ import annotations

import json
import os
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.commands.console import err, fail, out
from infra.local.services import TITLES, Local
from infra.local.state import ServiceError

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
_COLOURS = {"running": "green", "stopped": "dim", "died": "red", "not answering": "yellow"}


def up(
    prefect_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of Prefect; 4200 or, if that is taken, a free one.", show_default=False)
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of MLflow; 5000 or, if that is taken, a free one.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and deploy the flows. What runs already is left alone."""
    began = time.monotonic()
    local = Local(ports={"prefect": prefect_port, "mlflow": mlflow_port}, say=_say)
    try:
        with err.status("starting services"):
            status = local.up()
    except (ServiceError, OSError) as error:
        raise fail(str(error)) from None
    if as_json:
        return out.print_json(json.dumps(status))
    _show(status)
    err.print(f"[dim]ready after {time.monotonic() - began:.0f} s · mtv status, mtv down[/]")
    return None


def down(as_json: JsonOption = False) -> None:
    """Stop everything that `mtv up` started, runs included. Tables, runs and results stay."""
    local = Local(say=_say)
    try:
        with err.status("stopping services"):
            done = local.down()
    except (ServiceError, OSError) as error:
        raise fail(str(error)) from None
    if as_json:
        out.print_json(json.dumps(done))
    elif done["stopped"]:
        out.print(f"stopped {', '.join(TITLES[name] for name in done['stopped'])}")
    else:
        out.print("nothing was running")
    if done["left"]:
        raise fail(f"{done['left']} processes do not end; `mtv down` again, or look at them with `ps`")


def status(as_json: JsonOption = False) -> None:
    """Say what runs, where, and where it logs. Exit code 1 if not everything is running."""
    found = Local().status()
    if as_json:
        out.print_json(json.dumps(found))
    else:
        _show(found)
    if not found["running"]:
        raise typer.Exit(1)


def deploy() -> None:
    """Bring work pool, deployments and automations on the Prefect server up to date; `mtv up` does it for the local one."""
    from infra.local import deploy as deployment

    api = os.environ.get("PREFECT_API_URL") or Local().status()["prefect_api"]
    if api is None:
        raise fail("no Prefect server is known: `mtv up` starts one here, PREFECT_API_URL names another")
    try:
        with err.status(f"deploying to {api}"):
            names = deployment.run(api)
    except (ServiceError, OSError) as error:
        raise fail(str(error)) from None
    for name in names:
        out.print(name)


def _show(status: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for service in status["services"]:
        colour = _COLOURS[service["state"]]
        table.add_row(TITLES[service["name"]], f"[{colour}]{service['state']}[/]", service["url"] or "", f"[dim]{service['log']}[/]")
    out.print(table)
    if status["deployments"]:
        out.print(f"[dim]deployed:[/] {', '.join(status['deployments'])}")
    if status["runs"]:
        out.print(f"[dim]runs going on:[/] {status['runs']}")


def _say(message: str) -> None:
    err.print(f"[yellow]note:[/] {message}")
