"""One expert on one fragment: the work that is spread over processes.

A row ends in one of three ways. Labelled: its columns and the revision. Refused for good (its picture cannot be read, the expert fails on
it): no label, the revision, and a reject row. Failed for now (memory, network): nothing, so that it stays stale.
"""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from transformers.utils import logging

from mtv_core import experts
from mtv_core.data.schema import LABELS, label_schema
from mtv_core.experts.base import Expert
from mtv_core.experts.config import ExpertConfig
from mtv_core.faults import fault_point
from mtv_core.labelling_engine import Engine, Labelled
from mtv_core.labelling_failures import BatchSize, Evidence, ExpertUnavailableError, Failure, SickMachineError
from mtv_core.report import Reject, RejectClass, StageReport
from mtv_core.store.labels import StagedLabels
from mtv_core.store.table import Table

__all__ = ["ExpertUnavailableError", "Failure", "FragmentJob", "FragmentResult", "label_fragment", "label_rows", "loaded"]

_SCAN_ROWS = 256  # rows in memory at once, with their pictures
_BRAKE_SECONDS = 5.0  # before a sick machine takes the next fragment from healthy ones


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


@functools.lru_cache(maxsize=2)
def loaded(name: str, config: ExpertConfig, revision: str) -> Expert:
    """The expert, loaded once in a process; one of each kind, since a process labels fragments of both in turn."""
    logging.disable_progress_bar()  # of every worker's weights, on the terminal of one person
    try:
        expert = experts.load(name, config)
    except FileNotFoundError as error:
        raise ExpertUnavailableError(
            f"{error}. Labels of revision {revision} need these weights on every worker. If they are those of label.{name}.model, complete "
            "them or name others; if they are those the table accepted, restore them, or set label.accept: immediate to label with the "
            "configured ones"
        ) from None
    except ValueError as error:
        raise ExpertUnavailableError(str(error)) from None
    if expert.revision != revision:
        raise ExpertUnavailableError(
            f"the weights at {config.model} are not those of revision {revision} (they give {expert.revision}); restore them, or label "
            "with the configured ones: label.accept: immediate"
        )
    return expert


@dataclass
class _Experience:
    """What a process has learnt of an expert, over fragments."""

    size: BatchSize
    evidence: Evidence


_experiences: weakref.WeakKeyDictionary[Expert, _Experience] = weakref.WeakKeyDictionary()


def _experience(expert: Expert, batch_size: int) -> _Experience:
    known = _experiences.get(expert)
    if known is None or known.size.limit != batch_size:
        known = _experiences[expert] = _Experience(BatchSize(batch_size), known.evidence if known else Evidence())
    return known


