"""What workers of an ingest leave for the committer, at places that follow from the input alone.

    <table>/_staging/ingest/<revision of the configuration>/<shard id>/rows.arrow     rows of the schema SAMPLES, without ingest_id
                                                                     /index.arrow     what deduplication has to know of them
                                                                     /rejects.arrow   its refusals
                                                                     /shard.json     last of all: counts; the shard is staged
                            /fragments/<hash>.json   data files written into the table but not published

Running a piece of work again finds its last file and does nothing, or writes the same again. A data file written just before a kill has no
record; the next ingest, which finds staging left behind, removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import FragmentMetadata
from pydantic import BaseModel, Field, ValidationError

from mtv_core.data.mapped import MappedFile
from mtv_core.data.schema import REJECTS, SAMPLES, caption_hash
from mtv_core.data.stats import IngestStats
from mtv_core.faults import fault_point
from mtv_core.report import Reject
from mtv_core.store import dataset
from mtv_core.store.dataset import data_files, explain, publish_unless_added, quoted, write
from mtv_core.store.locks import Lease
from mtv_core.store.rejects import Selection
from mtv_core.store.table import Table

FOLDER = "_staging/ingest"
ROWS = pa.schema([field for field in SAMPLES if field.name != "ingest_id"])
INDEX = pa.schema(
    [
        *(SAMPLES.field(name) for name in ("uid", "sha256", "key", "phash")),
        pa.field("caption_hash", pa.uint64()),
        pa.field("location", pa.string()),  # where a person finds the sample
    ]
)
_BATCH_ROWS = 256
_BATCH_BYTES = 4 << 20
_ABANDONED_SECONDS = 600.0
_LANCE_NAME = re.compile(r"[01]{24}[0-9a-f]{26}\.lance")  # of data files that Lance named, as opposed to ours


class StagedShard(BaseModel, frozen=True, extra="forbid"):
    """A shard whose rows wait for the committer."""

    shard: str
    rows_in: int
    rows: int
    rejects: int = Field(description="refusals, of samples and of the shard itself")
    refused: int = Field(description="refusals of samples")
    bytes_written: int
    seconds: float
    state: str
    content: str | None
    stats: IngestStats
    found: bool = Field(False, description="it was staged by an earlier run")
    tried: list[str] | None = Field(None, description="keys that were found, where only some samples were asked for")


class Piece(BaseModel, frozen=True, extra="forbid"):
    """Rows of one staged shard."""

    staged: str = Field(description="<revision>/<shard id>")
    positions: list[int]


def revision_of(config: str, reading: str, denied: str, keys: Collection[str] | None) -> str:
    """Names the staging of a configuration's revision, for shards read in one way with one deny-list, whole or some of their samples."""
    document = json.dumps([config, reading, denied, None if keys is None else sorted(keys)])
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def shard_folder(revision: str, shard: str) -> str:
    """Where a shard is staged, relative to the table."""
    return f"{FOLDER}/{revision}/{shard}"


def staged_shard(table: Table, revision: str, shard: str) -> StagedShard | None:
    """The record of a shard that is staged already."""
    try:
        return StagedShard.model_validate_json(table.files.read(f"{shard_folder(revision, shard)}/shard.json"))
    except (FileNotFoundError, ValidationError):  # by another version of MTV: staged anew
        return None


