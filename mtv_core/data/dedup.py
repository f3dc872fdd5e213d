"""One row a picture: which candidates become rows. Deterministic, so neither the order of shards nor the number of workers matters.

The slow truth, which the tests hold this to. Candidates are walked over in the order of (uid, uri, key, position); rows with the same
sha256 are one image, and share the place and the perceptual hash of the first of them. An image

    that leaked or is a known placeholder   is refused
    that is in the table, or near to a row  is a duplicate of it
    near to an image kept before            is a duplicate of that
    else                                    is kept: its first row is added, the others are duplicates of it

The row that is named as survivor is the nearest: a row of the table before an image of this ingest, of equally near ones the first. Images
with equal perceptual hashes have the survivor of the first of them. Clusters that turn out to be placeholders are refused in the end.

An ingest that was killed between publishing its samples and its ledger meets its own rows in the table. They are known by shard, key and
uid, are never refused, and stand in the walk where they stood the first time, so all others get the same fate and survivor again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtv_core.data import hamming, placeholders
from mtv_core.data.dedup_config import DedupConfig, PlaceholderConfig
from mtv_core.data.near import walk
from mtv_core.data.placeholders import KNOWN_CLASSES, Clusters, PlaceholderClass, name_of

CANDIDATES = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("sha256", pa.string()),  # of the image as received
        pa.field("phash", pa.uint64()),
        pa.field("caption_hash", pa.uint64()),  # `schema.caption_hash` of the caption
        pa.field("key", pa.string()),
        pa.field("shard", pa.string()),  # id of the shard
        pa.field("uri", pa.string()),  # of the shard
        pa.field("position", pa.int64()),  # row in the staged shard
    ]
)
KNOWN = pa.schema([*(CANDIDATES.field(name) for name in ("uid", "sha256", "key", "shard", "uri")), pa.field("row", pa.int64())])
DETAILS = pa.schema([CANDIDATES.field(name) for name in ("uid", "sha256", "caption_hash")])
COPIES = pa.schema([pa.field("survivor", pa.string()), pa.field("uid", pa.string()), pa.field("copies", pa.int64())])


class Fate(IntEnum):
    """What becomes of a candidate."""

    ADDED = 0
    PUBLISHED = 1  # in the table already, by an earlier attempt at this very shard
    AGAIN = 2  # in the table already, from an earlier state of the same file
    DUPLICATE = 3  # the same bytes
    NEAR_DUPLICATE = 4
    PLACEHOLDER = 5
    LEAK = 6


class Known(Protocol):
    """What deduplication asks the table. Rows are numbered 0, 1, … in the table's order."""

    rows: pa.Table  # KNOWN: at least the rows with the image (sha256) of a candidate; images in it are unique
    hashes: NDArray[np.uint64]  # phash of every row, 0 where there is none
    placeholders: pa.Table  # KNOWN_CLASSES: classes refused by earlier ingests

    def details(self, rows: NDArray[np.int64]) -> pa.Table:
        """DETAILS of some rows, in the order asked for."""
        ...

    def copies(self, survivors: pa.Array) -> pa.Table:
        """COPIES: exact duplicates of the rows with these uids that earlier ingests refused, by their uid."""
        ...


@dataclass(frozen=True)
class Nothing:
    """An empty table; with arguments, one in memory."""

    rows: pa.Table = field(default_factory=KNOWN.empty_table)
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    placeholders: pa.Table = field(default_factory=KNOWN_CLASSES.empty_table)
    all_details: pa.Table = field(default_factory=DETAILS.empty_table)
    all_copies: pa.Table = field(default_factory=COPIES.empty_table)

    def details(self, rows: NDArray[np.int64]) -> pa.Table:
        """DETAILS of some rows."""
        return self.all_details.take(pa.array(rows))

    def copies(self, survivors: pa.Array) -> pa.Table:
        """Earlier copies of some rows."""
        return self.all_copies.filter(pc.is_in(self.all_copies["survivor"], value_set=survivors))


@dataclass(frozen=True)
class Verdict:
    """One entry a candidate, in the order given."""

    fate: NDArray[np.int8]
    survivor: pa.Array  # uid of the row that stands for the image; of leaks the evaluation image; of placeholders the name of their class
    distance: NDArray[np.int8]  # bits between the hashes of a near duplicate and its survivor; −1: does not apply
    placeholders: list[PlaceholderClass] = field(default_factory=list)  # found now, by name


@dataclass
class _Images:
    """The candidates as images: I of them, of R rows sorted by image and walk."""

    group: NDArray[np.int64]  # [R] image of each row
    first: NDArray[np.int64]  # [I] its first row
    rank: NDArray[np.int64]  # [I] its place in the walk
    sha256: pa.Array  # [I]
    phash: NDArray[np.uint64]  # [I]
    row: NDArray[np.int64]  # [I] of the table, −1 if it has no such image
    own: NDArray[np.int64]  # [I] the candidate that is the table's row by an earlier attempt, or −1
    old: NDArray[np.int64]  # [I] the candidate that is the table's row from an earlier state of the file, or −1


