"""Shards → rows and refusals, every shard exactly once.

Two phases. Workers read shards and stage rows at places that follow from the input alone (`ingest_shard`); then one committer decides which
rows survive and publishes refusals, samples and ledger, in this order (`ingest_commit`). Several ingests may be at work on one table: they
stage side by side and commit one after the other. A kill leaves staging that the next run uses.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mtv_core import ingest_report
from mtv_core.budget import BudgetExceededError
from mtv_core.data.decontaminate import EvaluationIndex
from mtv_core.data.fingerprint import Fingerprint
from mtv_core.data.samples import STAGE
from mtv_core.data.sources import ShardRef, SourceConfig, expand, read
from mtv_core.data.stats import IngestStats
from mtv_core.executor import Executor, Outcome, Progress, Rate, silent
from mtv_core.ingest_commit import Commit, Committed
from mtv_core.ingest_config import IngestConfig
from mtv_core.ingest_decide import evaluation_index, leaks_of
from mtv_core.ingest_shard import ShardJob, SourceError, stage_shard
from mtv_core.report import Reject, RejectClass, StageReport
from mtv_core.store import locks, staging
from mtv_core.store.denylist import Denylist
from mtv_core.store.ledger import BY_CONTENT, LedgerEntry
from mtv_core.store.preflight import check_store
from mtv_core.store.staging import StagedShard, TargetError
from mtv_core.store.table import Table


@dataclass(frozen=True)
class IngestResult:
    """The samples after an ingest."""

    version: int
    rows: int  # in the whole table
    report: StageReport
    notes: list[str] = field(default_factory=list)  # what a person should know: shards that changed, leaks in the table, …
    files: dict[str, str] = field(default_factory=dict)  # name → URI of the reports


@dataclass
class _Work:
    """What one run has to do."""

    table: Table
    config: IngestConfig
    executor: Executor
    progress: Progress
    shards: list[ShardRef]
    keys: Mapping[str, frozenset[str]] | None = None  # shard id → samples to try again; None: all of each shard
    replaces: dict[str, LedgerEntry] = field(default_factory=dict)  # shard id → what was behind its URI before
    denied: str = ""  # stands for the deny-list, which does not change while somebody writes
    alike: Collection[str] = ()  # ids of shards whose pictures look alike and are not compared

    def job(self, shard: ShardRef) -> ShardJob:
        keys = None if self.keys is None else self.keys[shard.id]
        return ShardJob(self.table.uri, shard, self.config, self.table.storage_options, keys, self.denied)


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
        FileNotFoundError, ValueError: a source is missing, empty or of no known format; not one row could be made of all of it; or more
            failed than the budget allows.
        OSError: the table cannot be written, or no shard can be read. Nothing half-done shows, and the next run goes on.
    """
    found, alike = _expand(sources, storage_options)
    table = Table.create_or_open(table_uri, storage_options)
    check_store(table.uri, table.storage_options)
    with locks.writing(table, "ingest") as lease:
        known = table.ledger.latest()
        pending = [shard for shard in found if shard.uri not in known or not known[shard.uri].is_of(shard)]
        if config.verify == "content":
            missing = {shard.id for shard in pending}
            others = [shard for shard in found if shard.id not in missing]
            pending += _changed_unseen(others, known, table, config.max_bytes, executor, progress)
        replaces = {shard.id: known[shard.uri] for shard in pending if shard.uri in known}
        killed = staging.left_behind(table)
        work = _Work(
            table,
            config,
            executor,
            progress,
            sorted(pending, key=lambda shard: shard.uri),
            replaces=replaces,
            denied=_digest(table),
            alike=alike,
        )
        evaluation = evaluation_index(table, config, executor, progress)
        late = leaks_of(table, config, evaluation)
        committed = _bring(work, evaluation, late) if pending else Committed(notes=late)
        ingest_report.finish(table, config)
        _tidy(table, lease, killed or bool(pending))
    known = table.ledger.latest()
    skipped = sum(known[shard.uri].rows_out for shard in found if shard.uri in known and known[shard.uri].shard not in committed.shards)
    return _result(table, committed, StageReport(rows_skipped=skipped))


