"""Refusals as a file for other programs: JSON lines, CSV or parquet."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mtv_core.data.files import Files
from mtv_core.data.schema import REJECTS
from mtv_core.store.dataset import explain
from mtv_core.store.rejects import ALL, RejectLog, Selection

ExportFormat = Literal["jsonl", "csv", "parquet"]


def export(
    log: RejectLog,
    target: str,
    selection: Selection = ALL,
    export_format: ExportFormat | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> int:
    """Write refusals to a file that appears when it is whole, one batch in memory at a time; returns how many.

    Args:
        log: of which table.
        target: a path, or a URI that fsspec knows. `.gz` at the end compresses JSON lines and CSV.
        selection: which.
        export_format: default: by the ending of `target`.
        storage_options: of the target; default: the table's.

    Raises:
        ValueError: the format cannot be told from the ending.
        OSError: it cannot be written.
    """
    zipped = target.endswith(".gz")
    ending = target.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    kind = export_format or ("jsonl" if ending == "ndjson" else ending)
    if kind not in get_args(ExportFormat):
        raise ValueError(f"cannot tell the format of {target!r}: name it .jsonl, .csv or .parquet")
    folder, _, name = target.rpartition("/")
    files = Files(folder or ("/" if target.startswith("/") else "."), log.storage_options if storage_options is None else storage_options)
    rows = 0
    try:
        with contextlib.ExitStack() as stack:
            sink: Any = stack.enter_context(files.create(name))
            if zipped and kind != "parquet":
                sink = stack.enter_context(gzip.GzipFile(fileobj=sink, mode="wb", mtime=0))
            writer = stack.enter_context(_WRITERS[kind](sink))
            for batch in log.select(selection):
                writer.write_batch(batch)
                rows += batch.num_rows
    except OSError as error:
        raise explain(error, target) from error
    return rows


class _JsonLines:
    """Batches as lines of JSON."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Write one line a row."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist()).encode())


_WRITERS: dict[str, Callable[[Any], Any]] = {
    "jsonl": _JsonLines,
    "csv": lambda file: pyarrow.csv.CSVWriter(file, REJECTS),
    "parquet": lambda file: pq.ParquetWriter(file, REJECTS),
}
