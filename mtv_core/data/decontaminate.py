"""Evaluation images that training must not see: an index of them, and which candidates and rows of the table show one.

The index of a set lies in the table's folder, one parquet file a shard of the set, at a place that follows from what the shard holds and
how it is looked at. So a set that changes is indexed anew, and one that does not is looked at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mtv_core.data import hamming
from mtv_core.data.files import Files
from mtv_core.data.images import BadImageError, ImageLimits, open_image
from mtv_core.data.sources import ShardRef, SourceConfig, expand, read
from mtv_core.data.sources.config import Columns
from mtv_core.executor import Executor, Progress, SerialExecutor, silent
from mtv_core.report import Reject

if TYPE_CHECKING:
    from mtv_core.data.dedup import Known

FOLDER = "_evaluation"  # in the table's
VERSION = 2  # raise it when images get other perceptual hashes, or others of a set are indexed
THUMBNAIL = 160  # px, long side
INDEX = pa.schema(
    [
        pa.field("id", pa.string()),  # <set>/<key>
        pa.field("sha256", pa.string()),
        pa.field("phash", pa.uint64()),
        pa.field("thumbnail", pa.binary()),  # JPEG
    ]
)
_PROBLEMS = b"mtv.problems"
_MAX_PROBLEMS = 20
_BATCH_ROWS = 512
_LOOKED_AT = 20_000  # images that are compared beyond the threshold


@dataclass(frozen=True)
class IndexJob:
    """One shard of an evaluation set to index."""

    table_uri: str
    shard: ShardRef
    limits: ImageLimits
    max_bytes: int
    storage_options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Where the index of this shard is, relative to the table."""
        shard = self.shard
        how = [
            VERSION,
            shard.source,
            shard.id,
            shard.format,
            shard.columns.model_dump(),
            [str(x) for x in astuple(self.limits)],
            self.max_bytes,
        ]
        return f"{FOLDER}/{hashlib.sha256(json.dumps(how).encode()).hexdigest()[:32]}.parquet"


def jobs(
    sets: Sequence[SourceConfig], table_uri: str, limits: ImageLimits, max_bytes: int, storage_options: Mapping[str, str] | None = None
) -> list[IndexJob]:
    """What has to be indexed, done or not.

    Raises:
        FileNotFoundError, ValueError: a set is missing or of no known format.
    """
    wide = replace(limits, min_side=1, max_aspect=math.inf)  # what training refuses may still be an evaluation image
    options = dict(storage_options or {})
    pictures = [source.model_copy(update={"columns": _without_captions(source.columns)}) for source in sets]
    return [IndexJob(table_uri, shard, wide, max_bytes, options) for source in pictures for shard in expand(source, storage_options)]


def _without_captions(columns: Columns) -> Columns:
    return Columns(image=columns.image, key=columns.key, captions=(), synthetic=())


