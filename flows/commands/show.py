"""`mtv show`: rows with their labels, in the terminal and as pages with pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from flows.commands.console import PresetOption, SetOption, SourcesOption, TableOption, err, out, resolve_options
from mtv_core.config import table_uri
from mtv_core.report import plain

if TYPE_CHECKING:
    from mtv_core.label_report_rows import Row, Shown
    from mtv_core.labelling_config import LabelConfig
    from mtv_core.store.table import Table
    from mtv_core.store.view import View

_KEPT = "_reports/show"  # in a local table: a takedown removes what is there


def show(
    uids: Annotated[list[str] | None, typer.Argument(help="Rows by uid, or by the first digits of one.")] = None,
    name: Annotated[
        Literal["random", "lowest-score", "most-boxes", "none", "largest-change"] | None,
        typer.Option("--slice", help="Rows to look at, if no uid is given; by default random."),
    ] = None,
    expert: Annotated[Literal["depth", "detection"] | None, typer.Option("--expert", help="Whose labels; by default all.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="The rows and labels of a tag; by default the table as it stands.")] = None,
    at: Annotated[int | None, typer.Option("--at", min=1, help="The rows and labels of a version of the table.")] = None,
    before: Annotated[
        int | None,
        typer.Option("--before", min=1, help="Version that largest-change compares with; by default the last tag of other labels."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=200, help="Rows of a slice.")] = 8,
    html: Annotated[
        Path | None, typer.Option("--html", help="Folder for the pages; without uid and slice the whole report of the labels.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    table: TableOption = None,
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    options: SetOption = None,
) -> None:
    """Show labels: rows with their boxes and depth, and a page with pictures of them."""
    from mtv_core import label_show
    from mtv_core.store.table import Table

    if tag is not None and at is not None:
        raise typer.BadParameter("give a tag or a version, not both: a tag names a version")
    if uids and name is not None:
        raise typer.BadParameter("give uids or a slice, not both")
    whole = html is not None and not uids and name is None
    if before is not None and name != "largest-change" and not whole:
        raise typer.BadParameter("--before goes with --slice largest-change, or with --html alone")
    config = resolve_options(preset, sources, table, options).config
    store = Table.open(table_uri(config), config.table.storage_options)
    view = store.at(store.uri, tag=tag, version=at, storage_options=store.storage_options)
    known = store.accepted(store.dataset(view.version))
    accepted = {each: one.revision for each, one in known.items()}
    experts = [expert] if expert is not None else None
    groups = [label_show.named(view, uids, experts)] if uids else label_show.choose(store, view, name or "random", experts, count, before)
    shown: list[tuple[Shown, list[dict[str, Any]]]] = []
    files: list[str] = []
    for group in groups:
        rows, written = _rows(store, group, None if uids else count, accepted, html, pages=not whole)
        shown.append((group, [label_show.facts(row) for row in rows]))
        files += written
    if whole and html is not None:
        files += _report(store, view, config.label, tag, before, html)
    if as_json:
        found = {"table": store.uri, "version": view.version, "tag": tag, "accepted": accepted}
        found |= {"groups": [{"name": group.name, "rows": rows} for group, rows in shown], "files": files}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    out.print(f"{escape(store.uri)}  version {view.version}" + (f"  tag {escape(tag)}" if tag else ""))
    for each, one in known.items():
        if expert in (None, each):
            _line(each, f"{one.revision}  {one.source.get('model', '')}  licence {one.source.get('license', 'unknown')}")
    for group, rows_of in shown:
        _say(group, rows_of, accepted)
    if not any(rows for _, rows in shown):
        out.print("no row is like that")
    for path in [path for path in files if path.endswith("/index.html")] or files:
        out.print(f"{'page' if path.endswith('.html') else 'picture':<9} {escape(path)}")
    if not files and any(rows for _, rows in shown):
        out.print("--html FOLDER writes a page with their pictures")


def _report(store: Table, view: View, config: LabelConfig, tag: str | None, before: int | None, folder: Path) -> list[str]:
    """The whole report of the labels; says where its files are."""
    from mtv_core import label_report, label_show
    from mtv_core.label_report_rows import experts_of

    before = label_show.earlier(store, view, experts_of(view)) if before is None else before
    document = label_report.collect(store, view.version, {}, before, config, tag=tag)
    return [path for name, content in label_report.render(document) for path in _write(folder, {name: content})]


def _rows(
    store: Table, group: Shown, count: int | None, accepted: Mapping[str, str], folder: Path | None, pages: bool
) -> tuple[list[Row], list[str]]:
    """The rows of a group, and where a page of them was written: where it was asked for, or in the table if it is on this machine."""
    from mtv_core.label_show import files
    from mtv_core.store import locks

    if folder is None and pages and store.files.local:
        try:
            with locks.writing(store, "show"):  # a takedown that begins meanwhile would miss the pictures
                rows = group.rows(count)
                made = files(group, rows, accepted) if rows else {}
                for name, content in made.items():
                    store.files.write(f"{_KEPT}/{name}", content)
                return rows, [store.files.path(f"{_KEPT}/{name}") for name in made]
        except OSError as error:
            err.print(f"no picture was written into the table ({escape(plain(error))}); --html FOLDER writes elsewhere")
    rows = group.rows(count)
    return rows, _write(folder, files(group, rows, accepted)) if folder is not None and pages and rows else []


def _write(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [str(folder / name) for name in files]


def _say(group: Shown, rows: Sequence[Mapping[str, Any]], accepted: Mapping[str, str]) -> None:
    if rows:
        out.print(f"[bold]{escape(group.title)}[/]: {escape(group.meaning)}")
    for row in rows:
        note = f"  {escape(row['note'])}" if row.get("note") else ""
        out.print(f"[bold]{row['uid']}[/]  {row['width']} × {row['height']}{note}")
        _line("caption", row["caption"])
        _labels(row, accepted)
        if row.get("before"):
            out.print("  before")
            _labels(row["before"], {})


def _labels(row: Mapping[str, Any], accepted: Mapping[str, str]) -> None:
    if "depth" in row:
        _line("depth", _depth(row["depth"]) + _revision("depth", row, accepted))
    if "boxes" in row:
        boxes = row["boxes"]
        said = [f"{box['phrase']} {box['score']:.2f}  at {' '.join(f'{side:.2f}' for side in box['box'])}" for box in boxes or ()]
        first = "no label" if boxes is None else "none found" if not boxes else said[0]
        _line("boxes", first + _revision("detection", row, accepted))
        for line in said[1:]:
            _line("", line)


def _depth(depth: Mapping[str, Any] | None) -> str:
    if depth is None:
        return "no label"
    if depth["lowest"] is None:
        return "no value anywhere"
    missing = f", {1 - depth['known']:.0%} without a value" if depth["known"] < 1 else ""
    return f"{depth['lowest']:.3g} – {depth['highest']:.3g} in {depth['width']} × {depth['height']}{missing}"


def _revision(expert: str, row: Mapping[str, Any], accepted: Mapping[str, str]) -> str:
    """The revision, where it is not the accepted one."""
    stored = row.get(f"{expert}_rev")
    if f"{expert}_rev" not in row or (accepted.get(expert) is not None and stored == accepted[expert]):
        return ""
    return f"  (revision {stored})" if stored else "  (not labelled yet)"


def _line(name: str, text: str) -> None:
    """A line of the data's own words: no markup, and nothing that a terminal obeys."""
    printable = "".join(letter if letter.isprintable() else "·" for letter in text)
    out.print(f"  {name:<9} {escape(printable)}")
