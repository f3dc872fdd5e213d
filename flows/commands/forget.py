"""`mtv forget`: samples out of a table for good, and kept out."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape

from flows.commands.console import Bar, PresetOption, SetOption, SourcesOption, TableOption, bars, fail, out, resolve_options
from mtv_core.config import table_uri

if TYPE_CHECKING:
    from mtv_core.store.table import Table
    from mtv_core.store.takedown import Plan
    from mtv_core.store.takedown_journal import Journal
    from tasks.takedown import Traces

_Values = list[str] | None
_NAMES = {"uids": "by uid", "images": "by image hash", "keys": "by key", "urls": "by URL"}
_SHOWN = 5
_HINTS = {
    "keys": "a copy that was refused as a duplicate is found by shard:key only, since its source is not in the table",
    "urls": "a copy that was refused as a duplicate has no URL in the table: name its picture by --image-hash or --key",
}


def _file(what: str) -> Any:
    return typer.Option(help=f"File of {what}, one a line; '-' for standard input.", show_default=False)


def forget(
    table: TableOption = None,
    uid: Annotated[_Values, typer.Option("--uid", help="A sample's uid; may be repeated.")] = None,
    image_hash: Annotated[_Values, typer.Option("--image-hash", help="sha256 of an image file as it was received.")] = None,
    key: Annotated[_Values, typer.Option("--key", help="A key; where keys repeat, shard:key or source:key.")] = None,
    url: Annotated[_Values, typer.Option("--url", help="Where an image came from.")] = None,
    uids: Annotated[str | None, _file("uids")] = None,
    image_hashes: Annotated[str | None, _file("image hashes")] = None,
    keys: Annotated[str | None, _file("keys")] = None,
    urls: Annotated[str | None, _file("URLs")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Name of the source that the keys are of.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the takedown, and shown where a dropped tag is opened.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it. It cannot be undone.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Finish a takedown that was killed, and nothing else.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="What was taken down before, and where traces of it are now.")] = False,
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    options: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Remove samples from a table for good, and keep them out.

    Rows, their labels and every copy of the same image; old versions, staged files and pictures of reports. Tags that had them are dropped
    and name a successor. Later ingests refuse them. Runs, models, exports and previews are listed, never removed.
    """
    from mtv_core.store import locks, takedown, takedown_journal
    from mtv_core.store.table import Table
    from tasks import takedown as task
    from tasks.takedown import Traces

    config = resolve_options(preset, sources, table, options).config
    opened = Table.create_or_open(table_uri(config), config.table.storage_options)
    given = {
        "uids": _entries(uid, uids),
        "images": _entries(image_hash, image_hashes),
        "keys": _entries(key, keys),
        "urls": _entries(url, urls),
    }
    if [uids, image_hashes, keys, urls].count("-") > 1:
        raise ValueError("only one list can come from standard input")
    if not opened.files.exists(""):
        raise FileNotFoundError(f"there is no table at {opened.uri}; --table names it")
    if (resume or list_) and any(given.values()):
        raise ValueError("--resume finishes what was begun, --list looks back; leave out what to forget")
    if list_:
        journals = takedown_journal.read_all(opened)
        _say(opened, None, journals, task.traces(opened, _tags(journals), _prefect()) if journals else Traces(), as_json)
        return
    if resume:
        pending = takedown_journal.pending(opened)
        with bars() as progress:
            journals = task.resume(opened, config.ingest, Bar(progress, "forget")) if pending and not dry_run else pending
        traces = task.traces(opened, _tags(journals), _prefect()) if journals else Traces()
        _say(opened, None, journals, traces, as_json)
        return
    request = _request(given, source)
    plan = takedown.plan(opened, request)
    waiting = takedown_journal.pending(opened)
    losses = {**{tag: loss.removed for tag, loss in plan.tags.items()}, **plan.earlier}
    for tag, rows in _tags(waiting).items():
        losses[tag] = losses.get(tag, 0) + rows
    traces = task.traces(opened, losses, _prefect()) if not plan.empty or waiting else Traces()
    if dry_run or not yes:
        _say(opened, plan, waiting, traces, as_json, locks.at_work(opened))
        if not dry_run:
            raise fail("nothing was changed; the same with --yes does it, for good", code=2)
        return
    with bars() as progress:
        journals = task.forget(opened, request, reason, config.ingest, Bar(progress, "forget"))
    _say(opened, plan, journals, traces, as_json)


