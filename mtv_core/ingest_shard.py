"""Phase one of ingest, on a worker: read a shard, stage its rows and its refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from mtv_core.data.ahead import Ahead
from mtv_core.data.fingerprint import Fingerprint
from mtv_core.data.samples import STAGE, Kept, Rules, location, make
from mtv_core.data.sources import RawSample, ShardRef, read
from mtv_core.data.stats import StatsBuilder
from mtv_core.faults import fault_point
from mtv_core.ingest_config import IngestConfig
from mtv_core.report import Reject, RejectClass
from mtv_core.store import staging
from mtv_core.store.denylist import Denylist
from mtv_core.store.staging import ShardWriter, StagedShard
from mtv_core.store.table import Table

_OBJECT, _CAPTION = 1500, 200  # bytes that a sample or a refusal, and a caption, take beside their texts
_PARSED = 4  # times its text is what a parsed JSON takes, if it is none that was made to take more


class SourceError(OSError):
    """A shard cannot be read now; nothing is known of its data."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to stage, or some samples of it."""

    table_uri: str
    shard: ShardRef
    config: IngestConfig
    storage_options: dict[str, str]
    keys: frozenset[str] | None = None  # None: all
    denied: str = ""  # stands for what was taken down when the job was made

    @property
    def revision(self) -> str:
        """Names the staging: another configuration or reading, other samples of the shard, another deny-list are other work.

        So what a worker stages that outlived its driver and a takedown is never used.
        """
        return staging.revision_of(self.config.revision(), self.shard.reading, self.denied, self.keys)


def stage_shard(job: ShardJob) -> StagedShard:
    """Read one shard and stage its rows. For workers. Staged already, it is not opened.

    Raises:
        SourceError: it cannot be read now.
        TargetError: the table cannot be written.
    """
    table = Table.create_or_open(job.table_uri, job.storage_options)
    known = staging.staged_shard(table, job.revision, job.shard.id)
    return known.model_copy(update={"found": True}) if known is not None else _Stager(job, table).run()


class _Stager:
    """The reading of one shard."""

    def __init__(self, job: ShardJob, table: Table) -> None:
        self.job, self.table, self.shard = job, table, job.shard
        config = job.config
        self.rules = Rules(config.limits(), config.held_out, config.captions, config.filters, Denylist.load(table))
        self.stats = StatsBuilder()
        self.rows_in, self.state, self.content = 0, "done", Fingerprint()
        self.tried: set[str] = set()

    def run(self) -> StagedShard:
        started = time.monotonic()
        with ShardWriter(self.table, self.job.revision, self.shard.id, self.job.config.revision()) as writer:
            for found in self._found():
                if isinstance(found, Kept):
                    self.rows_in += 1
                    clock = time.perf_counter()
                    writer.add(found.row, found.location)
                    self.stats.spent("write", time.perf_counter() - clock)
                    self.stats.kept(found.row, found.opened, passthrough=found.passthrough)
                else:
                    self._refuse(writer, found)
            if not self.rows_in and self.state == "done" and self.job.keys is None:
                message = "the shard holds no sample: no image with a caption beside it was found"
                self._refuse(writer, self._shard_reject("EmptyShard", message), damaged=False)
        staged = StagedShard(
            shard=self.shard.id,
            rows_in=self.rows_in,
            rows=writer.num_rows,
            rejects=writer.num_rejects,
            refused=writer.num_refused,
            bytes_written=writer.bytes_written,
            seconds=time.monotonic() - started,
            state=self.state,
            content=self.content.value if self.job.keys is None else None,
            stats=self.stats.build(),
            tried=None if self.job.keys is None else sorted(self.tried),
        )
        writer.finish(staged)
        fault_point("ingest.shard_done")
        return staged

    def _refuse(self, writer: ShardWriter, reject: Reject, damaged: bool = True) -> None:
        writer.refuse(reject)
        self.stats.refused(reject)
        if reject.key:
            self.rows_in += 1
        elif damaged:
            self.state = "damaged"

    def _found(self) -> Iterator[Kept | Reject]:
        for raw in self._read():
            if self.job.keys is not None:
                if raw.key not in self.job.keys:
                    continue
                self.tried.add(raw.key)
            clock = time.perf_counter()
            self.content.add(raw)
            if isinstance(raw, Reject):
                if raw.key:
                    self.stats.received(0)
                yield raw
                continue
            self.stats.received(raw.num_bytes)
            made = self._made(raw)
            self.stats.spent("decode", time.perf_counter() - clock)
            yield made

    def _read(self) -> Iterator[RawSample | Reject]:
        """What the shard holds, read and hashed ahead of its use."""
        ahead = Ahead(read(self.shard, self.job.config.max_bytes, self.job.storage_options), weight)
        with ahead as samples:
            while True:
                try:
                    raw = next(samples, None)
                except OSError as error:
                    raise SourceError(f"cannot read {self.shard.uri}: {error.strerror or error}") from error
                if raw is None:
                    break
                yield raw
        self.stats.spent("read", ahead.seconds)

    def _made(self, raw: RawSample) -> Kept | Reject:
        try:
            return make(raw, self.shard, self.rules)
        except MemoryError:
            raise
        except Exception as error:  # a mistake of ours costs one sample, and says so
            return Reject(
                shard=self.shard.id,
                key=raw.key,
                location=location(raw, self.shard),
                stage=STAGE,
                reject_class=RejectClass.BUG,
                error=type(error).__name__,
                message=str(error),
            )

    def _shard_reject(self, error: str, message: str) -> Reject:
        return Reject(shard=self.shard.id, key="", location=self.shard.uri, stage=STAGE, error=error, message=message)


def weight(found: RawSample | Reject) -> int:
    """Bytes of memory that a sample takes, roughly; its image is hashed where it was read."""
    if isinstance(found, Reject):
        return _OBJECT + len(found.message)
    _ = found.digest
    document = _PARSED * len(found.meta or b"") if found.document else 0
    return _OBJECT + _CAPTION * len(found.captions) + found.num_bytes + len(found.meta or b"") + document
