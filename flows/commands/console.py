"""What the commands share: consoles, progress, options."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mtv_core.config import ConfigError, Resolved, parse_override, resolve_config
from mtv_core.settings import is_local

# Away from a terminal rich assumes 80 columns and cuts run ids off; a pipe has no width.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160)

PresetOption = Annotated[str, typer.Option("--preset", "-p", help="Preset to start from, or a YAML file; see `mtv config show`.")]
SourcesOption = Annotated[
    list[str] | None, typer.Option("--sources", "-s", help="Shards: path, glob, s3://… or blocks://…; may be repeated.")
]
TableOption = Annotated[
    str | None, typer.Option("--table", "-t", help="Table URI; relative ones lie in MTV_HOME. Default: one a list of sources.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Any configuration key, for example train.steps=100; may be repeated.")]
RunArgument = Annotated[str | None, typer.Argument(help="Run id, as in `mtv runs`; the latest that fits by default.")]


def absolute_sources(sources: list[str] | None) -> list[str] | None:
    """Relative paths are relative to where the command was typed, not to where the work is done."""
    if not sources:
        return None
    return [str(Path(uri).expanduser().absolute()) if is_local(uri) and not uri.startswith("file://") else uri for uri in sources]


def parameters_of(sources: list[str] | None, table: str | None) -> dict[str, Any]:
    """The stages' parameters that have an option of their own."""
    return {"sources": absolute_sources(sources), "table": {"uri": table} if table else None}


def overrides_of(options: list[str] | None) -> dict[str, Any]:
    """`--set` options as dotted keys."""
    return dict(parse_override(option) for option in options or [])


def resolve_options(preset: str, sources: list[str] | None, table: str | None, options: list[str] | None) -> Resolved:
    """The configuration a command's options stand for."""
    return resolve_config(preset, parameters_of(sources, table), overrides_of(options))


class Bar:
    """A `mtv_core.executor.Progress` on the terminal; without one, a line at the start and the end of a stage."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress = progress
        self.task = progress.add_task(name, total=None, message="")

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=done, total=total, message=message)


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars, one a stage."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[message]}"),
    )
    with Progress(*columns, console=err, refresh_per_second=4) as progress:
        yield progress


def fail(message: str, code: int = 1) -> typer.Exit:
    """Say what went wrong; raise the result."""
    err.print(f"[bold red]error:[/] {escape(message)}")
    return typer.Exit(code)


def show_problems(error: ConfigError) -> None:
    """One line for each mistake in a configuration."""
    for problem in error.problems:
        err.print(f"[bold red]error:[/] {escape(problem)}")