def _entries(values: _Values, file: str | None) -> list[str]:
    """What options and a file name, a line an entry; in the file, empty lines do not count."""
    if file is None:
        return values or []
    try:
        text = sys.stdin.read() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file in UTF-8") from None
    return [*(values or []), *(line.strip() for line in text.split("\n") if line.strip())]


def _request(given: dict[str, list[str]], source: str | None) -> Any:
    from mtv_core.store.takedown_request import Request

    if not any(given.values()):
        raise ValueError("say what to forget: --uid, --image-hash, --key, --url, or files of them (--uids, --image-hashes, --keys, --urls)")
    try:
        return Request(**given, source=source)
    except ValidationError as error:
        raise ValueError("; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors()[:3])) from None


def _prefect() -> str | None:
    from infra.local.services import Local

    api = os.environ.get("PREFECT_API_URL") or Local().status()["prefect_api"]
    return str(api) if api else None


def _tags(journals: list[Journal]) -> dict[str, int]:
    found: dict[str, int] = {}
    for journal in journals:
        for tag, rows in [*((tag, loss.removed) for tag, loss in journal.tags.items()), *journal.earlier.items()]:
            found[tag] = found.get(tag, 0) + rows
    return found


# What it says


def _say(table: Table, plan: Plan | None, journals: list[Journal], traces: Traces, as_json: bool, busy: Sequence[str] = ()) -> None:
    if as_json:
        hidden = {"rows", "rejects", "places", "denied"}
        document = {
            "table": table.uri,
            "plan": None if plan is None else _document(plan),
            "busy": list(busy),
            "takedowns": [journal.model_dump(mode="json", exclude=hidden) for journal in journals],
            "traces": {
                "runs": [use.model_dump(mode="json") for use in traces.runs],
                "exports": [record.model_dump(mode="json") for record in traces.exports],
                "mlflow": [dataclasses.asdict(trace) for trace in traces.mlflow],
                "prefect": [dataclasses.asdict(preview) for preview in traces.prefect],
                "problems": traces.problems,
            },
        }
        typer.echo(json.dumps(document, indent=2))
        return
    out.print(f"table      {escape(table.uri)}")
    if plan is not None:
        _plan(plan)
    for journal in journals:
        _journal(journal)
    if plan is None and not journals:
        out.print("no takedown")
    _traces(traces)
    if busy:
        out.print(f"[yellow]busy[/]       --yes would be refused now: {escape('; '.join(busy))} is at work on the table")


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "asked": plan.request.asked,
        "rows": sorted(plan.found.rows),
        "not_found": plan.not_found,
        "hints": [hint for kind, hint in _HINTS.items() if kind in plan.not_found],
        "near": plan.near,
        "denied_before": plan.denied_before,
        "rejects": len(plan.rejects.identities),
        "tags": {tag: loss.model_dump() for tag, loss in plan.tags.items()},
        "earlier": plan.earlier,
        "fragments": plan.fragments,
        "versions": plan.versions,
        "files": plan.files,
    }


def _number(number: int, what: str) -> str:
    return f"{number} {what if number != 1 else what.removesuffix('s')}"


