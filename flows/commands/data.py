"""`mtv data`: rows of a table looked at, counted, and copied out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from flows.commands.console import Bar, PresetOption, SetOption, SourcesOption, TableOption, bars, out, resolve_options
from mtv_core.config import table_uri
from mtv_core.dataset_export.config import Format
from mtv_core.store.slice_config import SliceConfig

if TYPE_CHECKING:
    from mtv_core.store.table import Table
    from mtv_core.store.view import View

app = typer.Typer(no_args_is_help=True, help="Rows of a table: count them, look at them, export them.")

_SAMPLE = "width >= 256 and source = 'cc12m'"
TagOption = Annotated[str | None, typer.Option("--tag", help="The rows and labels of a tag; by default the table as it stands.")]
VersionOption = Annotated[int | None, typer.Option("--version", min=1, help="The rows of a version of the table.")]
WhereOption = Annotated[str | None, typer.Option("--where", "-w", help=f'SQL condition over the columns, for example "{_SAMPLE}".')]
FractionOption = Annotated[
    float, typer.Option("--fraction", min=0, max=1, help="Share of the rows, by uid; a smaller share lies inside a larger one.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Rows at most, those of the smallest uids.")]


@app.command()
def count(
    table: TableOption = None,
    tag: TagOption = None,
    version: VersionOption = None,
    where: WhereOption = None,
    fraction: FractionOption = 1.0,
    limit: LimitOption = None,
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    options: SetOption = None,
) -> None:
    """Count rows, split by split, and say what each step of a slice leaves: try `train.data` here."""
    from mtv_core.dataset_export.config import SPLITS

    store, view = _open(table, tag, version, preset, sources, options)
    part = SliceConfig(where=where, fraction=fraction, limit=limit)
    out.print(f"{escape(store.uri)}  version {view.version}" + (f"  tag {tag}" if tag else ""))
    for split in SPLITS:
        steps = view.select(part, split).counts
        found = [f"{number} {'rows' if step == 'split' else f'after {step}'}" for step, number in steps.items() if step != "rows"]
        out.print(f"  {split:<9} {', '.join(found)}")
    for expert, revisions in store.label_counts(view.version).items():
        said = ", ".join(f"{rows} {revision or 'without labels'}" for revision, rows in sorted(revisions.items(), key=lambda one: -one[1]))
        out.print(f"  {expert:<9} {escape(said)}")


@app.command()
def show(
    table: TableOption = None,
    tag: TagOption = None,
    version: VersionOption = None,
    where: WhereOption = None,
    fraction: FractionOption = 1.0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="Rows, those of the smallest uids.")] = 8,
    picture: Annotated[str | None, typer.Option("--picture", help="A file for a picture of them: rows.jpg.")] = None,
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    options: SetOption = None,
) -> None:
    """Show some rows: always the same ones of a table, whatever its layout."""
    _, view = _open(table, tag, version, preset, sources, options)
    indices = view.indices(SliceConfig(where=where, fraction=fraction, limit=limit))
    names = view.schema.names
    shown = ["uid", "width", "height", "split", "source", "key", "license", "captions", "phrases"]
    for row in view.take(indices, [name for name in shown if name in names]).to_pylist():
        facts = [f"{row['width']} × {row['height']}", row["split"], f"{row['source']}/{row['key']}", row["license"]]
        out.print(f"[bold]{row['uid']}[/]  {escape(' · '.join(fact for fact in facts if fact))}")
        for caption in row["captions"]:
            out.print(f"  {caption['kind']:<9} {escape(caption['text'])}")
        if row.get("phrases"):
            out.print(f"  {'boxes':<9} {escape(', '.join(row['phrases']))}")
    if not len(indices):
        out.print("no row meets that")
    elif picture is not None:
        from mtv_core import viz

        labels = [name for name in ("depth", "boxes", "phrases", "scores") if name in names]
        viz.gallery(view.take(indices, ["uid", "image", "caption", *labels])).convert("RGB").save(picture, quality=90)
        out.print(f"picture: {escape(picture)}")


@app.command()
def export(
    form: Annotated[Format, typer.Option("--format", "-f", help="What it is to be read with.")],
    folder: Annotated[str, typer.Option("--out", "-o", help="Folder or URI (s3://…): new, empty, or of an earlier try.")],
    table: TableOption = None,
    tag: TagOption = None,
    version: VersionOption = None,
    where: WhereOption = None,
    fraction: FractionOption = 1.0,
    limit: LimitOption = None,
    split: Annotated[Literal["all", "train", "held_out"], typer.Option("--split", help="Which split.")] = "all",
    columns: Annotated[str | None, typer.Option("--columns", "-c", help="Which columns: caption,depth,… By default all.")] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Rows a file.")] = 10_000,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another export that is in the folder.")] = False,
    preset: PresetOption = "demo",
    sources: SourcesOption = None,
    options: SetOption = None,
) -> None:
    """Copy rows and labels out, as webdataset tars, Parquet, or a Hugging Face dataset. A killed export goes on where it stopped."""
    from mtv_core.compute import ComputeConfig
    from mtv_core.dataset_export.config import DatasetExportConfig
    from mtv_core.dataset_export.run import run
    from tasks.cluster import connect

    config = DatasetExportConfig(
        format=form,
        out=folder,
        data=SliceConfig(where=where, fraction=fraction, limit=limit),
        split=split,
        columns=tuple(name.strip() for name in columns.split(",") if name.strip()) if columns is not None else None,
        shard_size=shard_size,
    )
    store = _table(table, preset, sources, options)
    with bars() as progress:
        bar = Bar(progress, "export")
        if workers == 1:
            manifest = run(store, config, tag, version, progress=bar, overwrite=overwrite)
        else:
            with connect(ComputeConfig(workers=workers)) as executor:
                manifest = run(store, config, tag, version, executor, bar, overwrite)
    splits = ", ".join(f"{rows} {name}" for name, rows in manifest.plan.rows.items())
    out.print(f"{manifest.num_rows} rows ({splits}), {manifest.num_bytes / 1e6:.1f} MB in {len(manifest.files)} files: {escape(folder)}")
    out.print(f"  version  {manifest.plan.version}" + (f"  tag {tag}" if tag else ""))


def _table(table: str | None, preset: str, sources: list[str] | None, options: list[str] | None) -> Table:
    from mtv_core.store.table import Table

    config = resolve_options(preset, sources, table, options).config
    return Table.open(table_uri(config), config.table.storage_options)


def _open(
    table: str | None, tag: str | None, version: int | None, preset: str, sources: list[str] | None, options: list[str] | None
) -> tuple[Table, View]:
    if tag is not None and version is not None:
        raise typer.BadParameter("give a tag or a version, not both: a tag names a version")
    store = _table(table, preset, sources, options)
    return store, store.at(store.uri, tag=tag, version=version, storage_options=store.storage_options)