class ShardWriter:
    """Writes the rows and refusals of a shard batch by batch, so that memory does not grow with the shard.

    A thread writes rows while the caller makes the next; two batches of them are held at most.

    Args:
        table: where.
        revision: names the staging.
        shard: its id.
        config: revision of the configuration, which refusals are marked with.
    """

    def __init__(self, table: Table, revision: str, shard: str, config: str) -> None:
        self._files, self._folder, self._config = table.files, shard_folder(revision, shard), config
        self._uri = table.uri
        self._stack = contextlib.ExitStack()
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._refused: list[dict[str, Any]] = []
        self._index: list[dict[str, Any]] = []
        self._writing: Future[None] | None = None
        self.num_rows = self.num_rejects = self.num_refused = 0
        self.bytes_written = 0

    def __enter__(self) -> ShardWriter:
        with self._explained(), contextlib.ExitStack() as opening:  # a half-opened one is closed here, not by the garbage collector
            self._rows = self._opened(opening, "rows", ROWS)
            self._rejects = self._opened(opening, "rejects", REJECTS)
            self._indices = self._opened(opening, "index", INDEX)
            self._thread = opening.enter_context(ThreadPoolExecutor(1, "staging"))  # ends before the files are closed
            self._stack = opening.pop_all()
        return self

    def _opened(self, stack: contextlib.ExitStack, name: str, schema: pa.Schema) -> pa.ipc.RecordBatchStreamWriter:
        file: Any = stack.enter_context(self._files.create(f"{self._folder}/{name}.arrow"))
        if self._files.local:  # Arrow's own file takes the pictures without one more copy
            file = stack.enter_context(pa.OSFile(file.name, "wb"))
        return stack.enter_context(pa.ipc.new_stream(file, schema))

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is not None:
            with contextlib.suppress(OSError):  # what stopped the block is what matters
                self._stack.__exit__(*exception)
            return
        with self._explained(), self._stack:
            self._flush()
            self._flush_rejects()
            self._wait()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TargetError.of(explain(error, self._uri)) from error

    def add(self, row: dict[str, Any], location: str) -> None:
        """Add one row of the schema `ROWS`, found at a location."""
        self._waiting.append(row)
        texts = len(row["caption_raw"]) + sum(len(caption["text"]) for caption in row["captions"])
        self._waiting_bytes += len(row["image"]) + len(row["meta"] or "") + texts
        index = {name: row[name] for name in ("uid", "sha256", "key", "phash")}
        self._index.append({**index, "caption_hash": caption_hash(row["caption"]), "location": location})
        self.num_rows += 1
        self.bytes_written += len(row["image"])
        if len(self._waiting) >= _BATCH_ROWS or self._waiting_bytes >= _BATCH_BYTES:
            self._flush()

    def refuse(self, reject: Reject) -> None:
        """Add one refusal, of a sample or of the shard itself."""
        self._refused.append({**reject.model_dump(mode="json"), "revision": self._config})
        self.num_rejects += 1
        self.num_refused += bool(reject.key)
        if len(self._refused) >= _BATCH_ROWS:
            self._flush_rejects()

    def _flush(self) -> None:
        if self._waiting:
            self._wait()
            self._writing = self._thread.submit(self._write, self._waiting, self._index)
            self._waiting, self._waiting_bytes, self._index = [], 0, []

    def _wait(self) -> None:
        """For the batch that is being written, and for what became of it."""
        if self._writing is not None:
            with self._explained():
                self._writing.result()
            self._writing = None

    def _write(self, rows: list[dict[str, Any]], index: list[dict[str, Any]]) -> None:
        columns = [pa.array([row[field.name] for row in rows], field.type) for field in ROWS]
        self._rows.write_batch(pa.RecordBatch.from_arrays(columns, schema=ROWS))
        self._indices.write_batch(pa.RecordBatch.from_pylist(index, schema=INDEX))

    def _flush_rejects(self) -> None:
        if self._refused:
            with self._explained():
                self._rejects.write_batch(pa.RecordBatch.from_pylist(self._refused, schema=REJECTS))
            self._refused = []

    def finish(self, staged: StagedShard) -> None:
        """Write the record; call it after the block. Only now the shard is staged."""
        with self._explained():
            fault_point("ingest.staged")
            self._files.write(f"{self._folder}/shard.json", staged.model_dump_json().encode())


class TargetError(OSError):
    """The table cannot be written. Unlike a shard that cannot be read, it stops the ingest."""

    @classmethod
    def of(cls, error: OSError) -> TargetError:
        """The same with its errno, by which a full disk is told from a bad moment."""
        return cls(error.errno, error.strerror) if error.errno is not None and error.strerror else cls(str(error))


def read_index(table: Table, revision: str, shard: str) -> pa.Table:
    """What deduplication has to know of the rows of a staged shard (`INDEX`), in order."""
    return _whole(table, f"{shard_folder(revision, shard)}/index.arrow")


def read_rejects(table: Table, revision: str, shard: str) -> pa.Table:
    """The refusals of a staged shard, of the schema REJECTS."""
    return _whole(table, f"{shard_folder(revision, shard)}/rejects.arrow")


def _whole(table: Table, name: str) -> pa.Table:
    with table.files.open(name) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def read_images(table: Table, revision: str, shard: str, positions: Collection[int]) -> dict[int, bytes]:
    """The stored pictures of some rows of a staged shard, by position."""
    rows = _rows(table, [Piece(staged=f"{revision}/{shard}", positions=sorted(positions))], "")
    images = [image for batch in rows for image in batch["image"].to_pylist()]
    return dict(zip(sorted(positions), images, strict=True))


@contextlib.contextmanager
def _batches(table: Table, name: str) -> Iterator[Iterator[pa.RecordBatch]]:
    """What is in a staged file. On this machine it is mapped: to read it costs one more copy of every picture."""
    if not table.files.local:
        with table.files.open(name) as file, pa.ipc.open_stream(file) as reader:
            yield iter(reader)
        return
    mapped = MappedFile(table.files.path(name))
    with mapped.reader() as file, pa.ipc.open_stream(file) as reader:
        yield _let_go(reader, mapped)


def _let_go(reader: Iterable[pa.RecordBatch], mapped: MappedFile) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        yield batch
        mapped.let_go(batch.nbytes)