def decide(candidates: pa.Table, known: Known, config: DedupConfig | None = None, leaks: pa.Array | None = None) -> Verdict:
    """The fate of every candidate: the walk of this module's docstring.

    Args:
        candidates: CANDIDATES, staged rows.
        known: the table.
        config: default `DedupConfig()`.
        leaks: [R] names of the evaluation images that candidates show, null for none (`decontaminate.leaks`).
    """
    config = config or DedupConfig()
    if candidates.num_rows == 0:
        return Verdict(np.zeros(0, np.int8), pa.array([], pa.string()), np.zeros(0, np.int8))
    order = pc.sort_indices(candidates, sort_keys=[(name, "ascending") for name in ("sha256", "uid", "uri", "key", "position")])
    verdict = _decide(candidates.take(order).combine_chunks(), known, config, None if leaks is None else leaks.take(order))
    back = np.empty(len(order), np.int64)  # position in the order given → position in the sorted one
    back[order.to_numpy()] = np.arange(len(order))
    return Verdict(verdict.fate[back], verdict.survivor.take(pa.array(back)), verdict.distance[back], verdict.placeholders)


def _decide(rows: pa.Table, known: Known, config: DedupConfig, leaks: pa.Array | None) -> Verdict:
    """The same for rows sorted by (sha256, uid, uri, key, position)."""
    images = _images(rows, known)
    table_size, count = len(known.hashes), len(images.first)
    names = pa.nulls(count, pa.string()) if leaks is None else leaks.take(pa.array(images.first))
    leaked = _mask(names.is_valid())
    classes = known.placeholders if config.placeholders else KNOWN_CLASSES.empty_table()
    its_class = placeholders.class_of(images.sha256, images.phash, classes, config.near_threshold)
    shown = ~leaked & (its_class >= 0)

    # What stands for each image: a row of the table, or table_size + an image of this ingest.
    stands = np.where(images.row >= 0, images.row, table_size + np.arange(count))
    distance = np.full(count, -1, np.int8)
    walking = (images.row < 0) & ~leaked & ~shown
    if config.near_threshold is not None:
        near, distance = _near(images, walking, known.hashes, config.near_threshold)
        stands = np.where(near >= 0, near, stands)

    fate = np.full(count, Fate.DUPLICATE, np.int8)
    fate[distance >= 0] = Fate.NEAR_DUPLICATE
    fate[shown], fate[leaked] = Fate.PLACEHOLDER, Fate.LEAK
    new = walking & (distance < 0)
    fate, distance, stands = fate[images.group], distance[images.group], stands[images.group]
    fate[images.first[new]] = Fate.ADDED
    fate[images.old[images.old >= 0]] = Fate.AGAIN
    fate[images.own[images.own >= 0]] = Fate.PUBLISHED

    # The names: of survivors, of evaluation images, of placeholders.
    codes, place = np.unique(stands, return_inverse=True)
    uids = _uids(codes, rows, images, known)
    survivor = uids.take(pa.array(place))
    survivor = pc.if_else(pa.array(fate == Fate.LEAK), names.take(pa.array(images.group)), survivor)
    seen = pc.take(_column(classes, "name"), pa.array(its_class, mask=its_class < 0))
    survivor = pc.if_else(pa.array(fate == Fate.PLACEHOLDER), seen.take(pa.array(images.group)), survivor)
    found: list[PlaceholderClass] = []
    if config.placeholders:
        found, class_of = _placeholders(rows, fate, place, codes, uids, images, known, config.placeholders)
        refused = (class_of >= 0) & np.isin(fate, (Fate.ADDED, Fate.DUPLICATE, Fate.NEAR_DUPLICATE))
        fate[refused] = Fate.PLACEHOLDER
        called = pa.array([one.name for one in found], pa.string()).take(pa.array(class_of, mask=class_of < 0))
        survivor = pc.if_else(pa.array(refused), called, survivor)
    distance[fate != Fate.NEAR_DUPLICATE] = -1
    return Verdict(fate, survivor, distance, sorted(found, key=lambda one: one.name))


def _images(rows: pa.Table, known: Known) -> _Images:
    sha256 = _column(rows, "sha256")
    starts = np.ones(len(sha256), bool)
    starts[1:] = _mask(pc.not_equal(sha256[1:], sha256[:-1]))
    first, group = np.flatnonzero(starts), np.cumsum(starts) - 1
    heads = rows.take(pa.array(first))
    walk = pc.sort_indices(heads, sort_keys=[(name, "ascending") for name in ("uid", "uri", "key", "position")]).to_numpy()
    rank = np.empty(len(first), np.int64)
    rank[walk] = np.arange(len(first))

    table = known.rows.combine_chunks()
    match = pc.index_in(sha256, value_set=_column(table, "sha256"))
    same = {name: _mask(pc.equal(_column(rows, name), _column(table, name).take(match))) for name in ("uid", "key", "shard", "uri")}
    own = _first_of_group(same["uid"] & same["key"] & same["shard"], group, len(first))
    old = _first_of_group(same["uid"] & same["key"] & same["uri"], group, len(first))
    old[own >= 0] = -1  # the row has one origin only
    row = pc.fill_null(_column(table, "row").take(match.take(pa.array(first))), -1).to_numpy(zero_copy_only=False)
    phash = pc.fill_null(_column(heads, "phash"), 0).to_numpy(zero_copy_only=False)
    return _Images(group, first, rank, _column(heads, "sha256"), phash, row, own, old)


