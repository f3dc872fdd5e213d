"""Parquet files with the bytes of images, or Hugging Face's `Image`, and captions.

Read in batches of a few MiB, a column chunk as a stream: memory does not depend on the size of a row group. It does on the writer's pages,
of which two or three are there at once; pyarrow by default puts 1024 images into one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtv_core.data.sources.access import Opened, Options, check_regular, opened
from mtv_core.data.sources.base import ShardRef
from mtv_core.data.sources.format import Format, Samples, damaged, one_line
from mtv_core.data.sources.listing import FileInfo, Folder
from mtv_core.data.sources.members import Members
from mtv_core.data.sources.records import IMAGE_ENDINGS
from mtv_core.data.sources.tables import Layout, MissingColumnsError, Rows, layout
from mtv_core.settings import is_local

_BATCH = 8 << 20  # bytes
_MAX_ROWS = 64  # a few of them may be far above the average
_BUFFER = 1 << 20  # bytes of each column read at once from a disk, and from a store
_REMOTE_BUFFER = 4 << 20


class Parquet(Format):
    """One shard a file."""

    name = "parquet"
    endings = (".parquet", ".pq")

    def claims(self, folder: Folder, named: bool = False) -> list[FileInfo]:
        """Not what describes other files: the parquet that img2dataset writes beside each tar, and `metadata.parquet` of images."""
        if named:
            return list(super().claims(folder, named))
        names = {file.name for file in folder.files}
        own = [file for file in super().claims(folder, named) if f"{file.name.rsplit('.', 1)[0]}.tar" not in names]
        data = [file for file in own if file.base.lower() != "metadata.parquet"]
        return data or ([] if any(file.base.lower().endswith(IMAGE_ENDINGS) for file in folder.files) else own)

    def read(self, shard: ShardRef, max_bytes: int, storage_options: Options = None) -> Samples:
        """See `Format.read`. A damaged page costs the rest of its row group, and no other."""
        with _source(shard, storage_options) as (source, opened_file):
            try:
                parquet = pq.ParquetFile(
                    source,
                    pre_buffer=False,
                    buffer_size=_BUFFER if opened_file is None else _REMOTE_BUFFER,
                    page_checksum_verification=True,
                )
                found = layout(parquet.schema_arrow, shard.columns)
            except MissingColumnsError as error:
                yield damaged(shard, "MissingColumns", str(error))
                return
            except Exception as error:  # a damaged footer has Arrow raise many things
                _blame(error, opened_file)
                message = (
                    f"the file is no parquet, or its end is cut or damaged ({one_line(error)}); copy it again, and the next ingest takes it"
                )
                yield damaged(shard, "UnreadableShard", message)
                return
            with parquet:
                yield from self._rows(shard, parquet, found, max_bytes, opened_file, storage_options)

    def _rows(
        self, shard: ShardRef, parquet: pq.ParquetFile, found: Layout, max_bytes: int, file: Opened | None, storage_options: Options
    ) -> Samples:
        rows = Rows(shard, found, max_bytes, Members(shard.root, max_bytes, storage_options))
        first, lost, why = 0, 0, ""
        for number in range(parquet.num_row_groups):
            expected = read = 0
            batches: Iterator[pa.RecordBatch] | None = None
            while True:
                try:
                    if batches is None:
                        group = parquet.metadata.row_group(number)
                        expected = group.num_rows
                        batches = parquet.iter_batches(_batch_rows(group), [number], found.names, use_threads=False)
                    batch = next(batches, None)
                    checked = rows.checked(batch) if batch is not None else None
                except Exception as error:  # a `MemoryError` too: a size that is nonsense
                    _blame(error, file)
                    why = why or f"row group {number}: {one_line(error)}"
                    break
                if checked is None:
                    break
                yield from rows.samples(checked, first + read)
                read += len(checked.image)
            if read < expected:
                lost, why = lost + expected - read, why or f"row group {number} ends after {read} rows"
            first += max(expected, read)
        if why:
            message = (
                f"the file is damaged ({why}): {lost} of {first} rows cannot be read, the others were; copy it again, and the next ingest "
            )
            yield damaged(shard, "TruncatedShard", f"{message}takes the rest")


@contextlib.contextmanager
def _source(shard: ShardRef, storage_options: Options) -> Iterator[tuple[Any, Opened | None]]:
    """What Arrow reads from: its own file on a disk, which copies less, or a file of a store."""
    if is_local(shard.uri):
        check_regular(Path(shard.uri))
        with pa.OSFile(shard.uri) as local:
            yield local, None
        return
    with opened(shard.uri, storage_options, sequential=False) as file:
        yield file, file


def _blame(error: Exception, file: Opened | None) -> None:
    """Raise what was the disk's or the store's fault: Arrow says damage with an `OSError` too, but then without a number."""
    if file is not None:
        file.blame()
    elif isinstance(error, OSError) and error.errno is not None:
        raise error


def _batch_rows(group: Any) -> int:
    return int(max(1, min(_MAX_ROWS, _BATCH * group.num_rows // max(group.total_byte_size, 1))))
