"""Shards → rows and refusals, every shard exactly once.

Two phases. Workers read shards and stage rows at places that follow from the input alone; then one committer decides which rows survive and
publishes refusals, samples and ledger, in this order. A kill leaves staging that the next run uses, and

    before the refusals    nothing to be seen
    before the samples     refusals of shards that are not in the ledger; added once, whoever repeats it
    before the ledger      rows of shards that are not in the ledger; the next run knows them again by shard, key and uid
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mtv_core.data.dedup import CANDIDATES, Fate, decide
from mtv_core.data.sources import ShardRef, SourceConfig, expand
from mtv_core.executor import Executor, Outcome, Progress, silent
from mtv_core.faults import fault_point
from mtv_core.ingest_config import IngestConfig
from mtv_core.ingest_shard import STAGE, ShardJob, SourceError, stage_shard
from mtv_core.report import Reject, RejectClass, StageReport
from mtv_core.store import staging
from mtv_core.store.dataset import explain
from mtv_core.store.ledger import LedgerEntry
from mtv_core.store.staging import Piece, StagedShard, TargetError
from mtv_core.store.table import Table


@dataclass(frozen=True)
class IngestResult:
    """The samples after an ingest."""

    version: int
    rows: int  # in the whole table
    report: StageReport


@dataclass(frozen=True)
class _FragmentJob:
    """Rows that become one fragment."""

    table_uri: str
    revision: str
    ingest_id: str
    pieces: list[Piece]
    storage_options: dict[str, str]


@dataclass
class _Decided:
    """What deduplication made of the staged shards."""

    pieces: list[Piece] = field(default_factory=list)
    duplicates: list[Reject] = field(default_factory=list)
    fates: dict[str, Counter[Fate]] = field(default_factory=dict)  # shard → number of rows of each fate


def run(
    sources: Sequence[SourceConfig],
    table_uri: str,
    config: IngestConfig,
    executor: Executor,
    progress: Progress = silent,
    storage_options: Mapping[str, str] | None = None,
) -> IngestResult:
    """Bring the shards into the table that are not in its ledger yet; of the others only names, sizes and times are looked at.

    Raises:
        FileNotFoundError, ValueError: a source is missing, empty or of no known format; or not one row could be made of all of it.
        OSError: the table cannot be written, or no shard can be read. Nothing half-done shows, and the next run goes on.
    """
    shards = list({shard.uri: shard for source in sources for shard in expand(source, storage_options)}.values())
    table = Table.create_or_open(table_uri, storage_options)
    with _alone(table):
        done = table.ledger.uris()
        pending = [shard for shard in sorted(shards, key=lambda shard: shard.uri) if shard.id not in done]
        killed = staging.left_behind(table)
        report = _bring(pending, table, config, executor, progress) if pending else StageReport()
        if pending or killed:
            staging.clear(table, config.revision(), [shard.id for shard in shards], killed)
    if not table.exists():
        reasons = ", ".join(f"{number} × {reason}" for reason, number in table.rejects.counts(STAGE).items())
        raise ValueError(f"the sources hold not one usable sample ({reasons or 'they are empty'}); the reasons are in {table.rejects.uri}")
    skipped = _rows_of(table, {shard.id for shard in shards} & set(done))
    return IngestResult(table.version, table.num_rows, report + StageReport(rows_skipped=skipped))


def _rows_of(table: Table, shards: set[str]) -> int:
    entries = table.ledger.read().select(["shard", "rows_out"])
    return sum(rows for shard, rows in zip(*entries.to_pydict().values(), strict=True) if shard in shards)


@contextlib.contextmanager
def _alone(table: Table) -> Iterator[None]:
    """Hold the table's ingest lock, which dies with its holder. On an object store there is none: there, the commit looks once more."""
    if not table.files.local:
        yield
        return
    path = Path(table.files.path("_staging/ingest.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise explain(error, table.uri) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another ingest into {table.uri} is running; wait for it to end") from None
        yield


def _bring(pending: list[ShardRef], table: Table, config: IngestConfig, executor: Executor, progress: Progress) -> StageReport:
    revision = config.revision()
    ingest_id = hashlib.sha256("\n".join([revision, *sorted(shard.id for shard in pending)]).encode()).hexdigest()[:16]

    staged, failed = _stage_all(pending, table, config, executor, progress)
    read_shards = [shard for shard in pending if shard.id in staged]
    seen = staging.last_fragment(table)
    decided = _deduplicate(read_shards, table, revision)
    fault_point("ingest.dedup")

    jobs = [
        _FragmentJob(table.uri, revision, ingest_id, pieces, table.storage_options)
        for pieces in _cut(decided.pieces, config.rows_per_fragment)
    ]
    fragments = _write_all(jobs, executor, progress)

    # Rejects, samples, ledger: a row is never missing without a reason, and a shard is never done without its rows.
    rejects = [reject for shard in read_shards for reject in staged[shard.id].rejects] + decided.duplicates
    try:
        table.rejects.remove([shard.uri for shard in read_shards], STAGE)
        table.rejects.append([*rejects, *failed])
        fault_point("ingest.rejects_committed")
        if fragments:
            staging.publish_samples(table, fragments, seen)
        fault_point("ingest.samples_committed")
        entries = [_entry(shard, staged[shard.id], decided.fates[shard.id], ingest_id) for shard in read_shards]
        table.ledger.append(entries)
        fault_point("ingest.ledger_committed")
    except OSError as error:
        raise explain(error, table.uri) from error
    return _report(list(staged.values()), entries, [*rejects, *failed], decided)


def _report(staged: list[StagedShard], entries: list[LedgerEntry], rejects: list[Reject], decided: _Decided) -> StageReport:
    reasons = Counter(f"rejected/{reject.error}" for reject in rejects)
    return StageReport(
        rows_in=sum(entry.rows_in for entry in entries),
        rows_out=sum(entry.rows_out for entry in entries),
        rows_rejected=sum(entry.rows_rejected for entry in entries),
        rows_skipped=sum(fates[Fate.AGAIN] for fates in decided.fates.values()),
        bytes_written=sum(shard.bytes_written for shard in staged),
        seconds=sum(shard.seconds for shard in staged),
        counts={"shards": len(entries), **reasons},
    )


# Phase one: shards → staged rows


def _stage_all(
    pending: list[ShardRef], table: Table, config: IngestConfig, executor: Executor, progress: Progress
) -> tuple[dict[str, StagedShard], list[Reject]]:
    """Staged shards by id, and a refusal of each that could not be read."""
    jobs = [ShardJob(table.uri, shard, config, table.storage_options) for shard in pending]
    staged: dict[str, StagedShard] = {}
    failed: list[Reject] = []
    last: Exception | None = None
    progress(0, len(jobs), "shards read")
    for outcome in executor.map(stage_shard, jobs):
        if outcome.result is not None:
            staged[outcome.item.shard.id] = outcome.result
        elif isinstance(outcome.error, TargetError):
            raise outcome.error
        else:
            last = outcome.error
            failed.append(_failure(outcome, config.revision()))
        progress(len(staged) + len(failed), len(jobs), "shards read")
    if not staged:
        raise OSError(f"none of {len(jobs)} shards could be read; the last one: {last}")
    return staged, failed


def _failure(outcome: Outcome[ShardJob, StagedShard], revision: str) -> Reject:
    """The refusal of a shard that is not in the ledger: the next ingest tries it again, and takes the refusal back if it succeeds."""
    shard = outcome.item.shard
    if outcome.killed:
        kind, error, message = RejectClass.BUG, "WorkerKilled", "reading it killed worker after worker; is compute.memory_limit too low?"
    elif isinstance(outcome.error, SourceError):
        kind, error, message = RejectClass.TRANSIENT, "Unreadable", str(outcome.error)
    else:
        kind, error, message = RejectClass.BUG, type(outcome.error).__name__, str(outcome.error)
    return Reject(
        shard=shard.id,
        key="",
        location=shard.uri,
        stage=STAGE,
        reject_class=kind,
        error=error,
        message=f"{message} (the next ingest tries again)",
        revision=revision,
    )


# Phase two: one committer


def _deduplicate(shards: list[ShardRef], table: Table, revision: str) -> _Decided:
    """Which staged rows are added. Depends on the staged rows and the table, not on who staged them when."""
    decided = _Decided()
    parts = [CANDIDATES.empty_table()]
    for shard in shards:
        index = staging.read_index(table, revision, shard.id)
        columns = {
            **{name: index[name] for name in ("uid", "sha256", "key")},
            "shard": pa.repeat(shard.id, index.num_rows),
            "uri": pa.repeat(shard.uri, index.num_rows),
            "position": pa.array(np.arange(index.num_rows)),
        }
        parts.append(pa.table(columns, schema=CANDIDATES))
    candidates = pa.concat_tables(parts).combine_chunks()
    verdict = decide(candidates, staging.known_rows(table, candidates["sha256"].combine_chunks()))
    start = 0
    for shard, part in zip(shards, parts[1:], strict=True):
        fate = verdict.fate[start : start + part.num_rows]
        decided.fates[shard.id] = Counter({kind: int((fate == kind).sum()) for kind in Fate})
        added = np.flatnonzero(fate == Fate.ADDED)
        if len(added):
            decided.pieces.append(Piece(shard=shard.id, positions=added.tolist()))
        for position in np.flatnonzero(fate == Fate.DUPLICATE).tolist():
            decided.duplicates.append(_duplicate(shard, part.slice(position, 1), verdict.survivor[start + position].as_py(), revision))
        start += part.num_rows
    return decided


def _duplicate(shard: ShardRef, row: pa.Table, survivor: str, revision: str) -> Reject:
    key = row["key"][0].as_py()
    return Reject(
        uid=row["uid"][0].as_py(),
        shard=shard.id,
        key=key,
        location=f"{shard.uri}#{key}",
        stage=STAGE,
        error="Duplicate",
        message=f"the table has this image as {survivor}",
        survivor=survivor,
        revision=revision,
    )


def _cut(pieces: list[Piece], rows_per_fragment: int) -> Iterator[list[Piece]]:
    """Pieces of shards, joined and cut to fragments of so many rows; the last one may be smaller."""
    group: list[Piece] = []
    room = rows_per_fragment
    for piece in pieces:
        positions = piece.positions
        while positions:
            group.append(Piece(shard=piece.shard, positions=positions[:room]))
            room, positions = room - len(positions[:room]), positions[room:]
            if room == 0:
                yield group
                group, room = [], rows_per_fragment
    if group:
        yield group


def write_fragment(job: _FragmentJob) -> list[str]:
    """Write one fragment that nobody sees yet. For workers."""
    return staging.write_fragment(Table.create_or_open(job.table_uri, job.storage_options), job.revision, job.pieces, job.ingest_id)


def _write_all(jobs: list[_FragmentJob], executor: Executor, progress: Progress) -> list[str]:
    """The fragments in the order of the jobs, as JSON."""
    written: dict[int, list[str]] = {}
    place = {id(job): index for index, job in enumerate(jobs)}
    for outcome in executor.map(write_fragment, jobs):
        if outcome.result is None:
            assert outcome.error is not None
            raise outcome.error
        written[place[id(outcome.item)]] = outcome.result
        progress(len(written), len(jobs), "fragments written")
    return [fragment for index in range(len(jobs)) for fragment in written[index]]


def _entry(shard: ShardRef, staged: StagedShard, fates: Counter[Fate], ingest_id: str) -> LedgerEntry:
    refused = sum(1 for reject in staged.rejects if reject.key)
    return LedgerEntry(
        shard=shard.id,
        uri=shard.uri,
        identity=shard.identity,
        size=shard.size,
        rows_in=staged.rows_in,
        rows_out=fates[Fate.ADDED] + fates[Fate.PUBLISHED],
        rows_rejected=refused + fates[Fate.DUPLICATE],
        state=staged.state,
        ingest_id=ingest_id,
    )