def _near(
    images: _Images, walking: NDArray[np.bool_], table: NDArray[np.uint64], threshold: int
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """[I] what stands for each image (a row of the table, its size + an image, −1 for nothing), and at which distance."""
    own = images.own >= 0
    phash = images.phash.copy()
    phash[own] = table[images.row[own]]
    part = np.flatnonzero((walking | own) & hamming.usable(phash))
    part = part[np.argsort(images.rank[part])]
    others = hamming.usable(table)
    others[images.row[own]] = False
    near = walk(phash[part], own[part], table, others, threshold)
    new = len(table) + np.arange(len(own))
    code = np.where(own, images.row, new)[part]  # of each image if it stands for others
    stands, distance = np.full(len(own), -1, np.int64), np.full(len(own), -1, np.int8)
    stands[part] = np.where(near.row >= 0, near.row, np.where(near.image >= 0, code[near.image], -1))
    distance[part] = near.distance
    return stands, distance


def _uids(codes: NDArray[np.int64], rows: pa.Table, images: _Images, known: Known) -> pa.Array:
    """The uids of rows of the table (codes below its size) and of images of this ingest; ascending codes."""
    size = len(known.hashes)
    table, new = codes[codes < size], codes[codes >= size] - size
    place = pc.index_in(pa.array(table), value_set=_column(known.rows, "row"))
    uids = _column(known.rows, "uid").take(place)
    if place.null_count:
        missing = _mask(place.is_null())
        uids = pc.replace_with_mask(uids, pa.array(missing), _column(known.details(table[missing]), "uid"))
    return pa.concat_arrays([uids, _column(rows, "uid").take(pa.array(images.first[new]))])


def _placeholders(
    rows: pa.Table,
    fate: NDArray[np.int8],
    place: NDArray[np.int64],
    codes: NDArray[np.int64],
    uids: pa.Array,
    images: _Images,
    known: Known,
    rule: PlaceholderConfig,
) -> tuple[list[PlaceholderClass], NDArray[np.int64]]:
    """The classes of placeholders among the clusters of the walk, and for each row its class or −1.

    Args:
        rows: the candidates, sorted.
        fate: [R] so far.
        place: [R] which of the codes stands for the row.
        codes: [K] of what stands for images: rows of the table, or its size + an image.
        uids: [K] of them.
        images: the candidates as images.
        known: the table.
        rule: what makes a placeholder.
    """
    size = len(known.hashes)
    counted = np.flatnonzero(np.isin(fate, (Fate.ADDED, Fate.DUPLICATE, Fate.NEAR_DUPLICATE)))
    used, member = np.unique(place[counted], return_inverse=True)
    at = pa.array(counted)
    clusters = Clusters(
        member=member,
        captions=_column(rows, "caption_hash").take(at).to_numpy(),
        uids=_column(rows, "uid").take(at),
        in_table=codes[used] < size,
        survivors=uids.take(pa.array(used)),
    )
    old = clusters.survivors.filter(pa.array(clusters.in_table))
    earlier = known.copies(old) if len(old) else COPIES.empty_table()
    copies = placeholders.copies_of(clusters, earlier)
    chosen = np.flatnonzero(copies >= rule.min_copies)
    stands = codes[used[chosen]]
    details = known.details(stands[stands < size]) if (stands < size).any() else DETAILS.empty_table()
    captions = placeholders.captions_of(clusters, chosen, details["caption_hash"].to_numpy(), earlier)

    found: list[PlaceholderClass] = []
    class_of = np.full(len(codes), -1, np.int64)
    sha256 = iter(details["sha256"].to_pylist())
    for index, code in enumerate(stands.tolist()):
        old_sha256 = next(sha256) if code < size else None
        if placeholders.are_placeholders(copies[chosen[index]], captions[index], rule):
            image, phash = (
                (old_sha256, known.hashes[code]) if old_sha256 else (images.sha256[code - size].as_py(), images.phash[code - size])
            )
            row = clusters.survivors[int(chosen[index])].as_py() if old_sha256 else None
            class_of[used[chosen[index]]] = len(found)
            found.append(PlaceholderClass(name_of(image, int(phash)), int(copies[chosen[index]]), int(captions[index]), row))
    return found, class_of[place]


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return (
        column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    )


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    return pc.fill_null(array, False).to_numpy(zero_copy_only=False)


def _first_of_group(mask: NDArray[np.bool_], group: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """[groups] index of the first true entry of each group, −1 if it has none."""
    chosen = np.flatnonzero(mask)
    found, index = np.unique(group[chosen], return_index=True)
    first = np.full(groups, -1, np.int64)
    first[found] = chosen[index]
    return first
