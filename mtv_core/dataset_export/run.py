"""An export, from the plan to the manifest.

    export.json                what is to be written; a folder with it is ours
    <table>/exports/           a copy is being made
    shards                     each appears whole, then its record in _state/
    README.md, others          what people and readers want to find
    manifest.json              it is whole
    <table>/exports/           the copy is whole

Killed anywhere and called again, it goes on: a shard with a record is not written again, one without is, with the same bytes. Nothing says
that an export is whole before it is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtv_core.data.files import Files
from mtv_core.dataset_export import card, shards
from mtv_core.dataset_export.config import DatasetExportConfig, Split
from mtv_core.dataset_export.plan import (
    LAYOUT,
    MANIFEST,
    PLAN,
    STATE,
    FileRecord,
    Manifest,
    ManifestFile,
    Plan,
    merged,
    read_manifest,
    read_plan,
)
from mtv_core.dataset_export.writer import json_bytes
from mtv_core.executor import Executor, Progress, silent
from mtv_core.faults import fault_point
from mtv_core.store import exports
from mtv_core.store.table import Table
from mtv_core.store.view import View


def run(
    table: Table,
    config: DatasetExportConfig,
    tag: str | None = None,
    version: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
    overwrite: bool = False,
) -> Manifest:
    """Export rows of a tag, of a version, or of the latest version. What is there already is not written again.

    Without tag and version, an export that was killed goes on with the version it was begun with.

    Args:
        table: to export from.
        config: what, in which form, to where.
        tag: name of a version.
        version: number of one.
        executor: writes shards side by side; None: one after the other, here.
        progress: told rows.
        overwrite: an earlier export in the folder is removed first, file by file. Nothing else ever is.

    Raises:
        FileNotFoundError: no such table, tag or version; or it went away meanwhile.
        ValueError: no row is in the slice, a condition or a column makes no sense, or the folder holds something else.
        OSError: the folder, or the table's list of exports, cannot be written to.
    """
    if tag is not None and version is not None:
        raise ValueError("give a tag or a version, not both: a tag names a version")
    folder = Files(config.out, table.storage_options)
    _check_place(folder, table)
    earlier, finished = read_plan(folder), read_manifest(folder)
    if earlier is None and folder.names(""):
        raise ValueError(
            f"{folder.uri} is not empty and holds no export of this version of MTV; choose another folder, or empty it yourself"
        )
    view = _view(table, config, tag, version, None if overwrite or finished else earlier)
    plan, indices = make_plan(view, config, tag)
    if earlier is not None and earlier != plan and not overwrite:
        what = f"{folder.uri} holds {'an' if finished else 'an unfinished'} export of something else"
        raise ValueError(f"{what} ({'; '.join(plan.different(earlier))}): choose another folder, or replace it with --overwrite")
    if earlier is not None and overwrite and (earlier != plan or finished):
        shards.clear(folder, earlier, finished)
        exports.drop(table, folder.uri, earlier.id)
        finished = None
    folder.write(PLAN, json_bytes(plan.model_dump(mode="json")))
    fault_point("data_export.planned")
    record = exports.begin(
        table,
        exports.ExportRecord(
            uri=folder.uri, export=plan.id, format=plan.format, version=plan.version, tag=plan.tag, data=plan.data, split=plan.split,
            columns=plan.columns, rows=plan.num_rows,
        ),
    )  # fmt: skip
    fault_point("data_export.begun")
    if finished is None or not all(shards.has(folder, file.path, file.bytes) for file in finished.files):
        folder.remove(MANIFEST)  # of an export that lost a file since
        finished = _close(table, folder, plan, view, shards.write_all(view, folder, plan, indices, executor, progress))
    fault_point("data_export.whole")
    folder.remove(STATE)
    exports.finish(table, record)
    progress(plan.num_rows, plan.num_rows, "")
    return finished


def make_plan(view: View, config: DatasetExportConfig, tag: str | None = None) -> tuple[Plan, dict[Split, NDArray[np.int64]]]:
    """What to write, and the positions of the rows of each split. Looks only.

    Raises:
        ValueError: no row is in the slice, or a condition or a column makes no sense.
    """
    names = view.schema.names
    unknown = [name for name in config.columns or () if name not in names]
    if unknown:
        raise ValueError(f"the table has no column {', '.join(map(repr, unknown))}; its columns are {', '.join(names)}")
    wanted = {*(config.columns or names), *shards.WRITERS[config.format].needs}
    selection = view.select(config.data, None if config.split == "all" else config.split)
    if not len(selection.indices):
        raise ValueError(f"there is nothing to export from {view.uri} at version {view.version} ({config.data}): {selection}")
    splits = np.concatenate([batch.column(0).to_numpy(zero_copy_only=False) for batch in view.scan(["split"])])[selection.indices]
    indices = {split: rows for split in config.splits if len(rows := selection.indices[splits == split])}
    plan = Plan(
        format=config.format,
        table=view.uri,
        version=view.version,
        tag=tag,
        data=config.data,
        split=config.split,
        columns=[name for name in names if name in wanted],
        shard_size=config.shard_size,
        rows={split: len(rows) for split, rows in indices.items()},
    )
    return plan, indices


def _check_place(folder: Files, table: Table) -> None:
    if folder.local and Path(folder.uri).exists() and not Path(folder.uri).is_dir():
        raise ValueError(f"{folder.uri} is a file; give a folder to export to")
    if f"{folder.uri}/".startswith(f"{table.uri}/"):
        raise ValueError(f"{folder.uri} lies inside the table; choose another folder")


def _view(table: Table, config: DatasetExportConfig, tag: str | None, version: int | None, unfinished: Plan | None) -> View:
    """The rows to export. An unfinished export that was asked for in the same words goes on with its version: the table may have grown."""
    goes_on = False
    if tag is None and version is None and unfinished is not None:
        theirs = (unfinished.layout, unfinished.table, unfinished.tag, unfinished.format, unfinished.data, unfinished.split)
        goes_on = theirs == (LAYOUT, table.uri, None, config.format, config.data, config.split)
    if goes_on and unfinished is not None:
        version = unfinished.version
    try:
        return Table.at(table.uri, tag=tag, version=version, storage_options=table.storage_options)
    except FileNotFoundError as error:
        if not goes_on or not table.exists():
            raise
        raise FileNotFoundError(
            f"the export in {config.out} was begun with version {version} of the table, which is gone (a clean-up or a takedown); "
            "begin it anew with --overwrite"
        ) from error


def _close(table: Table, folder: Files, plan: Plan, view: View, records: dict[Split, list[FileRecord]]) -> Manifest:
    """Write what is no shard, and the manifest last.

    Raises:
        FileNotFoundError: the version is gone. A takedown may have removed rows that are in the files.
    """
    if not table.version_exists(plan.version):
        raise FileNotFoundError(
            f"version {plan.version} of {table.uri} went away while it was exported (a clean-up or a takedown), so the export in "
            f"{folder.uri} was not finished; begin it anew with --overwrite"
        )
    writer = shards.WRITERS[plan.format]
    everything = [record for some in records.values() for record in some]
    revisions, licenses = merged(everything)
    schema = pa.schema([view.schema.field(name) for name in plan.columns])
    text = card.render(plan, writer, table.accepted(), revisions, licenses, sum(record.bytes for record in everything))
    files = [ManifestFile(**record.model_dump(include=set(ManifestFile.model_fields))) for record in everything]
    for name, content in {card.CARD: text.encode(), **writer.others(plan, schema, records)}.items():
        folder.write(name, content)
        files.append(ManifestFile(path=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))
    fault_point("data_export.described")
    manifest = Manifest(id=plan.id, plan=plan, num_rows=plan.num_rows, revisions=revisions, files=files)
    folder.write(MANIFEST, json_bytes(manifest.model_dump(mode="json")))
    return manifest
