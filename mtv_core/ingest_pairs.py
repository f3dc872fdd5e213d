"""Pairs a person should look at after an ingest: near duplicates beside what stands for them, candidates beside evaluation images."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from mtv_core.data.decontaminate import thumbnail
from mtv_core.data.dedup import Fate
from mtv_core.data.pairs import PairPictures, pairs_gallery
from mtv_core.ingest_config import IngestConfig
from mtv_core.ingest_decide import Decided
from mtv_core.ingest_gallery import jpeg
from mtv_core.store import staging
from mtv_core.store.table import Table


def sheets(table: Table, decided: Decided, config: IngestConfig) -> dict[str, bytes]:
    """Name → JPEG, of what there is to see. Call it while the rows are still staged."""
    found = {"near_duplicates": _near_duplicates(table, decided, config), "evaluation_pairs": _evaluation(table, decided, config)}
    return {name: jpeg(pairs_gallery(pairs, verdicts=_VERDICTS[name])) for name, pairs in found.items() if pairs}


_VERDICTS = {"near_duplicates": ("refused", "kept"), "evaluation_pairs": ("leak", "kept")}


def _near_duplicates(table: Table, decided: Decided, config: IngestConfig) -> list[PairPictures]:
    """The most distant ones, which are the most doubtful; of equally distant ones the first by uid."""
    verdict, uids = decided.verdict, decided.candidates["uid"]
    near = np.flatnonzero(verdict.fate == Fate.NEAR_DUPLICATE)
    names = uids.take(pa.array(near)).to_pylist()
    chosen = [row for _, _, row in sorted(zip((-verdict.distance[near]).tolist(), names, near.tolist(), strict=True))]
    chosen = chosen[: config.decontaminate.pairs]
    survivors = verdict.survivor.take(pa.array(chosen, pa.int64())).to_pylist()
    images = _staged(table, decided, chosen)
    others = _stored(table, {uid for uid in survivors if uid})
    return [
        PairPictures(images[row], others[uid], uids[row].as_py(), uid, int(verdict.distance[row]), True)
        for row, uid in zip(chosen, survivors, strict=True)
        if uid in others
    ]


def _evaluation(table: Table, decided: Decided, config: IngestConfig) -> list[PairPictures]:
    """Candidates beside the evaluation images they are nearest to, on both sides of the threshold."""
    comparison, uids = decided.comparison, decided.candidates["uid"]
    if comparison is None:
        return []
    pairs = comparison.pairs(config.decontaminate.pairs, uids.combine_chunks())
    images = _staged(table, decided, [pair.candidate for pair in pairs])
    others = comparison.index.thumbnails([pair.evaluation for pair in pairs])
    return [
        PairPictures(
            images[pair.candidate],
            others[pair.evaluation],
            uids[pair.candidate].as_py(),
            comparison.index.ids[pair.evaluation].as_py(),
            pair.distance,
            pair.leak,
        )
        for pair in pairs
    ]


def _staged(table: Table, decided: Decided, rows: Collection[int]) -> dict[int, bytes]:
    """Small JPEGs of candidates."""
    by_shard: dict[str, dict[int, int]] = {}
    for row in rows:
        shard = decided.candidates["shard"][row].as_py()
        by_shard.setdefault(shard, {})[decided.candidates["position"][row].as_py()] = row
    found: dict[int, bytes] = {}
    for shard, (job, _) in decided.staged.items():
        if wanted := by_shard.get(shard.id):
            images = staging.read_images(table, job.revision, shard.id, wanted)
            found |= {wanted[position]: thumbnail(image) for position, image in images.items()}
    return found


def _stored(table: Table, uids: Collection[str]) -> dict[str, bytes]:
    """Small JPEGs of rows of the table."""
    return {uid: thumbnail(image) for uid, image in staging.images_of(table, uids).items()}
