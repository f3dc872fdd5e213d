"""Lance datasets: opened by URI, created and appended to by one committer, without a half-visible state between.

Nothing in Lance is idempotent: the same fragments committed twice double the rows. So whoever publishes asks first what is there.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments

from mtv_core.data.files import lance_options
from mtv_core.data.store_errors import of_lance
from mtv_core.settings import is_local

STORAGE_VERSION = "2.2"  # of data files
_ATTEMPTS = 20
_FULL = re.compile(r"no space left|disk quota|file too large|os error (28|27|122)\b", re.IGNORECASE)
_READ_ONLY = re.compile(r"read-only file system|permission denied|access ?denied|os error (30|13|1)\b|not a directory", re.IGNORECASE)


def explain(error: Exception, uri: str) -> OSError:
    """A write that failed, in words that say what to do; Lance's own name the line of its source."""
    text = str(error)
    if _FULL.search(text) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OSError(
            errno.ENOSPC, f"no space left to write {uri}: free some or choose another table.uri, then run again; nothing half-done shows"
        )
    if _READ_ONLY.search(text) or isinstance(error, (PermissionError, NotADirectoryError)):
        return PermissionError(errno.EACCES, f"cannot write to {uri}: it is read-only, or not a folder of yours; choose another table.uri")
    return error if isinstance(error, OSError) else OSError(f"cannot write to {uri}: {text}")


def open_dataset(uri: str, version: int | str | None = None, storage_options: Mapping[str, str] | None = None) -> LanceDataset | None:
    """The dataset, at its latest version or a given one or a tag; None if there is no such thing.

    Raises:
        PermissionError: its object store does not let us in.
        FileNotFoundError: there is no such bucket.
        OSError: it does not answer.
    """
    try:
        return lance.dataset(uri, version=version, storage_options=lance_options(uri, storage_options))
    except (ValueError, OSError) as error:
        said = error if is_local(uri) else of_lance(error, uri)
        if isinstance(said, FileNotFoundError) and said is not error:
            raise said from error
        if re.search(r"was not found|does not exist", str(error)):
            return None
        if said is error:
            raise
        raise said from error


def write(
    rows: pa.Table | pa.RecordBatchReader, uri: str, max_rows_per_file: int, storage_options: Mapping[str, str] | None = None
) -> list[FragmentMetadata]:
    """Write fragments that nobody sees until they are published. For workers."""
    exists = open_dataset(uri, storage_options=storage_options) is not None
    try:
        return write_fragments(
            rows,
            uri,
            schema=rows.schema,
            mode="append" if exists else "create",
            max_rows_per_file=max_rows_per_file,
            data_storage_version=STORAGE_VERSION,
            storage_options=lance_options(uri, storage_options),
            enable_stable_row_ids=not exists,
        )
    except OSError as error:
        raise explain(error, uri) from error


def data_files(fragments: Iterable[FragmentMetadata]) -> set[str]:
    """Names of the data files of fragments."""
    return {file.path for fragment in fragments for file in fragment.files}


def published_files(dataset: LanceDataset) -> set[str]:
    """Names of all data files in the manifest of a dataset."""
    return {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}


class RowsAddedError(OSError):
    """Somebody else added rows since the caller looked: decide again, with these in sight."""


def last_fragment(dataset: LanceDataset | None) -> int | None:
    """Highest fragment id, which tells whether rows were added since; -1 without fragments, None without a dataset."""
    return None if dataset is None else max((fragment.fragment_id for fragment in dataset.get_fragments()), default=-1)


def publish(
    fragments: Sequence[FragmentMetadata], schema: pa.Schema, uri: str, storage_options: Mapping[str, str] | None = None
) -> LanceDataset:
    """Make fragments visible, all at once: create the dataset with them, or append those whose files are not in its manifest yet.

    Safe to call again after a kill or an uncertain answer. A creation never replaces a table that appeared meanwhile: Lance refuses it with
    `read_version=0`, but only without retries, since a retry takes the other's version for its own. Stable row ids are chosen at creation.

    Raises:
        OSError: the dataset cannot be written.
    """
    return _publish(fragments, schema, uri, storage_options)


