"""Phase two of ingest, in the driver: which staged rows survive, and their publication.

Refusals, samples, ledger, in this order, under the right to commit. A kill

    before the refusals    leaves nothing to be seen
    before the samples     leaves refusals of shards that are not in the ledger; added once, whoever repeats it
    before the ledger      leaves rows of shards that are not in the ledger; the next run knows them again by shard, key and uid

A retry of refusals publishes samples first and takes the refusals back after: killed between, it finds its rows by shard, key and uid.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from mtv_core import ingest_pairs, ingest_report
from mtv_core.data.decontaminate import EvaluationIndex
from mtv_core.data.dedup import Fate
from mtv_core.data.samples import STAGE
from mtv_core.data.schema import REJECTS
from mtv_core.data.sources import ShardRef
from mtv_core.data.stats import IngestStats
from mtv_core.executor import Executor, Progress
from mtv_core.faults import fault_point
from mtv_core.ingest_config import IngestConfig
from mtv_core.ingest_decide import REASONS, Decided, Staged, decide_staged
from mtv_core.report import Reject, StageReport
from mtv_core.store import locks, staging
from mtv_core.store.dataset import explain
from mtv_core.store.ledger import LedgerEntry
from mtv_core.store.staging import Piece
from mtv_core.store.table import Table


@dataclass
class Committed:
    """What one commit brought."""

    ingest_id: str = ""
    report: StageReport = field(default_factory=StageReport)
    stats: IngestStats = field(default_factory=IngestStats)  # of everything that was read, and what became of it
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    shards: list[str] = field(default_factory=list)  # ids of what it brought
    pictures: dict[str, bytes] = field(default_factory=dict)  # name → JPEG: pairs worth looking at


@dataclass(frozen=True)
class FragmentJob:
    """Rows that become one fragment."""

    table_uri: str
    ingest_id: str
    pieces: list[Piece]
    storage_options: dict[str, str]


def write_fragment(job: FragmentJob) -> list[str]:
    """Write one fragment that nobody sees yet. For workers."""
    return staging.write_fragment(Table.create_or_open(job.table_uri, job.storage_options), job.pieces, job.ingest_id)


class Commit:
    """One commit: deduplicate what is staged against the table, write fragments, publish.

    Args:
        table: where.
        config: how.
        executor: writes the fragments.
        evaluation: images that must not be trained on.
        progress: told how far it is.
        retrying: the staged rows are samples of known shards that had been refused.
        alike: ids of shards whose pictures are not compared with others.
    """

    def __init__(
        self,
        table: Table,
        config: IngestConfig,
        executor: Executor,
        evaluation: EvaluationIndex,
        progress: Progress,
        retrying: bool = False,
        alike: Collection[str] = (),
    ) -> None:
        self.table, self.config, self.executor, self.evaluation = table, config, executor, evaluation
        self.progress, self.retrying, self.alike = progress, retrying, alike

    def run(self, staged: Staged, failed: Sequence[Reject], replaces: Mapping[str, LedgerEntry]) -> Committed:
        """Publish the rows of staged shards.

        Args:
            staged: shard → its job and what came of it.
            failed: refusals of shards that could not be read.
            replaces: shard id → what was behind its URI before.

        Raises:
            TargetError: the table cannot be written.
        """
        with locks.committing(self.table) as lease:
            known = self.table.ledger.latest()
            if not self.retrying:  # what another ingest brought meanwhile is done
                staged = {shard: work for shard, work in staged.items() if shard.uri not in known or not _brought(known[shard.uri], shard)}
            shards = list(staged)
            if not shards and not failed:
                return Committed(notes=["another ingest brought all of these shards meanwhile"])
            ingest_id = self._ingest_id(staged)
            seen = staging.last_fragment(self.table)
            decided = decide_staged(
                self.table, staged, self.config, self.evaluation, [entry.shard for entry in replaces.values()], self.alike
            )
            fault_point("ingest.dedup")
            pieces = [
                Piece(staged=f"{staged[shard][0].revision}/{shard.id}", positions=positions)
                for shard, positions in zip(shards, decided.added(), strict=True)
                if positions
            ]
            jobs = [
                FragmentJob(self.table.uri, ingest_id, group, self.table.storage_options)
                for group in _cut(pieces, self.config.rows_per_fragment)
            ]
            fragments = self._write_all(jobs)
            rejects = pa.concat_tables(
                [
                    *(staging.read_rejects(self.table, job.revision, shard.id) for shard, (job, _) in staged.items()),
                    decided.rejects(self.config.revision()),
                    pa.Table.from_pylist([reject.model_dump(mode="json") for reject in failed], schema=REJECTS),
                ]
            )
            try:
                if self.retrying:
                    self._publish_retry(staged, fragments, seen, rejects, lease)
                else:
                    self._publish(shards, fragments, seen, rejects, lease, replaces)
                fault_point("ingest.samples_committed")
                account = self._account(staged, decided, rejects)
                notes = [*decided.notes, *self._changed(staged, decided, replaces)]
                ingest_report.begin(self.table, ingest_id, *account, notes)
                lease.check()
                self.table.ledger.append(self._entries(staged, decided, ingest_id, replaces))
                fault_point("ingest.ledger_committed")
            except OSError as error:
                raise explain(error, self.table.uri) from error
            pictures = ingest_pairs.sheets(self.table, decided, self.config)
        return Committed(ingest_id, *account, notes, shards=[shard.id for shard in shards], pictures=pictures)

    def _ingest_id(self, staged: Staged) -> str:
        names = sorted(f"{job.revision} {shard.id}" for shard, (job, _) in staged.items())
        return hashlib.sha256("\n".join([self.config.revision(), *names]).encode()).hexdigest()[:16]

    def _publish(
        self,
        shards: Sequence[ShardRef],
        fragments: Sequence[str],
        seen: int | None,
        rejects: pa.Table,
        lease: locks.Lease,
        replaces: Mapping[str, LedgerEntry],
    ) -> None:
        log = self.table.rejects
        lease.check()
        log.remove([shard.uri for shard in shards], STAGE)
        log.forget_shards([replaces[shard.id].shard for shard in shards if shard.id in replaces], STAGE)
        log.append_table(rejects)
        fault_point("ingest.rejects_committed")
        if fragments:
            staging.publish_samples(self.table, fragments, seen, lease)

    def _publish_retry(
        self,
        staged: Staged,
        fragments: Sequence[str],
        seen: int | None,
        rejects: pa.Table,
        lease: locks.Lease,
    ) -> None:
        if fragments:
            staging.publish_samples(self.table, fragments, seen, lease)
        fault_point("ingest.retry_samples_committed")
        lease.check()
        self.table.rejects.replace({shard.id: done.tried or [] for shard, (_, done) in staged.items()}, STAGE, rejects)

    def _account(self, staged: Staged, decided: Decided, rejects: pa.Table) -> tuple[StageReport, IngestStats]:
        fates = sum(decided.fates, Counter[Fate]())
        added, again = fates[Fate.ADDED] + fates[Fate.PUBLISHED], fates[Fate.AGAIN]
        taken = {reason: fates[fate] for fate, reason in REASONS.items() if fates[fate]}
        done = [one for _, one in staged.values()]
        stats = sum((one.stats for one in done), IngestStats()) + IngestStats(refused=taken, added=added, again=again)
        report = StageReport(
            rows_in=sum(one.rows_in for one in done),
            rows_out=added,
            rows_rejected=sum(one.refused for one in done) + sum(taken.values()),
            rows_skipped=again,
            bytes_written=sum(one.bytes_written for one in done),
            seconds=sum(one.seconds for one in done),
            counts={
                "shards": len(staged),
                **{f"rejected/{pair['values']}": pair["counts"] for pair in pc.value_counts(rejects["error"]).to_pylist()},
            },
        )
        return report, stats

    def _changed(self, staged: Staged, decided: Decided, replaces: Mapping[str, LedgerEntry]) -> list[str]:
        """A note on each shard that is not what it was: what is new in it, and how many rows of the table are not in it any more."""
        changed = {shard: fates for shard, fates in zip(staged, decided.fates, strict=True) if shard.id in replaces}
        if not changed:
            return []
        entries = self.table.ledger.read().select(["shard", "uri"]).to_pylist()
        uris = {shard.uri for shard in changed}
        of_uri = {entry["shard"]: entry["uri"] for entry in entries if entry["uri"] in uris} | {one.id: one.uri for one in changed}
        rows = Counter[str]()
        for name, number in staging.rows_by_shard(self.table, of_uri).items():
            rows[of_uri[name]] += number
        notes = []
        for shard, fates in changed.items():
            new, same = fates[Fate.ADDED] + fates[Fate.PUBLISHED], fates[Fate.AGAIN]
            gone = rows[shard.uri] - new - same
            kept = f"; {gone} rows of the table are not in it any more and stay (mtv forget removes them)" if gone > 0 else ""
            how = "is read in another way than" if replaces[shard.id].shard == shard.id else "changed since"
            notes.append(f"{shard.uri} {how} it was ingested: {new} rows are new, {same} are as before{kept}")
        return notes

    def _entries(
        self,
        staged: Staged,
        decided: Decided,
        ingest_id: str,
        replaces: Mapping[str, LedgerEntry],
    ) -> list[LedgerEntry]:
        if self.retrying:
            return self._corrected(staged)
        return [
            LedgerEntry(
                shard=shard.id,
                uri=shard.uri,
                identity=shard.identity,
                size=shard.size,
                rows_in=done.rows_in,
                rows_out=fates[Fate.ADDED] + fates[Fate.PUBLISHED] + fates[Fate.AGAIN],
                rows_rejected=done.refused + sum(fates[fate] for fate in REASONS),
                state=done.state,
                ingest_id=ingest_id,
                content=done.content,
                replaces=replaces[shard.id].shard if shard.id in replaces else None,
                reading=shard.reading,
            )
            for (shard, (_, done)), fates in zip(staged.items(), decided.fates, strict=True)
        ]

    def _corrected(self, staged: Staged) -> list[LedgerEntry]:
        """The entries of shards some of whose refusals are rows now: counted, so that it does not matter who was killed when."""
        known = self.table.ledger.latest()
        refused = staging.refusals_by_shard(self.table, [shard.id for shard in staged], STAGE)
        entries = [(known[shard.uri], refused[shard.id]) for shard in staged]
        return [entry.model_copy(update={"rows_out": entry.rows_in - left, "rows_rejected": left}) for entry, left in entries]

    def _write_all(self, jobs: list[FragmentJob]) -> list[str]:
        """The fragments in the order of the jobs, as JSON."""
        written: dict[int, list[str]] = {}
        place = {id(job): index for index, job in enumerate(jobs)}
        for outcome in self.executor.map(write_fragment, jobs):
            if outcome.result is None:
                assert outcome.error is not None
                raise outcome.error
            written[place[id(outcome.item)]] = outcome.result
            self.progress(len(written), len(jobs), "fragments written")
        return [fragment for index in range(len(jobs)) for fragment in written[index]]


def _brought(entry: LedgerEntry, shard: ShardRef) -> bool:
    return entry.shard == shard.id and entry.reading in (None, shard.reading)


def _cut(pieces: Sequence[Piece], rows_per_fragment: int) -> Iterator[list[Piece]]:
    """Pieces of shards, joined and cut to fragments of so many rows; the last one may be smaller."""
    group: list[Piece] = []
    room = rows_per_fragment
    for piece in pieces:
        positions = piece.positions
        while positions:
            group.append(Piece(staged=piece.staged, positions=positions[:room]))
            room, positions = room - len(positions[:room]), positions[room:]
            if room == 0:
                yield group
                group, room = [], rows_per_fragment
    if group:
        yield group
