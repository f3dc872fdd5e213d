"""`mtv run` and `mtv demo`: the whole pipeline through its deployment, followed to the end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.console import (
    PresetOption,
    SetOption,
    SourcesOption,
    TableOption,
    absolute_sources,
    err,
    out,
    overrides_of,
    parameters_of,
    resolve_options,
)
from infra.local.services import Local
from mtv_core.data.sources.config import SourceConfig

WatchOption = Annotated[bool, typer.Option("--watch/--no-watch", help="Follow the run to its end; the exit code says how it ended.")]


def run(
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    options: SetOption = None,
    watch: WatchOption = True,
) -> None:
    """Run the pipeline through its deployment: ingest, label, train, evaluate, export.

    The same as `prefect deployment run mtv/full-pipeline`, with the configuration checked here first and a table of results at the end.
    """
    resolved = resolve_options(preset, sources, table, options)  # mistakes show before anything starts
    parameters = {name: value for name, value in parameters_of(sources, table).items() if value is not None}
    if preset.endswith((".yaml", ".yml")):  # the work is done in another folder than this
        preset = str(Path(preset).absolute())
        parameters["sources"] = [_absolute(source) for source in resolved.config.sources]
    _run(parameters | {"preset": preset} | ({"overrides": overrides_of(options)} if options else {}), watch)


def _absolute(source: SourceConfig) -> dict[str, Any]:
    (uri,) = absolute_sources([source.uri]) or [source.uri]
    return source.model_dump(mode="json") | {"uri": uri}


def demo(
    options: SetOption = None,
    keep_up: Annotated[bool, typer.Option("--keep-up/--down", help="Leave the services running, so that the links work.")] = True,
) -> None:
    """See it all work: start the services, run the pipeline on the embedded world of blocks, show what came out."""
    from flows.commands.services import down, up

    began = time.monotonic()
    resolve_options("demo", None, None, options)
    up(prefect_port=None, mlflow_port=None, as_json=False)
    os.environ.pop("PREFECT_API_URL", None)  # the demo is about the services it has just started
    try:
        _run({"preset": "demo"} | ({"overrides": overrides_of(options)} if options else {}), watch=True)
    finally:
        if not keep_up:
            down()
    seconds = round(time.monotonic() - began)
    out.print(
        f"\nTook {seconds // 60} min {seconds % 60} s. "
        + ("The services are still running: `mtv down` stops them." if keep_up else "The services are stopped.")
    )


def _run(parameters: dict[str, Any], watch: bool) -> None:
    api = _point_at_server()
    from flows.follow import follow, submit
    from flows.results import show_run

    flow_run_id = submit("mtv/full-pipeline", parameters)
    url = f"{api.removesuffix('/api')}/runs/flow-run/{flow_run_id}"
    err.print(f"run of mtv/full-pipeline: {url}")
    if not watch:
        return
    try:
        state, record = follow(flow_run_id)
    except KeyboardInterrupt:
        err.print(f"\nThe run goes on. Watch it at {url}, or stop it with `prefect flow-run cancel {flow_run_id}`.")
        raise typer.Exit(130) from None
    if record is not None:
        show_run(out, record)
    if state != "Completed":
        message = record.message if record is not None and record.message else f"see the log of the run at {url}"
        raise RuntimeError(f"the run ended as {state}: {message}")


def _point_at_server() -> str:
    """Make Prefect talk to the server the environment names, or to the local one. Before its first import, since it reads this once."""
    api = os.environ.get("PREFECT_API_URL") or Local().status()["prefect_api"]
    if api is None:
        raise ConnectionError("no Prefect server is known; start one with `mtv up`, or name one in PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = api
    return str(api)