def _plan(plan: Plan) -> None:
    asked = ", ".join(f"{number} {_NAMES[kind]}" for kind, number in plan.request.asked.items())
    out.print(f"asked for  {asked}{f', {plan.denied_before} of them on the deny-list already' if plan.denied_before else ''}")
    rows, rejects = _number(len(plan.found.rows), "rows"), _number(len(plan.rejects.identities), "refusals")
    out.print(f"found      {rows}, in {_number(plan.fragments, 'fragments')} to be rewritten; {rejects}")
    for kind, entries in plan.not_found.items():
        kept = "a key alone cannot be denied" if kind == "keys" else "on the deny-list all the same"
        more = " …" if len(entries) > _SHOWN else ""
        out.print(f"not found  {len(entries)} {_NAMES[kind]}, {kept}: {escape(', '.join(entries[:_SHOWN]))}{more}")
        if kind in _HINTS:
            out.print(f"           {_HINTS[kind]}")
    if plan.near:
        more = " …" if len(plan.near) > _SHOWN else ""
        rows = _number(len(plan.near), "rows")
        out.print(
            f"[yellow]stays[/]      {rows} with almost the picture of a refusal that was named: {', '.join(plan.near[:_SHOWN])}{more}"
        )
        out.print("           Look at the picture, and name it by --uid if it is to go.")
    for tag, loss in plan.tags.items():
        out.print(f"tag        {tag} loses {loss.removed} of {loss.removed + loss.left} rows; it is dropped and names a successor")
    if plan.versions:
        out.print(f"versions   {plan.versions} old, to be removed")
    if plan.files:
        out.print(f"files      {len(plan.files)}: {escape(', '.join(plan.files[:_SHOWN]))}{' …' if len(plan.files) > _SHOWN else ''}")


def _journal(journal: Journal) -> None:
    rows = _number(journal.num_rows, "rows")
    if journal.state != "done":
        out.print(f"[yellow]begun[/]      {journal.id}, of {rows}, was not finished; it is finished first, or by --resume")
        return
    reason = f" ({escape(journal.reason)})" if journal.reason else ""
    removed = f"{rows} and {_number(journal.num_rejects, 'refusals')} are gone from every file of the table"
    out.print(f"[green]done[/]       {journal.id}{reason}: {removed}")
    out.print(f"           {journal.num_denied} new on the deny-list; {journal.bytes_removed:,} bytes cleaned up")
    for tag, successor in journal.successors.items():
        out.print(f"tag        {tag} → {successor or 'nothing: run `mtv label` to make one'}")


def _traces(traces: Traces) -> None:
    if traces.runs or traces.exports or traces.mlflow or traces.prefect:
        out.print("\nNothing below is removed. It was made from rows of this table, and may have or show those that go:")
    for use in traces.runs:
        running = " [yellow]running now: it fails when its rows go[/]" if use.status == "running" and use.tags else ""
        of = ", ".join(use.tags) or "keeps pictures of the table"
        out.print(f"run        {use.run_id}  {of}{'  trained on it' if use.trained else ''}{running}")
        for name, value in (
            *(("model", path) for path in [use.model, *use.exports]),
            *(("model", name) for name in use.registered),
            *(("picture", path) for path in use.pictures),
            ("mlflow", use.mlflow_url or use.mlflow_run_id),
            ("prefect", use.prefect_url or use.prefect_flow_run_id),
        ):
            if value:
                out.print(f"  {name:<9}{escape(value)}")
    for export in traces.exports:
        which = export.tag or f"version {export.version}, whether it had the rows is not known"
        out.print(f"export     {escape(export.uri)}  {export.rows} rows as {export.format}, of {which}")
    for trace in traces.mlflow:
        out.print(f"mlflow     run {trace.run_id} ({escape(trace.name)})  {escape(trace.url)}")
        for name, values in (("model", trace.models), ("picture", trace.pictures)):
            for value in values:
                out.print(f"  {name:<9}{escape(value)}")
    for preview in traces.prefect:
        out.print(f"prefect    artifact {escape(preview.key)} {preview.id} of flow run {preview.flow_run_id}")
    for problem in traces.problems:
        out.print(f"[yellow]not known[/]  {escape(problem)}")
