"""Labels of one fragment: staged as a data file, and published by DataReplacement together with many others.

A staged label is a Lance file in the table's `data/` that no manifest names, and a record of it in `_staging/labels/`. A kill before the
record leaves a file that clean-up removes; a kill after it leaves work that the next run publishes; publishing again changes nothing.

The file's name says of which revision it is, and with `-whole` that no row is left without: `label_state` reads it there.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from lance import LanceDataset, LanceFragment
from lance.file import LanceFileReader, LanceFileWriter
from pydantic import BaseModel, Field

from mtv_core.data.schema import label_schema
from mtv_core.report import Reject
from mtv_core.store.dataset import STORAGE_VERSION, explain

if TYPE_CHECKING:
    from mtv_core.store.table import Table

FOLDER = "_staging/labels"
_REVISION = re.compile(r"[\w.-]+")
_BATCH_ROWS = 1024
_WHOLE = "-whole"  # in the name of a file: every row has the revision that stands in the name


class LabelConflictError(RuntimeError):
    """Somebody else labelled or rewrote fragments since they were scanned: scan again, and stage what is still stale."""

    def __init__(self, message: str, lost: Sequence[StagedLabels] = ()) -> None:
        super().__init__(message)
        self.lost = list(lost)  # what came to nothing


class FragmentTask(BaseModel, frozen=True, extra="forbid"):
    """A fragment with rows to label."""

    fragment_id: int
    physical_rows: int = Field(description="rows a label file must have: deleted ones included")
    num_stale: int


class StalePlan(BaseModel, frozen=True, extra="forbid"):
    """What is to be labelled, as of one version of the samples."""

    expert: str
    revision: str
    version: int = Field(description="the version that was scanned; staging and committing refer to it")
    fragments: list[FragmentTask]

    @property
    def num_stale(self) -> int:
        """Rows to label."""
        return sum(task.num_stale for task in self.fragments)


class StagedLabels(BaseModel, frozen=True, extra="forbid"):
    """One fragment's labels, written but not visible. The record that survives a restart."""

    expert: str
    revision: str
    version: int = Field(description="the version that was scanned")
    fragment_id: int
    physical_rows: int
    num_labelled: int = Field(description="rows whose revision is set")
    data_file: str = Field(description="name in the table's data folder")
    bytes_written: int
    rejects: list[Reject] = Field(default_factory=list)

    @property
    def record(self) -> str:
        """Where the record is kept, relative to the table."""
        return f"{record_folder(self.expert, self.revision)}/{self.version}-{self.fragment_id}.json"


def revision_name(revision: str) -> str:
    """A revision, which names files and folders."""
    assert _REVISION.fullmatch(revision), revision
    return revision


def record_folder(expert: str, revision: str) -> str:
    """Folder of the records of one expert's revision, relative to the table."""
    return f"_staging/labels/{expert}/{revision_name(revision)}"


def stage(
    table: Table,
    expert: str,
    version: int,
    fragment_id: int,
    batch: pa.Table,
    rejects: Sequence[Reject],
    revision: str | None,
    mixed: bool = False,
) -> StagedLabels:
    """See `Table.stage_labels`."""
    schema = label_schema(expert)
    physical_rows = table.fragment(table.dataset(version), fragment_id).physical_rows
    if batch.num_rows != physical_rows:
        raise ValueError(f"fragment {fragment_id} has {physical_rows} physical rows, the {expert} labels {batch.num_rows}")
    batch = batch.select(schema.names).cast(schema)
    found = set(batch[f"{expert}_rev"].drop_null().unique().to_pylist())
    if revision is None and len(found) == 1:
        revision = found.pop()
    if revision is None or (found - {revision} and not mixed):
        raise ValueError(f"labels of one fragment carry one revision; these carry {sorted(found) or 'none'}")
    with LabelWriter(table, expert, version, fragment_id, revision, mixed) as writer:
        for part in batch.to_batches(max_chunksize=_BATCH_ROWS):
            writer.write(part)
        return writer.finish(rejects)


