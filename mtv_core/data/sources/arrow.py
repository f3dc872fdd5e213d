"""Hugging Face datasets as `save_to_disk` writes them: folders with `state.json` and Arrow stream files; and Arrow files alone.

Local files are mapped, and what was read is let go: memory does not depend on their size. From a store one record batch is there at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mtv_core.data.mapped import MappedFile
from mtv_core.data.sources.access import Opened, Options, check_regular, opened
from mtv_core.data.sources.base import ShardRef
from mtv_core.data.sources.format import Format, Samples, damaged, one_line
from mtv_core.data.sources.listing import FileInfo, Folder
from mtv_core.data.sources.members import Members
from mtv_core.data.sources.tables import MissingColumnsError, Rows, layout
from mtv_core.settings import is_local

_ROWS = 64
_END = b"\xff\xff\xff\xff\0\0\0\0"
_FILE = b"ARROW1"


class Arrow(Format):
    """One shard an Arrow file."""

    name = "arrow"
    endings = (".arrow", ".feather")

    def claims(self, folder: Folder, named: bool = False) -> list[FileInfo]:
        """What the `state.json` files list: others, like caches, lie about. Without one all Arrow files."""
        states = [file for file in folder.files if file.base == "state.json"]
        found = {file.name: file for file in super().claims(folder, named)}
        if not states or not found:
            return list(found.values())
        listed = [name for state in states for name in _listed(folder, state.name)]
        missing = sorted(set(listed) - found.keys())
        if missing:
            raise ValueError(f"the dataset {folder.uri} lacks {missing[0]}, which its state.json lists; save it again")
        self._check_splits(folder)
        return [found[name] for name in sorted(set(listed))]

    def _check_splits(self, folder: Folder) -> None:
        names = {file.name for file in folder.files}
        for file in folder.files:
            if file.base == "dataset_dict.json":
                prefix = file.name.removesuffix(file.base)
                for split in _json(folder, file.name).get("splits", []):
                    if f"{prefix}{split}/state.json" not in names:
                        raise ValueError(f"the dataset {folder.uri} lacks the split {split}, which its {file.name} lists; save it again")

    def read(self, shard: ShardRef, max_bytes: int, storage_options: Options = None) -> Samples:
        """See `Format.read`."""
        with _source(shard, storage_options) as source:
            try:
                batches = source.batches()
                found = layout(source.schema, shard.columns)
            except MissingColumnsError as error:
                yield damaged(shard, "MissingColumns", str(error))
                return
            except Exception as error:  # Arrow has many names for what it cannot read
                source.blame()
                message = f"the file is no Arrow file, or cut or damaged ({one_line(error)}); copy it again, and the next ingest takes it"
                yield damaged(shard, "UnreadableShard", message)
                return
            rows = Rows(shard, found, max_bytes, Members(shard.root, max_bytes, storage_options))
            first, lost, why = 0, 0, ""
            while True:
                try:
                    batch = next(batches, None)
                except Exception as error:  # a `MemoryError` too: a size that is nonsense
                    source.blame()
                    why = why or one_line(error)
                    break
                if batch is None:
                    why = why or ("" if source.ended() else "there is no end-of-stream mark")
                    break
                for start in range(0, batch.num_rows, _ROWS):
                    part = batch.slice(start, _ROWS).select(found.names)
                    try:
                        checked = rows.checked(part)
                    except (pa.ArrowException, ValueError) as error:
                        lost, why = lost + part.num_rows, why or one_line(error)
                        continue
                    yield from rows.samples(checked, first + start)
                    source.let_go(part.nbytes)
                first += batch.num_rows
            if why:
                message = (
                    f"the file is cut or damaged ({why}): {first - lost} of at least {first} rows were kept; copy it again, and the next "
                )
                yield damaged(shard, "TruncatedShard", f"{message}ingest takes the rest")


class _Source:
    """The record batches of a file, mapped or of a store."""

    def __init__(self, shard: ShardRef, mapped: MappedFile | None, file: Opened | None) -> None:
        self.shard, self.mapped, self.file = shard, mapped, file
        self.schema: pa.Schema = pa.schema([])
        self.random = False  # of the kind that ends with an index, or a stream

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches in their order; sets `schema` at once."""
        if self.mapped is not None:
            source, start = self.mapped.reader(), self.mapped.bytes[: len(_FILE)]
        else:
            assert self.file is not None
            source, start = self.file, self.file.peek(len(_FILE))
        self.random = start == _FILE
        reader = pa.ipc.open_file(source) if self.random else pa.ipc.open_stream(source)
        self.schema = reader.schema
        return (reader.get_batch(number) for number in range(reader.num_record_batches)) if self.random else iter(reader)

    def let_go(self, size: int) -> None:
        """So many bytes were read and are not needed."""
        if self.mapped is not None:
            self.mapped.let_go(size)

    def ended(self) -> bool:
        """Whether a stream has its end mark: Arrow takes a cut between two batches for an end like any other."""
        if self.random:
            return True
        if self.mapped is not None:
            return self.mapped.bytes[-len(_END) :] == _END
        assert self.file is not None
        self.file.seek(-len(_END), 2)
        return self.file.read(len(_END)) == _END

    def blame(self) -> None:
        """Raise the store's error, if it was the store's."""
        if self.file is not None:
            self.file.blame()


@contextlib.contextmanager
def _source(shard: ShardRef, storage_options: Options) -> Iterator[_Source]:
    if not is_local(shard.uri):
        # Of HTTP in pieces: the end of the file is looked at.
        with opened(shard.uri, storage_options, sequential=not shard.uri.startswith("http")) as remote:
            yield _Source(shard, None, remote)
        return
    check_regular(Path(shard.uri))
    with Path(shard.uri).open("rb") as file:
        if not file.seek(0, 2):  # nothing to map
            yield _Source(shard, None, Opened(file, shard.uri))
            return
        yield _Source(shard, MappedFile(file.name), None)


def _listed(folder: Folder, state: str) -> list[str]:
    """The data files of a saved dataset."""
    document = _json(folder, state)
    if document.get("_indices_files") or document.get("_indices_data_files"):
        raise ValueError(f"the dataset {folder.uri} is stored with an index of its rows; save it again after `flatten_indices()`")
    files = document.get("_data_files")
    if not isinstance(files, list):
        return []  # some other state.json
    return [state.removesuffix("state.json") + str(file["filename"]) for file in files]


def _json(folder: Folder, name: str) -> dict[str, Any]:
    try:
        document = json.loads(folder.read(name))
    except ValueError as error:
        raise ValueError(f"{folder.path(name)} is no JSON ({error}); save the dataset again") from None
    return document if isinstance(document, dict) else {}