def retry(
    sources: Sequence[SourceConfig],
    table_uri: str,
    config: IngestConfig,
    executor: Executor,
    *,
    reasons: Collection[str] | None = None,
    keys: Collection[str] | None = None,
    progress: Progress = silent,
    storage_options: Mapping[str, str] | None = None,
) -> IngestResult:
    """Try refused samples again, and only those: after a fix, or with other limits. Their shards are read, their rows added.

    A refusal that is now a row is taken back; one that is refused again is replaced, and counts one attempt more.

    Args:
        sources: where the shards are; those that the table does not know, or that changed since, are left to `run`.
        table_uri: which table.
        config: with the limits that hold now.
        executor: where the work is done.
        reasons: names of errors to try again; None: all of them, but for duplicates and what was taken down.
        keys: of samples to try again; None: all.
        progress: told how far it is.
        storage_options: of table and sources.

    Raises:
        ValueError: no refusal meets the selection, or none of its shards is among the sources as they are now.
        OSError: as `run`.
    """
    table = Table.open(table_uri, storage_options)
    check_store(table.uri, table.storage_options)
    chosen = table.rejects.samples_to_retry(STAGE, reasons, keys)
    if not chosen:
        raise ValueError(f"no refusal of {table.uri} is meant; `mtv failures` lists them by reason")
    with locks.writing(table, "retry") as lease:
        known = table.ledger.latest()
        found, alike = _expand(sources, storage_options)
        shards = [_as_known(shard, known[shard.uri]) for shard in found if shard.uri in known and known[shard.uri].is_of(shard)]
        shards = [shard for shard in shards if shard.id in chosen]
        if not shards:
            raise ValueError(
                f"none of the {len(chosen)} shards with such refusals is among the sources as it was; "
                "if they changed, `mtv ingest` reads them again"
            )
        work = _Work(
            table, config, executor, progress, shards, {shard.id: chosen[shard.id] for shard in shards}, denied=_digest(table), alike=alike
        )
        committed = _bring(work, evaluation_index(table, config, executor, progress))
        _tidy(table, lease, True)
    left = sum(len(names) for shard, names in chosen.items() if shard not in {shard.id for shard in shards})
    if left:
        committed.notes.append(f"{left} refusals are of shards that are not among the sources, or changed since; `mtv ingest` reads those")
    return _result(table, committed, StageReport())


def _expand(sources: Sequence[SourceConfig], storage_options: Mapping[str, str] | None) -> tuple[list[ShardRef], set[str]]:
    """The shards, each once, by URI; and the ids of those whose pictures are not compared with others."""
    found: dict[str, ShardRef] = {}
    alike: set[str] = set()
    for source in sources:
        for shard in expand(source, storage_options):
            other = found.setdefault(shard.uri, shard)
            if other.reading != shard.reading:
                raise ValueError(
                    f"two sources name {shard.uri}, as {other.format} and as {shard.format}, or with other columns: a shard is read in one "
                    "way. Name all captions in one source; the first is the one that counts"
                )
            alike |= set() if source.near_duplicates else {shard.id}
    return [found[uri] for uri in sorted(found)], alike


def _as_known(shard: ShardRef, entry: LedgerEntry) -> ShardRef:
    """A shard under the id it has in the ledger, which a check of its content may have made."""
    return replace(shard, identity=entry.identity)


def _digest(table: Table) -> str:
    return hashlib.sha256(b"".join(entries for _, entries in Denylist.load(table).lists)).hexdigest()[:16]


def _tidy(table: Table, lease: locks.Lease, anything: bool) -> None:
    """Remove what is staged, if nobody else is at work; else the last one to leave does."""
    if not anything:
        return
    with locks.alone(lease) as alone:
        if alone:
            staging.clear(table)


def _result(table: Table, committed: Committed, more: StageReport) -> IngestResult:
    if not table.exists():
        reasons = ", ".join(f"{number} × {reason}" for reason, number in table.rejects.counts(STAGE).items())
        raise ValueError(f"the sources hold not one usable sample ({reasons or 'they are empty'}); the reasons are in {table.rejects.uri}")
    return IngestResult(table.version, table.num_rows, committed.report + more, committed.notes, committed.files)


def _changed_unseen(
    shards: Sequence[ShardRef], known: Mapping[str, LedgerEntry], table: Table, max_bytes: int, executor: Executor, progress: Progress
) -> list[ShardRef]:
    """Shards whose bytes are not those that were read, although size and time are. Each is read once more for it.

    Those that an earlier version of MTV read are not compared: it took no hash.
    """
    jobs = [HashJob(shard, max_bytes, table.storage_options) for shard in shards if known[shard.uri].content]
    changed = []
    for done, outcome in enumerate(executor.map(hash_shard, jobs), 1):
        if outcome.result is None:
            raise outcome.error or RuntimeError("a worker was lost")
        if outcome.result != known[outcome.item.shard.uri].content:
            identity = f"{outcome.item.shard.identity}{BY_CONTENT}{outcome.result}"
            changed.append(replace(outcome.item.shard, identity=identity))
        progress(done, len(jobs), "shards compared")
    return changed