def index_shard(job: IndexJob) -> bool:
    """Index one shard of a set; returns whether it had to be done. For workers. A kill leaves nothing, or all of it.

    Raises:
        ValueError: the shard is damaged: what cannot be read cannot be kept out.
        OSError: it cannot be read now, or the table cannot be written.
    """
    files = Files(job.table_uri, job.storage_options)
    if files.exists(job.name):
        return False
    problems: list[str] = []
    with files.create(job.name) as file, pq.ParquetWriter(file, INDEX) as writer:
        rows: list[dict[str, Any]] = []
        for row in _rows(job, problems):
            rows.append(row)
            if len(rows) == _BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema=INDEX))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=INDEX))
        said = [*problems[:_MAX_PROBLEMS], f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else problems
        writer.add_key_value_metadata({_PROBLEMS.decode(): json.dumps(said)})
    return True


def _rows(job: IndexJob, problems: list[str]) -> Iterator[dict[str, Any]]:
    for raw in read(job.shard, job.max_bytes, job.storage_options):
        if isinstance(raw, Reject):
            if not raw.key:
                raise ValueError(
                    f"the evaluation set {job.shard.source!r} is damaged: {job.shard.uri}: {raw.message}. What cannot be read cannot "
                    "be kept out of training: repair the file, or take the set out of ingest.decontaminate.sets"
                )
            problems.append(_problem(job, raw.key, raw.message))
        elif raw.image is None:
            reason = raw.problem[1] if raw.problem else "larger than ingest.max_bytes" if raw.too_large else "no image"
            problems.append(_problem(job, raw.key, reason))
        else:  # whatever is wrong with its captions or its key
            try:
                stored = open_image(raw.image, job.limits).store()
            except BadImageError as error:
                problems.append(_problem(job, raw.key, str(error)))
                continue
            name, sha256 = f"{job.shard.source}/{raw.key}", hashlib.sha256(raw.image).hexdigest()
            yield {"id": name, "sha256": sha256, "phash": stored.phash, "thumbnail": thumbnail(stored.jpeg)}


def _problem(job: IndexJob, key: str, reason: str) -> str:
    return f"{job.shard.source}/{key}: {reason}; this evaluation image cannot be kept out of training"


def thumbnail(jpeg: bytes) -> bytes:
    """A small JPEG of a stored picture."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(jpeg)) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@dataclass(frozen=True)
class EvaluationIndex:
    """E images of evaluation sets, sorted by id."""

    ids: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # [E]
    sha256: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))  # [E]
    phash: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))  # [E]
    problems: list[str] = field(default_factory=list)  # images that could not be read, and so cannot be kept out
    new: bool = False  # some of it was indexed just now, so the table's rows have not been compared with it
    files: Files | None = None
    places: list[tuple[str, int]] = field(default_factory=list)  # [E] index file and row of each

    def thumbnails(self, images: Sequence[int]) -> dict[int, bytes]:
        """Small JPEGs of some images."""
        found: dict[int, bytes] = {}
        for name in sorted({self.places[image][0] for image in images}):
            assert self.files is not None
            with self.files.open(name) as file:
                column = pq.read_table(file, columns=["thumbnail"])[0]
            found |= {image: column[self.places[image][1]].as_py() for image in images if self.places[image][0] == name}
        return found


def build(todo: Sequence[IndexJob], executor: Executor | None = None, progress: Progress = silent) -> EvaluationIndex:
    """Index what is not indexed yet, on workers, and read all of it.

    Raises:
        ValueError, OSError: a shard of a set cannot be read.
    """
    if not todo:
        return EvaluationIndex()
    new = False
    progress(0, len(todo), "shards of evaluation sets")
    for done, outcome in enumerate((executor or SerialExecutor()).map(index_shard, todo), 1):
        if outcome.error is not None:
            raise outcome.error
        new |= bool(outcome.result)
        progress(done, len(todo), "shards of evaluation sets")
    files = Files(todo[0].table_uri, todo[0].storage_options)
    tables: list[pa.Table] = []
    problems: list[str] = []
    places: list[tuple[str, int]] = []
    for job in todo:
        with files.open(job.name) as file, pq.ParquetFile(file) as index:
            tables.append(table := index.read(columns=["id", "sha256", "phash"]))
            problems += json.loads(index.metadata.metadata[_PROBLEMS])
        places += [(job.name, row) for row in range(table.num_rows)]
    rows = pa.concat_tables(tables)
    order = pc.sort_indices(rows, sort_keys=[("id", "ascending"), ("sha256", "ascending")])
    rows = rows.take(order).combine_chunks()
    phash = rows["phash"].to_numpy()
    ids, sha256 = (pa.concat_arrays(rows[name].chunks) if rows.num_rows else pa.array([], pa.string()) for name in ("id", "sha256"))
    return EvaluationIndex(ids, sha256, phash, problems, new, files, [places[row] for row in order.to_pylist()])


@dataclass(frozen=True)
class Pair:
    """A candidate and the evaluation image it is nearest to."""

    candidate: int  # place in what was compared
    evaluation: int  # place in the index
    distance: int  # bits
    leak: bool  # within the threshold


@dataclass(frozen=True)
class Comparison:
    """What R images have to do with an index."""

    index: EvaluationIndex
    threshold: int | None
    nearest: NDArray[np.int64]  # [R] place in the index, −1: none within the threshold and the margin
    distance: NDArray[np.int8]  # [R] bits, 0 for the same bytes

    @property
    def leaked(self) -> NDArray[np.bool_]:
        """[R] which of them leak."""
        return (self.nearest >= 0) & (self.distance <= (self.threshold or 0))

    def leaks(self) -> pa.Array:
        """[R] ids of the evaluation images that leak, null for none: what `dedup.decide` takes."""
        return self.index.ids.take(pa.array(self.nearest, mask=~self.leaked))

    def pairs(self, number: int, names: pa.Array) -> list[Pair]:
        """Pairs to look at: of every distance the same number, as far as there are any, so that both sides of the threshold are seen.

        The same whatever the order of the images: of equally distant ones by the id of the evaluation image, each of which is there once a
        distance, then by name.

        Args:
            number: at most.
            names: [R] uids.
        """
        chosen: dict[int, list[int]] = {}
        rows = np.flatnonzero(self.nearest >= 0)
        uids = names.take(pa.array(rows)).to_pylist()
        seen: set[tuple[int, int]] = set()
        for _, _, row in sorted(zip(self.nearest[rows].tolist(), uids, rows.tolist(), strict=True)):
            key = (int(self.distance[row]), int(self.nearest[row]))
            if key not in seen:
                seen.add(key)
                chosen.setdefault(key[0], []).append(row)
        turns = sorted((turn, distance, row) for distance, of in chosen.items() for turn, row in enumerate(of))[:number]
        turns.sort(key=lambda one: (one[1], one[0]))
        return [Pair(row, int(self.nearest[row]), distance, bool(self.leaked[row])) for _, distance, row in turns]


def compare(sha256: pa.Array, phash: NDArray[np.uint64], index: EvaluationIndex, threshold: int | None, margin: int = 0) -> Comparison:
    """Find the evaluation image that each image is nearest to: the same bytes, else the nearest hash, of equally near ones the first by id.

    Args:
        sha256: [R] of the images as received.
        phash: [R]
        index: what not to show.
        threshold: bits within which two images are the same; None: only the same bytes.
        margin: bits beyond it that some images are looked at with, for a person to see.
    """
    nearest, distance = np.full(len(phash), -1, np.int64), np.full(len(phash), -1, np.int8)
    if threshold is not None:
        hashes, where = np.unique(phash, return_inverse=True)
        theirs = np.flatnonzero(hamming.usable(index.phash))
        of_hash, bits = np.full(len(hashes), -1, np.int64), np.full(len(hashes), -1, np.int8)
        for reach in (threshold, threshold + margin) if margin else (threshold,):
            rest = np.flatnonzero((of_hash < 0) & hamming.usable(hashes))
            if reach > threshold:  # only to be looked at, and the wider the search the dearer: some of them, by chance but always the same
                rest = rest[np.argsort(hamming.scattered(hashes[rest]))[:_LOOKED_AT]]
            found, bits[rest] = hamming.nearest(hashes[rest], index.phash[theirs], reach)
            of_hash[rest[found >= 0]] = theirs[found[found >= 0]]
        nearest, distance = of_hash[where], bits[where]
    same = pc.fill_null(pc.index_in(sha256, value_set=index.sha256), -1).to_numpy(zero_copy_only=False)
    return Comparison(index, threshold, np.where(same >= 0, same, nearest), np.where(same >= 0, 0, distance).astype(np.int8))


@dataclass(frozen=True)
class TableLeaks:
    """Rows of the table that show evaluation images; `mtv forget` takes their uids."""

    uids: list[str]
    ids: list[str]  # of the evaluation images
    distance: list[int]


def leaks_in_table(known: Known, index: EvaluationIndex, threshold: int | None) -> TableLeaks:
    """The rows of the table that show an evaluation image, sorted by row. `known.rows` has to hold those with an `sha256` of the index."""
    none = pa.nulls(len(known.hashes), pa.string())
    found = compare(none, known.hashes, index, threshold)
    nearest, distance = found.nearest, found.distance
    same = pc.fill_null(pc.index_in(known.rows["sha256"], value_set=index.sha256), -1).to_numpy()
    rows = known.rows["row"].to_numpy()[same >= 0]
    nearest[rows], distance[rows] = same[same >= 0], 0
    leaked = np.flatnonzero(nearest >= 0)
    uids = known.details(leaked)["uid"].to_pylist() if len(leaked) else []
    return TableLeaks(uids, index.ids.take(pa.array(nearest[leaked])).to_pylist(), distance[leaked].tolist())