def publish_unless_added(
    fragments: Sequence[FragmentMetadata], schema: pa.Schema, uri: str, seen: int | None, storage_options: Mapping[str, str] | None = None
) -> LanceDataset:
    """`publish`, unless somebody else added rows since the caller looked: compare and swap, so that no lock has to be trusted to the end.

    Two appends never conflict in Lance. So the fragments come by an Update which also puts the first fragment in its own place, unchanged,
    and two updates of one fragment do conflict. Labels written at the same time come through: theirs rebase on an update that modified no
    column, and if they were first, on that very fragment, we look and try again. `tests/contract` holds all of this. A dataset that has
    lost all its fragments has none to put in its place: there the lock alone is what two committers meet.

    Args:
        fragments: as their writers returned them.
        schema: of a dataset that is made now.
        uri: of the dataset.
        seen: what `last_fragment` said when the caller looked.
        storage_options: of its store.

    Raises:
        RowsAddedError: somebody did. Nothing was published.
        OSError: the dataset cannot be written.
    """

    def check(dataset: LanceDataset | None) -> None:
        if last_fragment(dataset) != seen:
            raise RowsAddedError(f"others added rows to {uri} meanwhile; run again, it goes on from here")

    return _publish(fragments, schema, uri, storage_options, check)


def _publish(
    fragments: Sequence[FragmentMetadata],
    schema: pa.Schema,
    uri: str,
    storage_options: Mapping[str, str] | None,
    check: Callable[[LanceDataset | None], None] | None = None,
) -> LanceDataset:
    try:
        for _ in range(_ATTEMPTS):
            dataset = open_dataset(uri, storage_options=storage_options)
            known = published_files(dataset) if dataset is not None else set()
            new = [fragment for fragment in fragments if not data_files([fragment]) <= known]
            if dataset is not None and not new:
                return dataset
            if check is not None:
                check(dataset)
            with contextlib.suppress(CommitConflictError):
                return _commit(dataset, new, schema, uri, storage_options, alone=check is not None)
        raise OSError(f"others write to {uri} all the time; run again")
    except RowsAddedError:
        raise
    except OSError as error:
        raise explain(error, uri) from error


def _commit(
    dataset: LanceDataset | None,
    fragments: list[FragmentMetadata],
    schema: pa.Schema,
    uri: str,
    storage_options: Mapping[str, str] | None,
    alone: bool,
) -> LanceDataset:
    """One try. Raises CommitConflictError if somebody else came between in a way that matters."""
    options = lance_options(uri, storage_options)
    if dataset is None:
        create = LanceOperation.Overwrite(schema, fragments)
        try:
            return LanceDataset.commit(uri, create, read_version=0, max_retries=0, storage_options=options, enable_stable_row_ids=True)
        except OSError as error:
            if open_dataset(uri, storage_options=storage_options) is None:
                raise
            raise CommitConflictError("another committer made it first") from error
    operation: LanceOperation.BaseOperation = LanceOperation.Append(fragments)
    first = min(dataset.get_fragments(), key=lambda fragment: fragment.fragment_id, default=None)
    if alone and first is not None:
        operation = LanceOperation.Update(updated_fragments=[first.metadata], new_fragments=fragments, update_mode="rewrite_columns")
    return LanceDataset.commit(dataset, operation, read_version=dataset.version, storage_options=options)


def append_rows(rows: pa.Table, uri: str, max_rows_per_file: int, storage_options: Mapping[str, str] | None = None) -> LanceDataset:
    """Write and publish in one go; not idempotent, so for rows the caller has checked."""
    return publish(write(rows, uri, max_rows_per_file, storage_options), rows.schema, uri, storage_options)


def quoted(values: Iterable[str]) -> str:
    """A list of string literals for a filter."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def scanner_options(columns: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """Arguments of a scanner that leave out what is None."""
    given = {"columns": list(columns) if columns is not None else None, **options}
    return {name: value for name, value in given.items() if value is not None}
