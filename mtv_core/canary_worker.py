"""Some rows labelled aside, and their old and new labels compared: the work that is spread over processes. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from mtv_core.canary_rows import Row, compare, compare_others, has_label
from mtv_core.data.schema import LABELS
from mtv_core.experts.base import Expert
from mtv_core.experts.config import ExpertConfig
from mtv_core.labelling_failures import Failure
from mtv_core.labelling_worker import label_rows, loaded
from mtv_core.store.view import View


@dataclass(frozen=True, eq=False)
class CanaryJob:
    """What a worker has to know; picklable."""

    table_uri: str
    storage_options: dict[str, str]
    version: int
    positions: tuple[int, ...]  # of the rows in this version
    expert: str
    config: ExpertConfig  # the new one
    revision: str
    accepted: str  # revision of stored labels that count as old ones
    old: ExpertConfig | None  # makes old labels where none are stored; None: the accepted labels were imported
    batch_size: int
    threads: int


@dataclass(frozen=True)
class CanaryPart:
    """Rows in the order of the job, and their labels, from which pictures are drawn; null where there is none."""

    rows: list[Row]
    old: pa.RecordBatch = field(repr=False)
    new: pa.RecordBatch = field(repr=False)


def label_aside(job: CanaryJob) -> CanaryPart:
    """Label rows with the new expert, find or make their old labels, and compare.

    Raises:
        ExpertUnavailableError: an expert cannot be loaded.
        OSError: the table cannot be read.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        return _label_aside(job)
    finally:
        torch.set_num_threads(threads)


def _label_aside(job: CanaryJob) -> CanaryPart:
    view = View(job.table_uri, job.version, job.storage_options)
    expert = loaded(job.expert, job.config, job.revision)
    new, failures = label_rows(_read(view, job.positions, expert), expert, job.batch_size)
    old, origins = _old(view, job)
    before, after = old.to_pylist(), new.to_pylist()
    uids = view.take(job.positions, ["uid"])["uid"].to_pylist()
    rows = []
    for i, (uid, position) in enumerate(zip(uids, job.positions, strict=True)):
        failure = failures.get(i)
        row = Row(uid, position, origins[i])
        if failure is None:
            compare(row, job.expert, before[i] if has_label(job.expert, before[i]) else None, after[i])
        else:
            row.failure, row.kind, row.message = failure.error, failure.reject_class.value, failure.message
            row.said = f"failed: {failure.message}"
        rows.append(row)
    compare_others(rows, job.expert, before, after)
    return CanaryPart(rows, old, new)


def _read(view: View, positions: Sequence[int], expert: Expert) -> pa.RecordBatch:
    """What an expert has to see of rows."""
    columns = dict.fromkeys(["image", "caption", *expert.extra_columns])
    return view.take(positions, list(columns)).combine_chunks().to_batches()[0]


def _old(view: View, job: CanaryJob) -> tuple[pa.RecordBatch, list[str]]:
    """Old labels of the rows in their order, and where each is from: 'stored', 'run', 'refused' (the old expert fails too), 'none'."""
    schema, column = LABELS[job.expert], f"{job.expert}_rev"
    stored = view.take(job.positions, [*schema.names, column])
    missing = [i for i, revision in enumerate(stored[column].to_pylist()) if revision != job.accepted]
    labels: list[dict[str, Any] | None] = stored.select(schema.names).to_pylist()
    origins = ["stored" if has_label(job.expert, label) else "refused" for label in labels]
    made: dict[int, dict[str, Any]] = {}
    failures: dict[int, Failure] = {}
    if missing and job.old is not None:
        expert = loaded(job.expert, job.old, job.accepted)
        batch, failures = label_rows(_read(view, [job.positions[i] for i in missing], expert), expert, job.batch_size)
        made = dict(enumerate(batch.to_pylist()))
    for number, i in enumerate(missing):
        labels[i] = made.get(number)
        origins[i] = "none" if job.old is None else "refused" if number in failures else "run"
    empty = dict.fromkeys(schema.names)
    return pa.RecordBatch.from_pylist([label or empty for label in labels], schema), origins