@dataclass(frozen=True)
class HashJob:
    """One shard to compare with what it was."""

    shard: ShardRef
    max_bytes: int
    storage_options: dict[str, str]


def hash_shard(job: HashJob) -> str:
    """The fingerprint of a shard as it is now. For workers."""
    content = Fingerprint()
    for found in read(job.shard, job.max_bytes, job.storage_options):
        content.add(found)
    return content.value


def _bring(work: _Work, evaluation: EvaluationIndex, notes: Sequence[str] = ()) -> Committed:
    began = time.monotonic()
    staged, failed = _stage_all(work)
    commit = Commit(work.table, work.config, work.executor, evaluation, work.progress, retrying=work.keys is not None, alike=work.alike)
    committed = commit.run(
        {shard: (work.job(shard), staged[shard.id]) for shard in work.shards if shard.id in staged}, failed, work.replaces
    )
    committed.notes += notes
    if committed.shards:
        committed.files = ingest_report.write(work.table, committed, work.config, seconds=time.monotonic() - began)
    return committed


# Phase one: shards → staged rows


def _stage_all(work: _Work) -> tuple[dict[str, StagedShard], list[Reject]]:
    """Staged shards by id, and a refusal of each that could not be read."""
    jobs = [work.job(shard) for shard in work.shards]
    staged: dict[str, StagedShard] = {}
    failed: list[Reject] = []
    last: Exception | None = None
    stats, lost = IngestStats(), Counter[str]()
    rate, done, rows, total = Rate(), 0, 0, sum(job.shard.size for job in jobs)
    rate.update(0, total, rows=0, num_bytes=0)
    work.progress(0, len(jobs), "shards read")
    for outcome in work.executor.map(stage_shard, jobs):
        found = outcome.result is not None and outcome.result.found
        if outcome.result is not None:
            staged[outcome.item.shard.id] = outcome.result
            stats += outcome.result.stats
            rows += 0 if found else outcome.result.stats.received
        elif isinstance(outcome.error, TargetError):
            raise outcome.error
        else:
            last = outcome.error
            failed.append(_failure(outcome, work.config.revision()))
            lost[failed[-1].error] += 1
        if found:  # by an earlier run: it says nothing of the speed
            total -= outcome.item.shard.size
        else:
            done += outcome.item.shard.size
        rate.update(done, total, rows=rows, num_bytes=done)
        work.progress(len(staged) + len(failed), len(jobs), f"shards read, {rate}")
        _check_budget(work, staged, stats, lost, pieces=len(staged) + len(failed))
    _check_budget(work, staged, stats, lost, pieces=None)
    if not staged:
        raise OSError(f"none of {len(jobs)} shards could be read; the last one: {last}")
    return staged, failed


def _check_budget(work: _Work, staged: Mapping[str, StagedShard], stats: IngestStats, lost: Counter[str], pieces: int | None) -> None:
    """Stop if too much failed, with an example of each reason. Samples that are tried again failed before: they are not counted."""
    budget = work.config.failures
    try:
        if work.keys is None:
            budget.check(STAGE, stats.failed, stats.received, pieces=pieces)
        budget.check(STAGE, lost + Counter(stats.failed_shards), pieces or len(work.shards), unit="shards")
    except BudgetExceededError as error:
        wanted = {**stats.failed_shards, **({} if work.keys is not None else stats.failed)}
        examples = "; ".join(f"{reason}: {text}" for reason, text in sorted(_examples(work, staged, wanted).items()))
        raise BudgetExceededError(f"{error}. For example {examples}" if examples else str(error)) from None


def _examples(work: _Work, staged: Mapping[str, StagedShard], reasons: Collection[str]) -> dict[str, str]:
    """Reason → where and what, of the first refusal that is staged."""
    found: dict[str, str] = {}
    for shard in work.shards:
        if shard.id in staged and staged[shard.id].rejects:
            for reject in staging.read_rejects(work.table, work.job(shard).revision, shard.id).to_pylist():
                if reject["error"] in reasons:
                    found.setdefault(reject["error"], f"{reject['location']} ({reject['message']})")
        if found.keys() >= set(reasons):
            break
    return found


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
