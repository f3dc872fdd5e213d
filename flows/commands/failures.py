"""`mtv failures`: what was refused, by stage and reason, with what to do; as a file for other programs; and tried again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flows.commands.console import (
    Bar,
    PresetOption,
    SetOption,
    SourcesOption,
    TableOption,
    bars,
    err,
    fail,
    out,
    resolve_options,
)
from mtv_core.config import Resolved, presets, table_uri
from mtv_core.reasons import SETTLED
from mtv_core.report import StageRef

_COLOURS = {"transient": "yellow", "data": "cyan", "bug": "red"}
_SHARDS = "whole shards are not retried here: `mtv ingest` reads a shard again once it changed, and one that could not be read"


def failures(
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    options: SetOption = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Only of this stage: ingest, depth, detection.")] = None,
    reason: Annotated[list[str] | None, typer.Option("--reason", help="Only for this reason; may be repeated.")] = None,
    reject_class: Annotated[
        list[str] | None, typer.Option("--class", help="Only those that are transient, data or bug; may be repeated.")
    ] = None,
    location: Annotated[str | None, typer.Option("--location", help="Only from shards whose URI begins so; * stands for anything.")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Only those refused at least so many times.")] = None,
    examples: Annotated[int, typer.Option("--examples", "-n", min=0, max=1000, help="How many of each reason are shown.")] = 2,
    export: Annotated[str | None, typer.Option("--export", help="Write them to a .jsonl, .csv or .parquet file; path or URI.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The groups as one JSON object.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try them again, after a fix or with new limits: --set ingest.max_pixels=80000000.")
    ] = False,
) -> None:
    """Show what was refused, by stage and reason, and what to do about it."""
    from mtv_core.store.rejects import RejectGroup, Selection
    from mtv_core.store.table import Table

    resolved = resolve_options(preset, sources, table, options)
    opened = Table.create_or_open(table_uri(resolved.config), resolved.config.table.storage_options)
    if not opened.rejects.exists() and not opened.exists():
        raise FileNotFoundError(f"there is no table at {opened.uri}; name one with --table, or by its --sources")
    selection = Selection(stage=stage, reasons=reason or (), classes=_classes(reject_class), location=location, attempt=attempt)
    groups: list[RejectGroup] = opened.rejects.groups(selection, examples if not (retry or export) else 0)
    if export:
        from mtv_core.store.reject_export import export as write

        rows = write(opened.rejects, export, selection)
        err.print(f"{rows} refusals written to {escape(export)}")
    elif as_json and not retry:
        typer.echo(_json(opened.uri, groups))
    elif not retry:
        _show(opened, groups, selection.condition() is not None)
    if retry:
        if location or attempt:
            raise fail("--retry takes whole reasons: choose by --stage, --reason and --class", 2)
        _check_reasons(reason or [], opened.rejects.groups(replace(selection, reasons=()), 0), opened.uri)
        samples = _without_imports(opened, opened.rejects.groups(replace(selection, samples=True), 0))
        chosen = _chosen(samples, bool(reason), bool(groups))
        if "ingest" in chosen and not sources and _of_a_preset(resolved):
            resolved = _from_ledger(resolved, opened, chosen["ingest"])
        _retry(resolved, chosen, err if as_json else out)
        if as_json:
            typer.echo(_json(opened.uri, opened.rejects.groups(selection, examples)))


def _classes(names: list[str] | None) -> list[str]:
    unknown = sorted({*(names or ())} - {*_COLOURS})
    if unknown:
        raise ValueError(f"there is no class {unknown[0]!r}; classes are {', '.join(_COLOURS)}")
    return names or []


def _json(uri: str, groups: list[Any]) -> str:
    return json.dumps({"table": uri, "rows": sum(group.rows for group in groups), "groups": [_plain(one) for one in groups]})


def _plain(group: Any) -> dict[str, Any]:
    from mtv_core.data.funnel import describe

    known = describe(group.error, group.stage)
    return {
        "stage": group.stage,
        "reason": group.error,
        "class": group.reject_class,
        "rows": group.rows,
        "what": known.what,
        "do": known.do,
        "failure": known.failure,
        "examples": group.examples,
    }


def _show(table: Any, groups: list[Any], narrowed: bool) -> None:
    from mtv_core.data.funnel import describe

    if not groups:
        out.print(f"no refusals in {escape(table.uri)}" + (" that fit these options" if narrowed else ""))
        return
    total = sum(group.rows for group in groups)
    out.print(f"{total} refusals in {escape(table.uri)}")
    width, digits = max(len(group.error) for group in groups), len(str(max(group.rows for group in groups)))
    stage = None
    for group in groups:
        if group.stage != stage:
            stage = group.stage
            out.print(f"\n[bold]{escape(stage)}[/]  {sum(one.rows for one in groups if one.stage == stage)}")
        known = describe(group.error, group.stage)
        colour = _COLOURS[group.reject_class]
        out.print(
            f"  [bold]{escape(group.error):<{width}}[/]  {group.rows:>{digits}}  [{colour}]{group.reject_class:<9}[/]  {escape(known.what)}"
        )
        indent = " " * (width + digits + 17)
        out.print(f"{indent}[green]→[/] {escape(known.do)}")
        for example in group.examples:
            again = f" (attempt {example['attempt']})" if example["attempt"] > 1 else ""
            where = example["location"] or f"{example['shard']}#{example['key']}"
            out.print(f"{indent}[dim]{escape(where)}{again}: {escape(example['message'][:300])}[/]")
    imported = _imports(table, {group.stage for group in groups})
    again = ", --retry tries them again" if any(group.stage not in imported for group in groups) else ""
    if again and imported:
        again += f", but for those of imports ({', '.join(sorted(imported))})"
    out.print(f"\n[dim]--export FILE writes them{again}; see docs/failures.md[/]")


def _check_reasons(wanted: list[str], groups: list[Any], uri: str) -> None:
    known = sorted({group.error for group in groups})
    unknown = [name for name in wanted if name not in known]
    if unknown:
        there = f"the reasons there are {', '.join(known)}" if known else "there are no refusals of this stage and class"
        raise ValueError(f"nothing was refused for {', '.join(unknown)} in {uri}; {there}")


def _chosen(groups: list[Any], narrowed: bool, shards: bool) -> dict[str, list[str]]:
    """Stage → reasons of samples that are tried again."""
    chosen: dict[str, list[str]] = {}
    for group in groups:
        if narrowed or group.error not in SETTLED:
            chosen.setdefault(group.stage, []).append(group.error)
    if not chosen:
        if shards and not groups:
            raise ValueError(_SHARDS)
        raise ValueError("nothing was refused that is worth another try; name duplicates and the like by --reason")
    return chosen


def _imports(table: Any, stages: Iterable[str]) -> dict[str, str]:
    """Of stages, those whose labels are imported → from which file: a model does not try them again."""
    from mtv_core.labelling_retry import imported_from

    if not table.exists():
        return {}
    return {stage: file for stage in stages if stage != "ingest" and (file := imported_from(table, stage)) is not None}


def _without_imports(table: Any, groups: list[Any]) -> list[Any]:
    """What a model or a reader can try again; says what it cannot, before anything is started."""
    from mtv_core.labelling_retry import own_labels

    imported = _imports(table, {group.stage for group in groups})
    said = [own_labels(stage, file) for stage, file in imported.items()]
    others = [group for group in groups if group.stage not in imported]
    if said and not others:
        raise ValueError("; ".join(said))
    for one in said:
        err.print(f"note: {escape(one)}")
    return others


def _of_a_preset(resolved: Resolved) -> bool:
    """Whether nobody named the sources: they are those of a preset that ships with MTV, which is for another table than this one."""
    origin = resolved.origin.get("sources", "default")
    return origin == "default" or origin in {f"preset {name}" for name in presets()}


def _from_ledger(resolved: Resolved, table: Any, reasons: list[str]) -> Resolved:
    """The same configuration, with the sources that the table itself knows."""
    from tasks.retry import sources_of

    config = resolved.config
    named = {"sources": sources_of(table, reasons), "table": config.table.model_copy(update={"uri": table.uri})}
    return resolved.model_copy(update={"config": config.model_copy(update=named)})


def _retry(resolved: Resolved, chosen: dict[str, list[str]], console: Console) -> None:
    """Try what was chosen again, stage by stage."""
    from tasks import retry as stages
    from tasks.run import open_run

    for name, reasons in chosen.items():
        with open_run(resolved, "retry") as run, bars() as progress:
            if name == "ingest":
                ref = run.stage("ingest", "", partial(stages.ingest, run, reasons, Bar(progress, name)))
            else:
                ref = run.stage("label", "", partial(stages.label, run, name, reasons, Bar(progress, name)))
        _say(name, ref, console)


def _say(name: str, ref: StageRef, console: Console) -> None:
    report = ref.report
    done = "new rows" if name == "ingest" else "labelled"
    console.print(f"{name}: {report.rows_in} tried again, {report.rows_out} {done}, {report.rows_rejected} refused")
    for note in ref.outputs.get("notes", "").splitlines():
        console.print(f"  note: {escape(note)}")
