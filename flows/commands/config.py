"""`mtv config`: what is configured, whether it is right, and where each value came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from flows.commands.console import PresetOption, SetOption, SourcesOption, TableOption, out, resolve_options
from mtv_core import runs
from mtv_core.config import ConfigError, flatten, presets, resolve_config

app = typer.Typer(no_args_is_help=True, help="Show, check and compare configurations.")


@app.command()
def show(
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    options: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {config, origin} as JSON.")] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print a file that --preset takes.")] = False,
) -> None:
    """Print the resolved configuration and where each value came from."""
    resolved = resolve_options(preset, sources, table, options)
    document = resolved.config.model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps({"config": document, "origin": resolved.origin}, indent=2))
    elif as_yaml:
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)
    else:
        rows = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("key", "value", "from"):
            rows.add_column(column, overflow="fold")
        for key, value in flatten(document).items():
            source = resolved.origin[key]
            rows.add_row(key, escape(json.dumps(value, ensure_ascii=False)), escape(source), style="dim" if source == "default" else None)
        out.print(rows)


@app.command()
def validate(
    preset: Annotated[str, typer.Argument(help="Preset or YAML file.")] = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    options: SetOption = None,
) -> None:
    """Check a configuration, its experts and its model: exit code 0 if a run could start with it; else one line for each mistake."""
    from tasks import export, label, train

    config = resolve_options(preset, sources, table, options).config
    for stage in (label, train, export):
        stage.check(config)
    out.print(f"{escape(preset)} is valid")


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="Preset, YAML file or run id.")],
    second: Annotated[str, typer.Argument(help="Preset, YAML file or run id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print an object of key → pair of values as JSON.")] = False,
) -> None:
    """Print the keys in which two configurations differ."""
    left, right = _flat(first), _flat(second)
    missing = object()
    changed = {
        key: (left.get(key), right.get(key))
        for key in [*left, *(k for k in right if k not in left)]
        if left.get(key, missing) != right.get(key, missing)
    }
    if as_json:
        typer.echo(json.dumps(changed, indent=2))
        return
    if not changed:
        out.print("no difference")
        return
    rows = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("key", first, second):
        rows.add_column(escape(column), overflow="fold")
    for key, (old, new) in changed.items():
        rows.add_row(key, *(escape(json.dumps(value, ensure_ascii=False)) for value in (old, new)))
    out.print(rows)


def _flat(name: str) -> dict[str, Any]:
    if name in presets() or name.endswith((".yaml", ".yml")):
        return flatten(resolve_config(name).config.model_dump(mode="json"))
    if (runs.runs_folder() / name / "run.json").is_file() and Path(name).name == name:
        return flatten(runs.load(name).config)
    raise ConfigError([f"{name!r} is no preset ({', '.join(presets())}), no .yaml file and no run of {runs.runs_folder()}"])
