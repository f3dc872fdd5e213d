"""Phase one of ingest, on a worker: read a shard, stage its rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mtv_core.data import samples
from mtv_core.data.sources import ShardRef, read
from mtv_core.faults import fault_point
from mtv_core.ingest_config import IngestConfig
from mtv_core.report import Reject, RejectClass
from mtv_core.store import staging
from mtv_core.store.staging import ShardWriter, StagedShard
from mtv_core.store.table import Table

STAGE = "ingest"


class SourceError(OSError):
    """A shard cannot be read now; nothing is known of its data."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to stage."""

    table_uri: str
    shard: ShardRef
    config: IngestConfig
    storage_options: dict[str, str]


def stage_shard(job: ShardJob) -> StagedShard:
    """Read one shard and stage its rows. For workers. Staged already, it is not opened."""
    table = Table.create_or_open(job.table_uri, job.storage_options)
    revision, shard = job.config.revision(), job.shard
    known = staging.staged_shard(table, revision, shard.id)
    if known is not None:
        return known
    started = time.monotonic()
    rejects: list[Reject] = []
    rows_in, state = 0, "done"
    with ShardWriter(table, revision, shard.id) as writer:
        for found in _samples(job):
            rows_in += isinstance(found, dict) or bool(found.key)
            if isinstance(found, dict):
                writer.add(found)
                continue
            rejects.append(found.model_copy(update={"revision": revision}))
            if not found.key:
                state = "damaged"
    if not rows_in and state == "done":
        message = "the shard holds no sample: no file named KEY.jpg, .png or .webp with KEY.txt or KEY.json"
        rejects.append(
            Reject(shard=shard.id, key="", location=shard.uri, stage=STAGE, error="EmptyShard", message=message, revision=revision)
        )
    staged = StagedShard(
        shard=shard.id,
        rows_in=rows_in,
        rows=writer.num_rows,
        bytes_written=writer.bytes_written,
        seconds=time.monotonic() - started,
        state=state,
        rejects=rejects,
    )
    writer.finish(staged)
    fault_point("ingest.shard_done")
    return staged


def _samples(job: ShardJob) -> Iterator[dict[str, Any] | Reject]:
    config, shard = job.config, job.shard
    received = read(shard, config.max_bytes, job.storage_options)
    while True:
        try:
            raw = next(received, None)
        except OSError as error:
            raise SourceError(f"cannot read {shard.uri}: {error.strerror or error}") from error
        if raw is None:
            return
        if isinstance(raw, Reject):
            yield raw
            continue
        try:
            yield samples.row(
                raw,
                shard,
                max_side=config.max_side,
                quality=config.quality,
                max_pixels=config.max_pixels,
                held_out=config.held_out,
            )
        except MemoryError:
            raise
        except Exception as error:  # a mistake of ours costs one sample, and says so
            yield Reject(
                shard=shard.id,
                key=raw.key,
                location=f"{shard.uri}#{raw.key}",
                stage=STAGE,
                reject_class=RejectClass.BUG,
                error=type(error).__name__,
                message=str(error),
            )
