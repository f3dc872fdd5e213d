"""One expert on one fragment: the work that is spread over processes.

A row ends in one of three ways. Labelled: its columns and the revision. Refused for good (its picture cannot be read, the expert fails on
it): no label, the revision, and a reject row. Failed for now (memory, network): nothing, so that it stays stale.
"""

from __future__ import annotations

import functools
import io
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from PIL import Image
from transformers.utils import logging

from mtv_core import experts
from mtv_core.data.schema import LABELS, label_schema
from mtv_core.experts.base import Expert
from mtv_core.experts.config import ExpertConfig
from mtv_core.faults import fault_point
from mtv_core.report import Reject, RejectClass, StageReport
from mtv_core.store.labels import StagedLabels
from mtv_core.store.table import Table

_SCAN_ROWS = 256  # rows in memory at once, with their pictures
_MIN_BUGS = 4  # failures from which it is asked whether the expert or the pictures are to blame
_TRANSIENT = (torch.OutOfMemoryError, MemoryError, TimeoutError, ConnectionError)


class ExpertUnavailableError(RuntimeError):
    """The expert cannot be loaded, or fails on everything: no fragment will do better."""


@dataclass(frozen=True, eq=False)
class FragmentJob:
    """What a worker has to know; picklable."""

    table_uri: str
    storage_options: dict[str, str]
    version: int
    fragment_id: int
    expert: str
    config: ExpertConfig
    revision: str
    batch_size: int
    threads: int


@dataclass(frozen=True)
class FragmentResult:
    """A fragment's staged labels, if there are any, and the account of the work."""

    staged: StagedLabels | None
    report: StageReport
    problems: list[str] = field(default_factory=list)
    worker: str = field(default_factory=lambda: f"{os.uname().nodename}:{os.getpid()}")  # the process that did it


@dataclass(frozen=True)
class Failure:
    """Why a row has no label."""

    error: str
    message: str
    reject_class: RejectClass


@functools.lru_cache(maxsize=2)
def loaded(name: str, config: ExpertConfig, revision: str) -> Expert:
    """The expert, loaded once in a process; one of each kind, since a process labels fragments of both in turn."""
    logging.disable_progress_bar()  # of every worker's weights, on the terminal of one person
    try:
        expert = experts.load(name, config)
    except FileNotFoundError as error:
        raise ExpertUnavailableError(
            f"{error}. Labels of revision {revision} need these weights on every worker: restore them, or set label.accept: immediate to "
            "label with the configured ones"
        ) from None
    except ValueError as error:
        raise ExpertUnavailableError(str(error)) from None
    if expert.revision != revision:
        raise ExpertUnavailableError(
            f"the weights at {config.model} are not those of revision {revision} (they give {expert.revision}); restore them, or label "
            "with the configured ones: label.accept: immediate"
        )
    return expert


_loaded = loaded


