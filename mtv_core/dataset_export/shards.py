"""Shards, written one by one or side by side: first the file, whole, then its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtv_core.data.files import Files
from mtv_core.data.schema import LABELS
from mtv_core.data.stats import Tally
from mtv_core.dataset_export.card import CARD
from mtv_core.dataset_export.config import Format, Split
from mtv_core.dataset_export.hf import HuggingFace
from mtv_core.dataset_export.parquet import Parquet
from mtv_core.dataset_export.plan import MANIFEST, FileRecord, Manifest, Plan, read_record, state_of
from mtv_core.dataset_export.rows import ahead, pieces
from mtv_core.dataset_export.webdataset import WebDataset
from mtv_core.dataset_export.writer import Hashed, Writer
from mtv_core.executor import Executor, Progress, Rate, SerialExecutor
from mtv_core.faults import fault_point
from mtv_core.store.view import View

WRITERS: dict[Format, Writer] = {"webdataset": WebDataset(), "parquet": Parquet(), "hf": HuggingFace()}


@dataclass(frozen=True)
class ShardJob:
    """One file to write. Picklable."""

    view: View
    folder: Files
    plan: Plan
    split: Split
    path: str
    indices: NDArray[np.int64] = field(repr=False)


def write_all(
    view: View, folder: Files, plan: Plan, indices: dict[Split, NDArray[np.int64]], executor: Executor | None, progress: Progress
) -> dict[Split, list[FileRecord]]:
    """Write every shard that is not there whole, and tell rows. The records of all of them, in order."""
    writer = WRITERS[plan.format]
    jobs = [
        ShardJob(view, folder, plan, split, writer.shard(plan, split, index), rows[index * plan.shard_size : (index + 1) * plan.shard_size])
        for split, rows in indices.items()
        for index in range(plan.num_shards(split))
    ]
    records = {job.path: record for job in jobs if (record := _there(folder, job.path)) is not None}
    rows, num_bytes, rate = sum(record.rows for record in records.values()), 0, Rate("rows")

    def tell(more_rows: int = 0, more_bytes: int = 0) -> None:
        done = rows + more_rows
        progress(done, plan.num_rows, str(rate.update(done, plan.num_rows, num_bytes=num_bytes + more_bytes)))

    tell()
    # On a cluster rows are told a shard at a time, here as they are written.
    work = write_shard if executor is not None else partial(write_shard, tell=tell)
    for outcome in (executor or SerialExecutor()).map(work, [job for job in jobs if job.path not in records]):
        if outcome.error is not None:
            raise outcome.error
        if outcome.result is None:
            raise RuntimeError(f"a worker died again and again of writing {outcome.item.path}: out of memory, most likely")
        records[outcome.item.path] = outcome.result
        rows += outcome.result.rows
        num_bytes += outcome.result.bytes
        tell()
    return {split: [records[job.path] for job in jobs if job.split == split] for split in indices}


def write_shard(job: ShardJob, tell: Callable[[int, int], None] | None = None) -> FileRecord:
    """Write one shard, then its record. Again, it writes the same bytes."""
    writer, schema = WRITERS[job.plan.format], job.view.schema
    columns = job.plan.columns
    counted = [name for name in ("license", *(f"{expert}_rev" for expert in LABELS)) if name in schema.names]
    chosen = pa.schema([schema.field(name) for name in columns])
    seen = _Seen(columns)

    def written() -> Iterator[pa.Table]:
        for piece in ahead(lambda: pieces(job.view, job.indices, list(dict.fromkeys([*columns, *counted])))):
            seen.add(piece)
            yield piece.select(columns)
            if tell is not None:
                tell(seen.rows, hashed.bytes)

    with job.folder.create(job.path) as file:
        hashed = Hashed(file)
        writer.write(hashed, chosen, written())  # type: ignore[arg-type]
    assert seen.rows == len(job.indices)
    fault_point("data_export.shard_written")
    record = FileRecord(
        path=job.path,
        bytes=hashed.bytes,
        sha256=hashed.sha256,
        split=job.split,
        rows=seen.rows,
        data_bytes=seen.num_bytes,
        revisions=seen.revisions,
        licenses=seen.licenses,
    )
    job.folder.write(state_of(job.path), record.model_dump_json().encode())
    fault_point("data_export.shard_recorded")
    return record


class _Seen:
    """What is counted of the rows on their way into a file."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self.rows = self.num_bytes = 0
        self.revisions: dict[str, dict[str, int]] = {}
        self.licenses = Tally()

    def add(self, piece: pa.Table) -> None:
        self.rows += piece.num_rows
        self.num_bytes += piece.select(self.columns).nbytes
        if "license" in piece.column_names:
            self.licenses += Tally.of(piece["uid"].combine_chunks(), piece["license"].combine_chunks())
        for expert, labels in LABELS.items():
            if f"{expert}_rev" in piece.column_names and {*labels.names} & {*self.columns}:
                known = self.revisions.setdefault(expert, {})
                for pair in piece[f"{expert}_rev"].value_counts().to_pylist():
                    known[pair["values"] or ""] = known.get(pair["values"] or "", 0) + pair["counts"]


def clear(folder: Files, plan: Plan, manifest: Manifest | None) -> None:
    """Remove an export, whole or begun, by the names of its files; then the folders that this left empty. Other files stay.

    What says that it is whole goes first, so that a kill leaves nothing that looks so.
    """
    writer = WRITERS[plan.format]
    paths = [writer.shard(plan, split, index) for split in plan.rows for index in range(plan.num_shards(split))]
    others = [*writer.others(plan, pa.schema([]), {split: [] for split in plan.rows}), CARD]
    listed = [file.path for file in manifest.files] if manifest is not None else []
    names = dict.fromkeys([MANIFEST, *reversed(others), *listed, *paths, *map(state_of, paths)])
    ours = [name for name in names if not name.startswith("/") and ".." not in name.split("/")]  # whoever edited the manifest
    for name in ours:
        folder.remove(name)
    if not folder.local:
        return
    for parent in sorted({str(Path(folder.path(name)).parent) for name in ours} - {folder.uri}, reverse=True):
        names_here = {Path(name).name for name in ours if str(Path(folder.path(name)).parent) == parent}
        for partial_file in Path(parent).glob(".*.partial"):  # of a writer that was killed
            if partial_file.name[1:].rsplit(".", 3)[0] in names_here:
                partial_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or not there
            Path(parent).rmdir()


def _there(folder: Files, path: str) -> FileRecord | None:
    """The record of a shard that is there whole."""
    record = read_record(folder, path)
    return record if record is not None and has(folder, record.path, record.bytes) else None


def has(folder: Files, path: str, size: int) -> bool:
    """Whether there is a file of this size."""
    try:
        return folder.size(path) == size
    except FileNotFoundError:
        return False
