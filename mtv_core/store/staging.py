"""What workers of an ingest leave for the committer, at places that follow from the input alone.

    <table>/_staging/ingest/<revision of the configuration>/<shard id>/rows.arrow     rows of the schema SAMPLES, without ingest_id
                                                                     /index.parquet  their uid, sha256 and key
                                                                     /shard.json     last of all: counts and refusals; the shard is staged
                                                          /fragments/<hash>.json     data files written into the table but not published

Running a piece of work again finds its last file and does nothing, or writes the same again. A data file written just before a kill has no
record; the next ingest, which finds staging left behind, removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lance.fragment import FragmentMetadata
from pydantic import BaseModel

from mtv_core.data.dedup import KNOWN
from mtv_core.data.schema import SAMPLES
from mtv_core.faults import fault_point
from mtv_core.report import Reject
from mtv_core.store.dataset import data_files, explain, publish, write
from mtv_core.store.table import Table

FOLDER = "_staging/ingest"
ROWS = pa.schema([field for field in SAMPLES if field.name != "ingest_id"])
_INDEX = pa.schema([SAMPLES.field(name) for name in ("uid", "sha256", "key")])
_BATCH_ROWS = 256
_BATCH_BYTES = 16 << 20
_ABANDONED_SECONDS = 600.0
_LANCE_NAME = re.compile(r"[01]{24}[0-9a-f]{26}\.lance")  # of data files that Lance named, as opposed to ours


class StagedShard(BaseModel, frozen=True, extra="forbid"):
    """A shard whose rows wait for the committer."""

    shard: str
    rows_in: int
    rows: int
    bytes_written: int
    seconds: float
    state: str
    rejects: list[Reject]


class Piece(BaseModel, frozen=True, extra="forbid"):
    """Rows of one staged shard."""

    shard: str
    positions: list[int]


def shard_folder(revision: str, shard: str) -> str:
    """Where a shard is staged, relative to the table."""
    return f"{FOLDER}/{revision}/{shard}"


def staged_shard(table: Table, revision: str, shard: str) -> StagedShard | None:
    """The record of a shard that is staged already."""
    try:
        return StagedShard.model_validate_json(table.files.read(f"{shard_folder(revision, shard)}/shard.json"))
    except FileNotFoundError:
        return None


class ShardWriter:
    """Writes the rows of a shard batch by batch, so that memory does not grow with the shard."""

    def __init__(self, table: Table, revision: str, shard: str) -> None:
        self._files, self._folder = table.files, shard_folder(revision, shard)
        self._uri = table.uri
        self._stack = contextlib.ExitStack()
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._index: dict[str, list[str]] = {name: [] for name in _INDEX.names}
        self.num_rows = 0
        self.bytes_written = 0

    def __enter__(self) -> ShardWriter:
        with self._explained(), contextlib.ExitStack() as opening:  # a half-opened one is closed here, not by the garbage collector
            file = opening.enter_context(self._files.create(f"{self._folder}/rows.arrow"))
            self._writer = opening.enter_context(pa.ipc.new_stream(file, ROWS))
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is not None:
            with contextlib.suppress(OSError):  # what stopped the block is what matters
                self._stack.__exit__(*exception)
            return
        with self._explained(), self._stack:
            self._flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TargetError.of(explain(error, self._uri)) from error

    def add(self, row: dict[str, Any]) -> None:
        """Add one row of the schema `ROWS`."""
        self._waiting.append(row)
        self._waiting_bytes += len(row["image"])
        for name, values in self._index.items():
            values.append(row[name])
        self.num_rows += 1
        self.bytes_written += len(row["image"])
        if len(self._waiting) >= _BATCH_ROWS or self._waiting_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            with self._explained():
                self._writer.write_batch(pa.RecordBatch.from_pylist(self._waiting, schema=ROWS))
            self._waiting, self._waiting_bytes = [], 0

    def finish(self, staged: StagedShard) -> None:
        """Write index and record; call it after the block. Only now the shard is staged."""
        with self._explained():
            with self._files.create(f"{self._folder}/index.parquet") as file:
                pq.write_table(pa.table(self._index, schema=_INDEX), file)
            fault_point("ingest.staged")
            self._files.write(f"{self._folder}/shard.json", staged.model_dump_json().encode())


class TargetError(OSError):
    """The table cannot be written. Unlike a shard that cannot be read, it stops the ingest."""

    @classmethod
    def of(cls, error: OSError) -> TargetError:
        """The same with its errno, by which a full disk is told from a bad moment."""
        return cls(error.errno, error.strerror) if error.errno is not None and error.strerror else cls(str(error))


def read_index(table: Table, revision: str, shard: str) -> pa.Table:
    """uid, sha256 and key of the rows of a staged shard, in order."""
    with table.files.open(f"{shard_folder(revision, shard)}/index.parquet") as file:
        return pq.read_table(file)


def _rows(table: Table, revision: str, pieces: Iterable[Piece], ingest_id: str) -> Iterator[pa.RecordBatch]:
    """The chosen rows of staged shards, complete, one batch in memory at a time."""
    for piece in pieces:
        wanted = np.asarray(piece.positions, np.int64)
        with table.files.open(f"{shard_folder(revision, piece.shard)}/rows.arrow") as file, pa.ipc.open_stream(file) as reader:
            start = 0
            for batch in reader:
                inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
                start += batch.num_rows
                if len(inside):
                    chosen = batch.take(pa.array(inside))
                    ids = pa.array([ingest_id] * len(inside), pa.string())
                    yield pa.RecordBatch.from_arrays([*chosen.columns, ids], schema=SAMPLES)


def write_fragment(table: Table, revision: str, pieces: list[Piece], ingest_id: str) -> list[str]:
    """Write the chosen rows as one fragment that nobody sees yet, or find the one a killed run wrote. Returns it as JSON."""
    document = json.dumps([ingest_id, [piece.model_dump() for piece in pieces]])
    record = f"{FOLDER}/{revision}/fragments/{hashlib.sha256(document.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(FileNotFoundError):
        found: list[str] = json.loads(table.files.read(record))
        if all(table.files.exists(f"samples.lance/data/{name}") for name in data_files(map(FragmentMetadata.from_json, found))):
            return found
    num_rows = sum(len(piece.positions) for piece in pieces)
    reader = pa.RecordBatchReader.from_batches(SAMPLES, _rows(table, revision, pieces, ingest_id))
    try:
        fragments = [json.dumps(fragment.to_json()) for fragment in write(reader, table.samples_uri, num_rows, table.storage_options)]
        fault_point("ingest.fragment_written")
        table.files.write(record, json.dumps(fragments).encode())
    except OSError as error:
        raise TargetError.of(explain(error, table.uri)) from error
    return fragments


def publish_samples(table: Table, fragments: Sequence[str], seen: int | None) -> int:
    """Make the fragments visible and return the version. Nothing happens to those that are visible already.

    Args:
        table: where.
        fragments: as JSON, in the order of their rows.
        seen: what `last_fragment` said before the known rows were read.

    Raises:
        TargetError: the table cannot be written, or somebody else added rows that deduplication has not seen.
    """
    if last_fragment(table) != seen:
        raise TargetError(f"another ingest added rows to {table.uri} meanwhile; run again, it goes on from here")
    try:
        return int(publish([*map(FragmentMetadata.from_json, fragments)], SAMPLES, table.samples_uri, table.storage_options).version)
    except OSError as error:
        raise TargetError.of(explain(error, table.uri)) from error


def last_fragment(table: Table) -> int | None:
    """Highest fragment id of the samples, which every append raises. None if there is no table."""
    if not table.exists():
        return None
    return max((fragment.fragment_id for fragment in table.dataset().get_fragments()), default=-1)


def known_rows(table: Table, images: pa.Array) -> pa.Table:
    """uid, sha256, key, shard and the shard's URI of the table's rows with one of the given images (their sha256)."""
    found = [KNOWN.empty_table()]
    if table.exists() and len(images):
        uris = table.ledger.uris()
        for batch in table.dataset().scanner(columns=["uid", "sha256", "key", "shard"]).to_batches():
            rows = batch.filter(pc.is_in(batch["sha256"], value_set=images))
            uri = pa.array([uris.get(shard) for shard in rows["shard"].to_pylist()], pa.string())
            found.append(pa.table([*(rows[name] for name in KNOWN.names[:-1]), uri], schema=KNOWN))
    return pa.concat_tables(found)


def left_behind(table: Table) -> bool:
    """Whether an ingest was killed here."""
    return bool(table.files.names(FOLDER))


def clear(table: Table, revision: str, shards: Iterable[str], killed: bool) -> None:
    """Remove what the committer has published; on this machine, where nobody else is at work, all that killed runs left."""
    if not table.files.local:
        for shard in {*shards} & {*table.files.names(f"{FOLDER}/{revision}")}:
            table.files.remove(shard_folder(revision, shard))
        table.files.remove(f"{FOLDER}/{revision}/fragments")
        return
    table.files.remove(FOLDER)
    if killed and table.exists():
        _remove_orphans(table)


def _remove_orphans(table: Table) -> None:
    """Data files of killed ingests: named by Lance, and in no version; or not even finished, and untouched for a while."""
    folder = Path(table.samples_uri) / "data"
    for path in folder.glob(".tmp*"):  # Lance writes here and renames; labelling may be doing so right now
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
    unknown = {path.name for path in folder.glob("*.lance") if _LANCE_NAME.fullmatch(path.name)}
    for version in reversed(table.dataset().versions()):
        if not unknown:
            return
        for fragment in table.dataset(version["version"]).get_fragments():
            unknown -= {file.path for file in fragment.data_files()}
    for name in unknown:
        (folder / name).unlink(missing_ok=True)