def label_fragment(job: FragmentJob) -> FragmentResult:
    """Label the stale rows of a fragment and stage the result; labels that are not stale are carried over.

    Raises:
        ExpertUnavailableError: the expert cannot be loaded, or fails on most pictures.
        OSError: the table cannot be read or written, or the device under the expert fails (`SickMachineError`).
    """
    began = time.perf_counter()
    expert = loaded(job.expert, job.config, job.revision)
    experience = _experience(expert, -(-job.batch_size // job.threads))
    try:
        with Engine(expert, experience.size, job.threads) as engine:
            return _Fragment(job, expert, engine, experience.evidence).label(began)
    except SickMachineError:
        time.sleep(_BRAKE_SECONDS)
        raise


class _Fragment:
    """A fragment's way from rows to a staged file: rows are read, labelled and written at the same time."""

    def __init__(self, job: FragmentJob, expert: Expert, engine: Engine, evidence: Evidence) -> None:
        self.job, self.expert, self.engine, self.evidence = job, expert, engine, evidence
        self.table = Table(job.table_uri, job.storage_options)
        self.rejects: list[Reject] = []
        self.transient: list[Failure] = []
        self.attempted = self.bugs = 0
        self.counts: Counter[str] = Counter()

    def label(self, began: float) -> FragmentResult:
        """All of it."""
        job = self.job
        with self.table.label_writer(job.expert, job.version, job.fragment_id, job.revision) as writer:
            for part in self._parts():
                writer.write(part)
            labelled = self.attempted - len(self.rejects) - len(self.transient)
            staged = writer.finish(self.rejects) if labelled or self.rejects else None
        if staged:
            fault_point("label.staged")
        self.counts.update({f"{job.expert}_fragments": 1, f"{job.expert}_rows": labelled})
        if self.transient:
            self.counts["transient"] = len(self.transient)
        report = StageReport(
            rows_in=self.attempted,
            rows_out=labelled,
            rows_rejected=len(self.rejects),
            bytes_written=staged.bytes_written if staged else 0,
            seconds=time.perf_counter() - began,
            counts=dict(self.counts),
        )
        problems = [f"{len(self.transient)} rows failed for now: {self.transient[0].message}"] if self.transient else []
        return FragmentResult(staged, report, problems)

    def _parts(self) -> Iterator[pa.RecordBatch]:
        """The label columns of the fragment's rows in their order, piece by piece."""
        waiting: deque[tuple[pa.RecordBatch, list[int]]] = deque()

        def stale_rows() -> Iterator[pa.RecordBatch]:
            columns = [
                "uid",
                "shard",
                "key",
                "image",
                "width",
                "height",
                "caption",
                *self.expert.extra_columns,
                *label_schema(self.job.expert).names,
            ]
            for rows in self.table.scan_fragment(self.job.version, self.job.fragment_id, list(dict.fromkeys(columns)), _SCAN_ROWS):
                revisions, ids = rows.column(f"{self.job.expert}_rev").to_pylist(), rows.column("_rowid")
                # A deleted row has no id.
                stale = [i for i, revision in enumerate(revisions) if revision != self.job.revision and ids[i].is_valid]
                waiting.append((rows, stale))
                yield rows if len(stale) == rows.num_rows else rows.take(pa.array(stale, pa.int64()))

        for labelled in self.engine.label(stale_rows()):
            yield self._part(*waiting.popleft(), labelled)

    def _part(self, rows: pa.RecordBatch, stale: list[int], labelled: Labelled) -> pa.RecordBatch:
        """Old labels and new ones together; takes account of what failed."""
        schema = LABELS[self.job.expert]
        failures = {stale[i]: failure for i, failure in labelled.failures.items()}
        self.counts.update(labelled.counts)
        self._account(rows, len(stale), failures)
        # Which label each row gets, of the old ones and then the new: none, unless it is kept or labelled.
        revisions = rows.column(f"{self.job.expert}_rev").to_pylist()
        taken: list[int | None] = [i if revision == self.job.revision else None for i, revision in enumerate(revisions)]
        for number, i in enumerate(stale):
            taken[i] = None if i in failures else rows.num_rows + number
        refused = {i for i, failure in failures.items() if failure.reject_class is not RejectClass.TRANSIENT}
        written = [self.job.revision if label is not None or i in refused else None for i, label in enumerate(taken)]
        if len(stale) == rows.num_rows:
            columns = labelled.labels.columns
        else:
            both = pa.Table.from_batches([rows.select(schema.names), labelled.labels], schema).combine_chunks()
            columns = [column.combine_chunks() for column in both.take(pa.array(taken, pa.int64())).columns]
        return pa.RecordBatch.from_arrays([*columns, pa.array(written, pa.string())], schema=label_schema(self.job.expert))

    def _account(self, rows: pa.RecordBatch, num_stale: int, failures: dict[int, Failure]) -> None:
        self.attempted += num_stale
        bugs = [failure for failure in failures.values() if failure.reject_class is RejectClass.BUG]
        self.bugs += len(bugs)
        for i, failure in failures.items():
            if failure.reject_class is RejectClass.TRANSIENT:
                self.transient.append(failure)
            else:
                self.rejects.append(_reject(rows, i, failure, self.job))
        where = f"fragment {self.job.fragment_id}"
        self.evidence.check(where, self.bugs, self.attempted, len(bugs), num_stale, next(iter(bugs), None))


def label_rows(rows: pa.RecordBatch, expert: Expert, batch_size: int) -> tuple[pa.RecordBatch, dict[int, Failure]]:
    """Labels of all rows given, whatever labels they have: `LABELS[expert.name]` in their order, null where the expert failed, and why.

    Args:
        rows: with `image` (bytes of a picture), `caption` and the expert's `extra_columns`.
        expert: from `loaded`.
        batch_size: pictures it sees at once.

    Raises:
        ExpertUnavailableError: the rows lack the phrases that the expert is configured to take.
        OSError: the device fails under the expert.
    """
    with Engine(expert, BatchSize(batch_size)) as engine:
        [labelled] = engine.label([rows])
    return labelled.labels, labelled.failures


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
