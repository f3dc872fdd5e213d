"""Placeholder pictures, "image not available": one picture that comes with the captions of many others.

A class of them is refused as a whole, none stays: its pictures show nothing of what their captions say. The class is named by the image
that stood for it, so that later ingests know it again from the refusals alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtv_core.data import hamming
from mtv_core.data.dedup_config import PlaceholderConfig

KNOWN_CLASSES = pa.schema([pa.field("name", pa.string()), pa.field("sha256", pa.string()), pa.field("phash", pa.uint64())])
_NAME = re.compile(r"sha256:([0-9a-f]+)\+phash:([0-9a-f]{16})")


@dataclass(frozen=True)
class PlaceholderClass:
    """One picture that stands for others."""

    name: str
    copies: int  # seen so far, of earlier ingests the exact ones
    captions: int  # different ones among them
    row: str | None  # uid of the table's row with it, which only a person may remove: mtv forget


@dataclass(frozen=True)
class Clusters:
    """What may be placeholders: rows that stand for others, with what is known of their copies. C clusters, M copies in this ingest."""

    member: NDArray[np.int64]  # [M] cluster of each copy, the rows that stay among them if they are of this ingest
    captions: NDArray[np.uint64]  # [M]
    uids: pa.Array  # [M]
    in_table: NDArray[np.bool_]  # [C] whether the row that stays is the table's, and so not among the copies
    survivors: pa.Array  # [C] uid


def name_of(sha256: str, phash: int) -> str:
    """What a class is called in the refusals."""
    return f"sha256:{sha256}+phash:{phash:016x}"


def parse(names: Iterable[str]) -> pa.Table:
    """Classes by their names (`KNOWN_CLASSES`), sorted, each once; what is no such name is left out."""
    found = [(name, match[1], int(match[2], 16)) for name in sorted(set(names)) if (match := _NAME.fullmatch(name))]
    return pa.Table.from_pylist([dict(zip(KNOWN_CLASSES.names, one, strict=True)) for one in found], schema=KNOWN_CLASSES)


def class_of(sha256: pa.Array, phash: NDArray[np.uint64], classes: pa.Table, threshold: int | None) -> NDArray[np.int64]:
    """For each image the known class it belongs to: the same bytes, else the nearest within the threshold; −1 for none."""
    index = np.full(len(phash), -1, np.int64)
    if not classes.num_rows:
        return index
    if threshold is not None:
        hashes = classes["phash"].to_numpy()
        told = np.flatnonzero(hamming.usable(hashes))
        mine = np.flatnonzero(hamming.usable(phash))
        nearest, _ = hamming.nearest(phash[mine], hashes[told], threshold)
        index[mine[nearest >= 0]] = told[nearest[nearest >= 0]]
    same = pc.fill_null(pc.index_in(sha256, value_set=classes["sha256"].combine_chunks()), -1).to_numpy()
    return np.where(same >= 0, same, index)


def copies_of(clusters: Clusters, earlier: pa.Table) -> NDArray[np.int64]:
    """[C] copies of each cluster, the one that stays included.

    Args:
        clusters: of this ingest.
        earlier: `dedup.COPIES` of the table's rows among them.
    """
    number = np.bincount(clusters.member, minlength=len(clusters.in_table)) + clusters.in_table
    place = pc.index_in(earlier["survivor"], value_set=clusters.survivors).to_numpy()
    np.add.at(number, place, earlier["copies"].to_numpy())
    return number


def captions_of(clusters: Clusters, chosen: NDArray[np.int64], table_captions: NDArray[np.uint64], earlier: pa.Table) -> NDArray[np.int64]:
    """Different captions of the chosen clusters, in their order.

    Of a copy that an earlier ingest refused the uid is known, not the caption. Exact copies have the same uid if and only if they have the
    same caption, so they are asked for; near ones of earlier ingests do not count at all.

    Args:
        clusters: of this ingest.
        chosen: which of them.
        table_captions: hash of the caption of the row that stays, for those of the chosen ones that are in the table.
        earlier: `dedup.COPIES`.
    """
    place = np.full(len(clusters.in_table), -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    here = np.flatnonzero(place[clusters.member] >= 0)
    pairs = np.stack([place[clusters.member[here]].astype(np.uint64), clusters.captions[here]], 1)
    in_table = np.flatnonzero(clusters.in_table[chosen])
    pairs = np.concatenate([pairs, np.stack([in_table.astype(np.uint64), table_captions], 1)])
    different = np.bincount(np.unique(pairs, axis=0)[:, 0].astype(np.int64), minlength=len(chosen))

    survivors = clusters.survivors.take(pa.array(chosen)).to_pylist()
    seen = {*zip(place[clusters.member[here]].tolist(), clusters.uids.take(pa.array(here)).to_pylist(), strict=True), *enumerate(survivors)}
    where = {uid: index for index, uid in enumerate(survivors)}
    for survivor, uid in zip(earlier["survivor"].to_pylist(), earlier["uid"].to_pylist(), strict=True):
        index = where.get(survivor)
        if index is not None and (index, uid) not in seen:
            seen.add((index, uid))
            different[index] += 1
    return different


def are_placeholders(copies: NDArray[np.int64], captions: NDArray[np.int64], config: PlaceholderConfig) -> NDArray[np.bool_]:
    """The rule."""
    return (copies >= config.min_copies) & (captions > config.different * copies)
