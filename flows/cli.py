"""The `mtv` command."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer
from rich.markup import escape

import mtv_core
from flows.commands import blocks, config, data, failures, forget, labels, lineage, pipeline, plan, refresh, runs, services, show, stages
from flows.commands.console import err, fail, show_problems
from mtv_core.config import ConfigError
from mtv_core.report import plain

app = typer.Typer(
    name="mtv",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="State lies in [bold]MTV_HOME[/] (default .mtv). Start with [bold]mtv demo[/].",
)

_PANELS = {
    "Pipeline": (pipeline.demo, pipeline.run),
    "Stages": (stages.ingest, stages.train, stages.evaluate, stages.export),
    "Services": (services.up, services.down, services.status, services.deploy),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(labels.app, name="label", rich_help_panel="Stages")
app.command("refresh", rich_help_panel="Stages")(refresh.refresh)
app.command("runs", rich_help_panel="Look")(runs.list_runs)
app.command("lineage", rich_help_panel="Look")(lineage.lineage)
app.command("plan", rich_help_panel="Look")(plan.plan)
app.command("show", rich_help_panel="Look")(show.show)
app.add_typer(config.app, name="config", rich_help_panel="Look")
app.command("failures", rich_help_panel="Data")(failures.failures)
app.command("forget", rich_help_panel="Data")(forget.forget)
app.add_typer(data.app, name="data", rich_help_panel="Data")
app.add_typer(blocks.app, name="blocks", rich_help_panel="Data")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mtv {mtv_core.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback behind an error message.")] = False,
) -> None:
    """Multi-task visual pretraining, from raw shards to an evaluated model.

    One vision transformer learns from captions, from itself, and from boxes and depth that expert models wrote.
    """


def main() -> None:
    """Run the command; a user's mistake is one line and an exit code, not a traceback."""
    debug = "--debug" in sys.argv
    try:
        app()
    except ConfigError as error:
        _trace(debug)
        show_problems(error)
        sys.exit(2)
    except (ValueError, OSError, RuntimeError) as error:
        _trace(debug)
        sys.exit(fail(plain(error)).exit_code)
    except Exception as error:
        _trace(debug)
        said = escape(f"{type(error).__name__}: {error}")
        err.print(f"[bold red]internal error:[/] {said}\nThis is a defect of MTV; `mtv --debug …` shows where.")
        sys.exit(70)


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


if __name__ == "__main__":
    main()
