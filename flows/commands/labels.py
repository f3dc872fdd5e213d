"""`mtv label`: let the experts label; and `mtv label import`: bring labels of one's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from flows.commands import stages
from flows.commands.console import Bar, PresetOption, SetOption, SourcesOption, TableOption, bars, fail, out, resolve_options
from mtv_core.config import table_uri

app = typer.Typer(invoke_without_command=True)


@app.callback(help=stages.label.__doc__)
def label(
    context: typer.Context,
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    table: TableOption = None,
    options: SetOption = None,
) -> None:
    """Label, unless a command below it is called."""
    if context.invoked_subcommand is None:
        stages.label(preset, sources, table, options)
    elif sources or table or options or preset != "demo":
        raise typer.BadParameter(f"options of `mtv label {context.invoked_subcommand}` go behind its name")


@app.command("import")
def import_labels(
    file: Annotated[
        Path,
        typer.Argument(help="Boxes: .parquet, .jsonl or .csv; depth: a folder of <uid>.npy, .npz, .png, .tif, .pfm; an .npz; a .parquet."),
    ],
    table: TableOption = None,
    expert: Annotated[
        Literal["depth", "detection"] | None, typer.Option("--expert", help="Whose columns they go to; by default as the file looks.")
    ] = None,
    units: Annotated[
        Literal["fraction", "pixels"], typer.Option("--units", help="Of boxes: 0 … 1 of the image, or px of the stored image.")
    ] = "fraction",
    values: Annotated[
        Literal["disparity", "depth"] | None,
        typer.Option("--values", help="Of depth maps: disparity (larger is nearer) or depth (larger is farther)."),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Depth maps are divided by it: 1000 for a PNG of millimetres.")] = 1.0,
    keep_others: Annotated[
        bool, typer.Option("--keep-others", help="Rows that the file says nothing of keep the labels they have.")
    ] = False,
    license_name: Annotated[str, typer.Option("--license", help="Of the labels, for reports and exports.")] = "unknown",
    check: Annotated[bool, typer.Option("--check", help="Look at every label and change nothing.")] = False,
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    options: SetOption = None,
) -> None:
    """Import boxes or depth of your own by uid. They are an expert's with a revision of its own: training and tags use them."""
    from mtv_core import label_import
    from mtv_core.label_import_files import ReadOptions
    from tasks import label_import as stage
    from tasks.run import open_run

    if not 0 < scale < math.inf:
        raise typer.BadParameter(f"--scale {scale:g}: depth maps are divided by it, so give a number above 0")
    resolved = resolve_options(preset, sources, table, options)
    config = resolved.config
    depth = config.label.depth
    size = {} if depth is None else {"depth_size": depth.depth_size}
    reading = ReadOptions.model_validate({"units": units, "values": values, "scale": scale, **size})
    if check:
        with bars() as progress:
            result = label_import.run(
                table_uri(config),
                file,
                expert=expert,
                options=reading,
                keep_others=keep_others,
                failures=config.label.failures,
                check_only=True,
                progress=Bar(progress, "check"),
                storage_options=config.table.storage_options,
            )
        out.print(f"{result.report.rows_in} labels, {result.report.rows_out} to import, {result.report.rows_skipped} are there already")
        for note in stage.notes(result):
            out.print(f"  {escape(note)}")
        if result.stopped is not None:
            raise fail(f"this would not be imported: {result.stopped}")
        return
    with open_run(resolved, "label-import") as run, bars() as progress:
        bar = Bar(progress, "import")
        ref = run.stage("label", "", lambda: stage.import_labels(run, file, expert, reading, keep_others, license_name, bar))
    stages._say(ref)
    if ref.tag is None:
        out.print("  no tag yet: rows wait for other labels; run `mtv label`")