def _rows(table: Table, pieces: Iterable[Piece], ingest_id: str) -> Iterator[pa.RecordBatch]:
    """The chosen rows of staged shards, complete, one batch in memory at a time."""
    for piece in pieces:
        wanted = np.asarray(piece.positions, np.int64)
        with _batches(table, f"{FOLDER}/{piece.staged}/rows.arrow") as batches:
            start = 0
            for batch in batches:
                inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
                start += batch.num_rows
                if len(inside):
                    chosen = batch if len(inside) == batch.num_rows else batch.take(pa.array(inside))  # a take copies every picture
                    ids = pa.array([ingest_id] * len(inside), pa.string())
                    yield pa.RecordBatch.from_arrays([*chosen.columns, ids], schema=SAMPLES)


def write_fragment(table: Table, pieces: list[Piece], ingest_id: str) -> list[str]:
    """Write the chosen rows as one fragment that nobody sees yet, or find the one a killed run wrote. Returns it as JSON."""
    document = json.dumps([ingest_id, [piece.model_dump() for piece in pieces]])
    record = f"{FOLDER}/fragments/{hashlib.sha256(document.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(FileNotFoundError):
        found: list[str] = json.loads(table.files.read(record))
        if all(table.files.exists(f"samples.lance/data/{name}") for name in data_files(map(FragmentMetadata.from_json, found))):
            return found
    num_rows = sum(len(piece.positions) for piece in pieces)
    reader = pa.RecordBatchReader.from_batches(SAMPLES, _rows(table, pieces, ingest_id))
    try:
        fragments = [json.dumps(fragment.to_json()) for fragment in write(reader, table.samples_uri, num_rows, table.storage_options)]
        fault_point("ingest.fragment_written")
        table.files.write(record, json.dumps(fragments).encode())
    except OSError as error:
        raise TargetError.of(explain(error, table.uri)) from error
    return fragments


def publish_samples(table: Table, fragments: Sequence[str], seen: int | None, lease: Lease) -> int:
    """Make the fragments visible and return the version. Nothing happens to those that are visible already.

    Args:
        table: where.
        fragments: as JSON, in the order of their rows.
        seen: what `last_fragment` said before the known rows were read.
        lease: the right to commit.

    Raises:
        TargetError: the table cannot be written, or somebody else added rows that deduplication has not seen.
        LockLostError: the right to commit was lost.
    """
    lease.check()
    rows = [*map(FragmentMetadata.from_json, fragments)]
    try:
        return int(publish_unless_added(rows, SAMPLES, table.samples_uri, seen, table.storage_options).version)
    except OSError as error:
        raise TargetError.of(explain(error, table.uri)) from error


def last_fragment(table: Table) -> int | None:
    """Highest fragment id of the samples, which every append raises. None if there is no table."""
    return dataset.last_fragment(dataset.open_dataset(table.samples_uri, storage_options=table.storage_options))


def images_of(table: Table, uids: Collection[str]) -> dict[str, bytes]:
    """The stored pictures of some rows of the table, by uid; a few only."""
    if not uids or not table.exists():
        return {}
    rows = table.dataset().to_table(columns=["uid", "image"], filter=f"uid in ({quoted(sorted(uids))})")
    return dict(zip(rows["uid"].to_pylist(), rows["image"].to_pylist(), strict=True))


def rows_by_shard(table: Table, shards: Collection[str]) -> Counter[str]:
    """Rows of the table, by the shard they came from."""
    if not table.exists():
        return Counter()
    names = table.dataset().to_table(columns=["shard"], filter=f"shard in ({quoted(shards)})")["shard"]
    return Counter({pair["values"]: pair["counts"] for pair in names.value_counts().to_pylist()})


def refusals_by_shard(table: Table, shards: Collection[str], stage: str) -> Counter[str]:
    """Refused samples of shards."""
    found: Counter[str] = Counter()
    for batch in table.rejects.select(Selection(stage=stage, shards=sorted(shards)), ["shard", "key"]):
        found.update(batch.filter(pc.not_equal(batch["key"], ""))["shard"].to_pylist())
    return found


def left_behind(table: Table) -> bool:
    """Whether an ingest was killed here, or is at work."""
    return bool(table.files.names(FOLDER))


def clear(table: Table) -> None:
    """Remove all that is staged, and data files that were written and never published. Only while nobody else writes.

    Such files are of killed ingests, and of workers that a run lost: what they had written is written again, under another name.
    """
    table.files.remove(FOLDER)
    if table.exists():
        _remove_orphans(table)


def _remove_orphans(table: Table) -> None:
    """Data files that Lance named, and that are in no version; or that are not even finished, and untouched for a while.

    Usually the latest version names all there are, and one listing of the folder is all this costs.
    """
    folder = "samples.lance/data"
    if table.files.local:
        for path in (Path(table.uri) / folder).glob(".tmp*"):  # Lance writes here and renames; labelling may be doing so right now
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
    unknown = {name for name in table.files.names(folder) if _LANCE_NAME.fullmatch(name)}
    for version in reversed(table.dataset().versions()):
        if not unknown:
            return
        for fragment in table.dataset(version["version"]).get_fragments():
            unknown -= {file.path for file in fragment.data_files()}
    for name in unknown:
        table.files.remove(f"{folder}/{name}")
