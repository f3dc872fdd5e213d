"""Which staged rows become rows of the table: deduplication and decontamination, in the driver.

Depends on what is staged and on the table, not on who staged it when.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from mtv_core.data import decontaminate
from mtv_core.data.decontaminate import Comparison, EvaluationIndex
from mtv_core.data.dedup import CANDIDATES, Fate, Verdict, decide
from mtv_core.data.samples import STAGE
from mtv_core.data.schema import REJECTS
from mtv_core.data.sources import ShardRef
from mtv_core.executor import Executor, Progress
from mtv_core.ingest_config import IngestConfig
from mtv_core.ingest_shard import ShardJob
from mtv_core.report import RejectClass
from mtv_core.store import known, staging
from mtv_core.store.staging import StagedShard
from mtv_core.store.table import Table

REASONS = {
    Fate.DUPLICATE: "Duplicate",
    Fate.NEAR_DUPLICATE: "NearDuplicate",
    Fate.PLACEHOLDER: "Placeholder",
    Fate.LEAK: "EvaluationLeak",
}
Staged = Mapping[ShardRef, tuple[ShardJob, StagedShard]]
LEAKS = "reports/leaks.txt"  # uids of rows that show evaluation images
_NO_HASH = 0  # a hash that is near to none
_LISTED = 5  # uids named in a note


@dataclass
class Decided:
    """What became of the staged rows."""

    staged: Staged
    candidates: pa.Table  # CANDIDATES, shard after shard in the order of `staged`
    locations: pa.ChunkedArray  # of the candidates
    verdict: Verdict
    done_before: set[str] = field(default_factory=set)  # ids of shards that are in the ledger
    comparison: Comparison | None = None  # of the candidates with evaluation images
    notes: list[str] = field(default_factory=list)

    @cached_property
    def _parts(self) -> list[slice]:
        ends = np.cumsum([0, *(done.rows for _, done in self.staged.values())]).tolist()
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    @cached_property
    def fates(self) -> list[Counter[Fate]]:
        """Rows of each fate, shard by shard. What a shard that was done before published then is not news."""
        counted = [
            Counter({fate: int(number) for fate in Fate if (number := (self.verdict.fate[part] == fate).sum())}) for part in self._parts
        ]
        for shard, fates in zip(self.staged, counted, strict=True):
            if shard.id in self.done_before:
                fates[Fate.AGAIN] += fates.pop(Fate.PUBLISHED, 0)
        return counted

    def added(self) -> list[list[int]]:
        """Positions in the staged shard of the rows that are added, shard by shard."""
        return [np.flatnonzero(self.verdict.fate[part] == Fate.ADDED).tolist() for part in self._parts]

    def rejects(self, revision: str) -> pa.Table:
        """The refusals, of the schema REJECTS."""
        refused = np.flatnonzero(np.isin(self.verdict.fate, list(REASONS)))
        rows = self.candidates.take(pa.array(refused))
        survivors = self.verdict.survivor.take(pa.array(refused))
        fates = self.verdict.fate[refused]
        distances = self.verdict.distance[refused]
        messages = [
            _message(Fate(fate), survivor, distance)
            for fate, survivor, distance in zip(fates.tolist(), survivors.to_pylist(), distances.tolist(), strict=True)
        ]
        columns = {
            "uid": rows["uid"],
            "shard": rows["shard"],
            "key": rows["key"],
            "location": self.locations.take(pa.array(refused)),
            "stage": pa.repeat(STAGE, len(refused)),
            "reject_class": pa.repeat(str(RejectClass.DATA), len(refused)),
            "error": pa.array([REASONS[Fate(fate)] for fate in fates.tolist()], pa.string()),
            "message": pa.array(messages, pa.string()),
            "revision": pa.repeat(revision, len(refused)),
            "survivor": survivors,
            "attempt": pa.repeat(pa.scalar(1, pa.int32()), len(refused)),
        }
        return pa.table(columns, schema=REJECTS)


def decide_staged(
    table: Table,
    staged: Staged,
    config: IngestConfig,
    evaluation: EvaluationIndex,
    replaced: Collection[str] = (),
    alike: Collection[str] = (),
) -> Decided:
    """The fate of every staged row, as the table is now. Call it with the right to commit.

    The refusals of these shards, and of what they replace (`replaced`, ids), do not count: a rerun after a kill must not see more or fewer.
    Pictures of the shards `alike` (ids) are no near duplicates of anything.
    """
    parts, locations = [CANDIDATES.empty_table()], [pa.array([], pa.string())]
    for shard, (job, _) in staged.items():
        index = staging.read_index(table, job.revision, shard.id)
        columns = {
            **{name: index[name] for name in ("uid", "sha256", "caption_hash", "key")},
            "phash": pa.repeat(pa.scalar(_NO_HASH, pa.uint64()), index.num_rows) if shard.id in alike else index["phash"],
            "shard": pa.repeat(shard.id, index.num_rows),
            "uri": pa.repeat(shard.uri, index.num_rows),
            "position": pa.array(np.arange(index.num_rows)),
        }
        parts.append(pa.table(columns, schema=CANDIDATES))
        locations += index["location"].chunks
    candidates = pa.concat_tables(parts).combine_chunks()
    rows = known.of(table, candidates["sha256"], [*(shard.id for shard in staged), *replaced])
    comparison = None
    notes = list(evaluation.problems)
    if len(evaluation.ids):
        rule = config.decontaminate
        comparison = decontaminate.compare(
            candidates["sha256"].combine_chunks(), candidates["phash"].to_numpy(), evaluation, rule.threshold, rule.margin
        )
    verdict = decide(candidates, rows, config.dedup, None if comparison is None else comparison.leaks())
    notes += [
        f"the table's row {one.row} is the placeholder {one.name}, of which {one.copies} copies came with {one.captions} captions; "
        f"remove it with `mtv forget --uid {one.row}`"
        for one in verdict.placeholders
        if one.row is not None
    ]
    return Decided(staged, candidates, pa.chunked_array(locations), verdict, set(table.ledger.uris()), comparison, notes)


def leaks_of(table: Table, config: IngestConfig, evaluation: EvaluationIndex) -> list[str]:
    """A note if rows of the table show evaluation images, since they came before the set was named; and a file that `mtv forget` takes."""
    if not len(evaluation.ids) or not table.exists():
        return []
    rows = known.of(table, evaluation.sha256, [])
    found = decontaminate.leaks_in_table(rows, evaluation, config.decontaminate.threshold)
    if not found.uids:
        table.files.remove(LEAKS)
        return []
    table.files.write(LEAKS, "".join(f"{uid}\n" for uid in found.uids).encode())
    some = ", ".join(f"{uid} ({name})" for uid, name in zip(found.uids[:_LISTED], found.ids[:_LISTED], strict=True))
    more = f" and {len(found.uids) - _LISTED} more" if len(found.uids) > _LISTED else ""
    return [
        f"{len(found.uids)} rows of the table show evaluation images: {some}{more}; "
        f"remove them with `mtv forget --uids {table.files.path(LEAKS)}`"
    ]


def _message(fate: Fate, survivor: str | None, distance: int) -> str:
    if fate == Fate.DUPLICATE:
        return f"the same bytes as {survivor}"
    if fate == Fate.NEAR_DUPLICATE:
        return f"{distance} of 64 bits of the perceptual hash from {survivor}"
    if fate == Fate.LEAK:
        return f"shows the evaluation image {survivor}"
    return f"a picture that stands for missing ones ({survivor})"


def evaluation_index(table: Table, config: IngestConfig, executor: Executor, progress: Progress) -> EvaluationIndex:
    """The images of the configured evaluation sets.

    Raises:
        FileNotFoundError, ValueError, OSError: a set cannot be read; nothing is ingested that was not compared.
    """
    todo = decontaminate.jobs(config.decontaminate.sets, table.uri, config.limits(), config.max_bytes, table.storage_options)
    return decontaminate.build(todo, executor, progress)