class LabelWriter:
    """See `Table.label_writer`. What is left without `finish` is a file that no record and no manifest names; it is removed."""

    def __init__(self, table: Table, expert: str, version: int, fragment_id: int, revision: str, mixed: bool = False) -> None:
        self._table, self._expert, self._version, self._fragment_id = table, expert, version, fragment_id
        self._revision, self._mixed, self._schema = revision, mixed, label_schema(expert)
        self._fragment = table.fragment(table.dataset(version), fragment_id)
        self._written: list[pa.Array] = []  # revisions, row by row
        self._name = self._new_name(whole=True)  # as most are; what turns out not to be gets another name
        self._writer: LanceFileWriter | None = None
        self._finished = False

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._finished and self._writer is not None:
            with contextlib.suppress(Exception):  # the store may be what failed
                self._writer.close()
            with contextlib.suppress(Exception):
                self._table.files.remove(f"samples.lance/data/{self._name}")

    def write(self, batch: pa.RecordBatch) -> None:
        """The next rows: the columns of `label_schema(expert)`.

        Raises:
            OSError: the table cannot be written.
        """
        self._written.append(batch.column(f"{self._expert}_rev"))
        try:
            if self._writer is None:
                self._writer = self._open(self._name)
            self._writer.write_batch(batch)
        except OSError as error:
            raise explain(error, self._table.uri) from error

    def finish(self, rejects: Sequence[Reject] = ()) -> StagedLabels:
        """Record that the file is complete.

        Raises:
            ValueError: it has another number of rows than the fragment, or rows of another revision without `mixed`.
            OSError: the table cannot be written.
        """
        revisions = pa.chunked_array(self._written, pa.string())
        physical_rows = self._fragment.physical_rows
        # Lance would commit a file of another length, and every read of the column would fail from then on.
        if len(revisions) != physical_rows:
            raise ValueError(f"fragment {self._fragment_id} has {physical_rows} physical rows, the {self._expert} labels {len(revisions)}")
        others = set(revisions.drop_null().unique().to_pylist()) - {self._revision}
        if others and not self._mixed:
            raise ValueError(f"labels of one fragment carry one revision; these carry {sorted(others | {self._revision})}")
        try:
            if self._writer is None:  # a fragment without a row
                self._writer = self._open(self._name)
            self._writer.close()
            if others or not _is_whole(self._fragment, revisions):
                self._rename(self._new_name(whole=False))
            staged = StagedLabels(
                expert=self._expert,
                revision=self._revision,
                version=self._version,
                fragment_id=self._fragment_id,
                physical_rows=physical_rows,
                num_labelled=len(revisions) - revisions.null_count,
                data_file=self._name,
                bytes_written=self._table.files.size(f"samples.lance/data/{self._name}"),
                rejects=list(rejects),
            )
            self._table.files.write(staged.record, staged.model_dump_json().encode())
        except OSError as error:
            raise explain(error, self._table.uri) from error
        self._finished = True
        return staged

    def _new_name(self, whole: bool) -> str:
        """A new name each time: a worker that everybody thought dead must not overwrite a file that is published by now."""
        parts = (self._expert, revision_name(self._revision), self._version, self._fragment_id, secrets.token_hex(4))
        return f"label-{'-'.join(map(str, parts))}{_WHOLE if whole else ''}.lance"

    def _uri(self, name: str) -> str:
        return f"{self._table.samples_uri}/data/{name}"

    def _open(self, name: str) -> LanceFileWriter:
        return LanceFileWriter(self._uri(name), self._schema, version=STORAGE_VERSION, storage_options=self._table.lance_options)

    def _rename(self, name: str) -> None:
        """Copied, since object stores know no renaming; it happens where rows failed for now."""
        old = self._name
        reader = LanceFileReader(self._uri(old), storage_options=self._table.lance_options)
        with self._open(name) as writer:
            for batch in reader.read_all(batch_size=_BATCH_ROWS).to_batches():
                writer.write_batch(batch)
        self._name = name
        self._table.files.remove(f"samples.lance/data/{old}")


def _is_whole(fragment: LanceFragment, revisions: pa.ChunkedArray) -> bool:
    """Whether every row that is not deleted has a revision."""
    if not fragment.num_deletions:
        return not revisions.null_count
    addresses = fragment.scanner(columns=[], with_row_address=True).to_table()["_rowaddr"].to_numpy()
    return not revisions.take(pa.array(addresses & np.uint64(0xFFFFFFFF))).null_count


def superseded(table: Table, revisions: Mapping[str, str]) -> list[str]:
    """Folders of what killed runs staged for revisions that are not accepted any more, relative to the table."""
    return [
        f"{FOLDER}/{expert}/{other}"
        for expert, revision in revisions.items()
        for other in table.files.names(f"{FOLDER}/{expert}")
        if other != revision
    ]


def discard(table: Table, folders: Sequence[str]) -> None:
    """Forget what is staged there; only while nobody else writes. The next clean-up of the table removes the data files."""
    for folder in folders:
        table.files.remove(folder)


def find(table: Table, expert: str, revision: str, version: int | None = None) -> list[StagedLabels]:
    """See `Table.staged`."""
    folder = record_folder(expert, revision)
    names = table.files.names(folder)
    if not names:
        return []
    state = table.label_state(version)
    dataset, version = state.dataset, state.version
    stale = {task.fragment_id: task.physical_rows for task in state.stale(expert, revision).fragments}
    found: dict[int, StagedLabels] = {}
    for name in names:
        staged = StagedLabels.model_validate_json(table.files.read(f"{folder}/{name}"))
        useful = (
            stale.get(staged.fragment_id) == staged.physical_rows
            and staged.version <= version
            and table.files.exists(f"samples.lance/data/{staged.data_file}")
            and published(dataset, staged) is False
        )
        if useful and staged.version > getattr(found.get(staged.fragment_id), "version", -1):
            found[staged.fragment_id] = staged
        elif not useful and staged.version <= version:
            table.files.remove(f"{folder}/{name}")
    return [found[fragment] for fragment in sorted(found)]


def published(dataset: LanceDataset, staged: StagedLabels) -> bool | None:
    """Whether the manifest names the staged file; None if the fragment is gone."""
    fragment = dataset.get_fragment(staged.fragment_id)
    if fragment is None:
        return None
    return any(file.path == staged.data_file for file in fragment.data_files())