def label_fragment(job: FragmentJob) -> FragmentResult:
    """Label the stale rows of a fragment and stage the result; labels that are not stale are carried over.

    Raises:
        ExpertUnavailableError: the expert cannot be loaded, or fails on most pictures.
        OSError: the table cannot be read or written.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        return _label_fragment(job, loaded(job.expert, job.config, job.revision), began)
    finally:
        torch.set_num_threads(threads)


def _label_fragment(job: FragmentJob, expert: Expert, began: float) -> FragmentResult:
    table = Table(job.table_uri, job.storage_options)
    columns = ["uid", "shard", "key", "image", "caption", *label_schema(job.expert).names]
    parts: list[pa.RecordBatch] = []
    rejects: list[Reject] = []
    transient: list[Failure] = []
    attempted = bugs = 0
    for rows in table.scan_fragment(job.version, job.fragment_id, columns, _SCAN_ROWS):
        part, num_stale, failures = _label_stale(rows, expert, job)
        parts.append(part)
        attempted += num_stale
        for position, failure in failures.items():
            if failure.reject_class is RejectClass.TRANSIENT:
                transient.append(failure)
            else:
                rejects.append(_reject(rows, position, failure, job))
        bugs += sum(failure.reject_class is RejectClass.BUG for failure in failures.values())
        # Refused for good is for single pictures. A broken GPU or a wrong configuration fails on all, and must not use them up.
        if bugs >= _MIN_BUGS and 2 * bugs > attempted:
            worst = next(failure for failure in failures.values() if failure.reject_class is RejectClass.BUG)
            raise ExpertUnavailableError(
                f"it fails on {bugs} of the first {attempted} pictures of fragment {job.fragment_id}: {worst.message}"
            )
    labelled = attempted - len(rejects) - len(transient)
    staged = None
    if labelled or rejects:
        batch = pa.Table.from_batches(parts, label_schema(job.expert))
        staged = table.stage_labels(job.expert, job.version, job.fragment_id, batch, rejects, job.revision)
        fault_point("label.staged")
    report = StageReport(
        rows_in=attempted,
        rows_out=labelled,
        rows_rejected=len(rejects),
        bytes_written=staged.bytes_written if staged else 0,
        seconds=time.perf_counter() - began,
        counts={f"{job.expert}_fragments": 1, f"{job.expert}_rows": labelled, **({"transient": len(transient)} if transient else {})},
    )
    problems = [f"{len(transient)} rows failed for now: {transient[0].message}"] if transient else []
    return FragmentResult(staged, report, problems)


def _label_stale(rows: pa.RecordBatch, expert: Expert, job: FragmentJob) -> tuple[pa.RecordBatch, int, dict[int, Failure]]:
    """The label columns of some rows in their order, how many were stale, and which of those failed."""
    revisions, ids = rows.column(f"{job.expert}_rev").to_pylist(), rows.column("_rowid")
    stale = [i for i, revision in enumerate(revisions) if revision != job.revision and ids[i].is_valid]  # a deleted row has no id
    labels, failed = label_rows(rows.take(pa.array(stale, pa.int64())), expert, job.batch_size)
    failures = {stale[i]: failure for i, failure in failed.items()}
    # The labels to take from, and which of them each row gets: none, unless it is kept or labelled.
    pieces = [rows.select(LABELS[job.expert].names), labels]
    taken: list[int | None] = [i if revision == job.revision else None for i, revision in enumerate(revisions)]
    for i, position in enumerate(stale):
        if i not in failed:
            taken[position] = rows.num_rows + i
    batch = pa.Table.from_batches(pieces, LABELS[job.expert]).combine_chunks().take(pa.array(taken, pa.int64()))
    refused = {i for i, failure in failures.items() if failure.reject_class is not RejectClass.TRANSIENT}
    written = [job.revision if label is not None or i in refused else None for i, label in enumerate(taken)]
    batch = batch.append_column(f"{job.expert}_rev", pa.array(written, pa.string())).combine_chunks()
    return batch.to_batches()[0], len(stale), failures


def label_rows(rows: pa.RecordBatch, expert: Expert, batch_size: int) -> tuple[pa.RecordBatch, dict[int, Failure]]:
    """Labels of all rows given, whatever labels they have: `LABELS[expert.name]` in their order, null where the expert failed, and why.

    Args:
        rows: with `image` (bytes of a picture), `caption` and the expert's `extra_columns`.
        expert: from `loaded`.
        batch_size: pictures it sees at once.
    """
    schema = LABELS[expert.name]
    pieces: list[pa.RecordBatch] = []
    taken: list[int | None] = [None] * rows.num_rows
    num_labels = 0
    failures: dict[int, Failure] = {}
    for first in range(0, rows.num_rows, batch_size):
        images: dict[int, Image.Image] = {}
        for i in range(first, min(first + batch_size, rows.num_rows)):
            try:
                images[i] = _decode(rows.column("image")[i].as_buffer())
            except Exception as error:
                failures[i] = Failure("UnreadableImage", f"the stored image cannot be read: {error}", RejectClass.DATA)
        captions = [rows.column("caption")[i].as_py() for i in images]
        for positions, outcome in _by_halves(expert, list(images), list(images.values()), captions):
            if isinstance(outcome, Failure):
                failures[positions[0]] = outcome
                continue
            pieces.append(outcome)
            for i in positions:
                taken[i] = num_labels
                num_labels += 1
    labels = pa.Table.from_batches(pieces, schema).combine_chunks().take(pa.array(taken, pa.int64())).combine_chunks()
    return (labels.to_batches() or [pa.RecordBatch.from_pylist([], schema)])[0], failures


def _decode(data: pa.Buffer) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large picture or odd EXIF is no matter here: ingest decided what is stored
        return Image.open(io.BytesIO(data)).convert("RGB")


def _by_halves(
    expert: Expert, positions: Sequence[int], images: Sequence[Image.Image], captions: Sequence[str]
) -> Iterator[tuple[Sequence[int], pa.RecordBatch | Failure]]:
    """Labels of a batch; where it fails, of its halves, down to the picture that is to blame."""
    if not positions:
        return
    try:
        batch = expert(images, captions)
        assert batch.num_rows == len(positions), f"{batch.num_rows} labels of {len(positions)} pictures"
    except Exception as error:
        if len(positions) == 1:
            kind = RejectClass.TRANSIENT if isinstance(error, _TRANSIENT) else RejectClass.BUG
            yield positions, Failure(type(error).__name__, f"{type(error).__name__}: {str(error)[:500]}", kind)
            return
        middle = len(positions) // 2
        yield from _by_halves(expert, positions[:middle], images[:middle], captions[:middle])
        yield from _by_halves(expert, positions[middle:], images[middle:], captions[middle:])
        return
    yield positions, batch


def _reject(rows: pa.RecordBatch, position: int, failure: Failure, job: FragmentJob) -> Reject:
    uid, shard, key = (rows.column(name)[position].as_py() for name in ("uid", "shard", "key"))
    return Reject(
        uid=uid,
        shard=shard,
        key=key,
        stage=job.expert,
        reject_class=failure.reject_class,
        error=failure.error,
        message=failure.message,
        revision=job.revision,
    )
