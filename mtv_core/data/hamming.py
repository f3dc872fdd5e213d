"""Near neighbours among 64-bit hashes, in NumPy: all pairs within a Hamming distance, without looking at all pairs.

Of t + k disjoint blocks of bits, at least k are equal in any two hashes at distance ≤ t (pigeonhole). So for every choice of k blocks the
hashes that agree there are brought together by a table, and only those are compared: multi-index hashing (Norouzi, Punjani and Fleet 2012),
with the k that costs least for the data at hand. Memory is bounded by the inputs, `MAX_PAIRS` and one table, whatever the clusters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices, NDArray[np.uint8]]  # index of a query, index in the base, distance

MAX_PAIRS = 1 << 21  # looked at or held at once
_CHUNK = 1 << 18  # of the larger side: 2 MB, which stays in the cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hashing: the top bits of the product depend on all bits of the key
_MAX_TABLE_BITS = 22
# Nanoseconds, measured on one core: for weighing plans against each other only.
_BRUTE_NS, _STREAM_NS, _BUILD_NS, _PAIR_NS = 1.3, 12.0, 120.0, 14.0
_SAMPLE = 1024


@dataclass(frozen=True)
class _Plan:
    """How a search is done: which blocks have to agree; none means that every pair is compared."""

    blocks: tuple[int, ...]  # masks of all blocks
    agree: int  # how many of them have to


def usable(hashes: Hashes) -> NDArray[np.bool_]:
    """Which hashes tell pictures apart.

    About half of the bits of a perceptual hash are set, by its construction. One with nearly none or nearly all is of a picture without
    structure (one colour, a rule): its bits are ties and rounding, and it is near to every other such picture.
    """
    bits = np.bitwise_count(hashes)
    return (bits >= 12) & (bits <= 52)


def scattered(hashes: Hashes) -> Hashes:
    """Other numbers for them, one to one: their order is as good as chance, and always the same."""
    return hashes * _GOLDEN


def search(queries: Hashes, base: Hashes, threshold: int, agree: int | None = None) -> Iterator[Pairs]:
    """All pairs of a query and a base hash at distance ≤ `threshold`, each once, at most `MAX_PAIRS` at a time, in no order.

    The slow truth: `[(q, b, d) for q in … for b in … if (d := (queries[q] ^ base[b]).bit_count()) <= threshold]`.

    Args:
        queries: [Q]
        base: [N]; repeated hashes are allowed on both sides, but cost as many pairs: collapse them first.
        threshold: 0–64 bits.
        agree: forces the number of blocks that have to agree (0: compare all pairs); for tests.
    """
    if not len(queries) or not len(base):
        return
    if len(queries) > len(base):
        for right, left, distance in search(base, queries, threshold, agree):
            yield left, right, distance
        return
    plan = _plan(queries, base, threshold, agree)
    if not plan.agree:
        yield from _brute(queries, base, threshold)
        return
    for chosen in itertools.combinations(range(len(plan.blocks)), plan.agree):
        mask = np.uint64(sum(plan.blocks[block] for block in chosen))
        # A pair that agrees in more blocks is met by several choices: the first of them reports it.
        earlier = [np.uint64(plan.blocks[block]) for block in range(chosen[-1]) if block not in chosen]
        for left, right in _agreeing(queries, base, mask):
            difference = queries[left] ^ base[right]
            distance = np.bitwise_count(difference)
            found = np.flatnonzero(distance <= threshold)
            difference = difference[found]
            first = (difference & mask) == 0  # else two keys that share a place in the table
            for block in earlier:
                first &= (difference & block) != 0
            found = found[first]
            if len(found):
                yield left[found], right[found], distance[found]


def nearest(queries: Hashes, base: Hashes, threshold: int, before: Indices | None = None) -> tuple[Indices, NDArray[np.int8]]:
    """For each query the nearest base hash within `threshold`, of equally near ones the first; index −1 and distance −1 if there is none.

    Args:
        queries: [Q]
        base: [N], N < 2³²
        threshold: bits
        before: [Q], only base[: before[q]] is looked at for query q.
    """
    none = np.iinfo(np.int64).max
    best = np.full(len(queries), none)
    for left, right, distance in search(queries, base, threshold):
        if before is not None:
            allowed = right < before[left]
            left, right, distance = left[allowed], right[allowed], distance[allowed]
        np.minimum.at(best, left, distance.astype(np.int64) << 32 | right)
    found = best != none
    return np.where(found, best & 0xFFFFFFFF, -1), np.where(found, best >> 32, -1).astype(np.int8)


def greedy(hashes: Hashes, threshold: int, max_edges: int = 16 * MAX_PAIRS) -> NDArray[np.bool_]:
    """Which hashes the walk keeps that takes them in order and skips each that is within `threshold` of one it kept.

    The slow truth is that walk, n²/2 comparisons. Here the pairs within the threshold are found first and walked over; where a stretch has
    more than `max_edges` of them (a cluster), its first half is decided, what is near to its kept goes, then the second half is.
    """
    kept = np.ones(len(hashes), bool)
    stretches = [(0, len(hashes))]
    while stretches:
        start, stop = stretches.pop()
        alive = start + np.flatnonzero(kept[start:stop])
        edges = _edges(hashes[alive], threshold, max_edges)
        if edges is not None:
            kept[alive] = _walk(len(alive), *edges)
            # What comes later has not seen these yet.
            survivors = alive[kept[alive]]
            later = stop + np.flatnonzero(kept[stop:])
            if len(later) and len(survivors):
                index, _ = nearest(hashes[later], hashes[survivors], threshold)
                kept[later[index >= 0]] = False
        else:
            middle = int(alive[len(alive) // 2])
            stretches += [(middle, stop), (start, middle)]
    return kept


def _walk(number: int, earlier: Indices, later: Indices) -> NDArray[np.bool_]:
    """The greedy walk over its edges: whoever is later goes if the earlier one stays."""
    kept = bytearray(b"\1" * number)
    order = np.argsort(later, kind="stable")  # when a node is looked at, those before it are decided
    for first, second in zip(earlier[order].tolist(), later[order].tolist(), strict=True):
        if kept[first]:
            kept[second] = 0
    return np.frombuffer(kept, bool)


def _edges(hashes: Hashes, threshold: int, max_edges: int) -> tuple[Indices, Indices] | None:
    """All (earlier, later) within the threshold; None if they are more than `max_edges`, unless that is all of two hashes."""
    earlier: list[Indices] = []
    later: list[Indices] = []
    number = 0
    for left, right, _ in search(hashes, hashes, threshold):
        forward = left < right
        earlier.append(left[forward])
        later.append(right[forward])
        number += len(later[-1])
        if number > max_edges and len(hashes) > 2:
            return None
    return np.concatenate(earlier or [np.zeros(0, np.int64)]), np.concatenate(later or [np.zeros(0, np.int64)])


def _blocks(number: int) -> tuple[int, ...]:
    """Masks of `number` blocks of bits, as equal as can be. Every n-th bit is one block: neighbouring bits depend on each other most."""
    return tuple(sum(1 << bit for bit in range(block, 64, number)) for block in range(number))


def _plan(small: Hashes, large: Hashes, threshold: int, agree: int | None) -> _Plan:
    """The cheapest way, by the number of passes and of pairs that agree by chance, which is estimated from a sample."""
    if agree is not None:
        return _Plan(_blocks(threshold + agree), agree)
    pairs = float(len(small)) * len(large)
    best, cost = _Plan((), 0), pairs * _BRUTE_NS
    if pairs < 1e7:
        return best
    left, right = (side[:: max(1, len(side) // _SAMPLE)][:_SAMPLE] for side in (small, large))
    difference = left[:, None] ^ right[None, :]
    for k in range(1, 6):
        if threshold + k > 32:
            break
        blocks = _blocks(threshold + k)
        equal = np.zeros(difference.shape, np.uint8)
        for block in blocks:
            equal += (difference & np.uint64(block)) == 0
        counts = np.bincount(equal.ravel(), minlength=k + 1)
        passes = math.comb(threshold + k, k)
        by_sample = sum(math.comb(number, k) * int(count) for number, count in enumerate(counts)) / difference.size
        by_chance = passes * 2.0 ** (-64 * k / (threshold + k))
        this = passes * (len(large) * _STREAM_NS + len(small) * _BUILD_NS) + pairs * max(by_sample, by_chance) * _PAIR_NS
        if this < cost:
            best, cost = _Plan(blocks, k), this
    return best


def _brute(queries: Hashes, base: Hashes, threshold: int) -> Iterator[Pairs]:
    rows = max(1, _CHUNK // len(queries))
    for start in range(0, len(base), rows):
        distance = np.bitwise_count(base[start : start + rows, None] ^ queries[None, :])
        right, left = np.nonzero(distance <= threshold)
        if len(left):
            yield left, right + start, distance[right, left]


def _agreeing(small: Hashes, large: Hashes, mask: np.uint64) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of indices whose hashes are equal under the mask, and some that are not."""
    bits = max(1, min(_MAX_TABLE_BITS, len(small).bit_length() + 2))
    shift = np.uint64(64 - bits)
    keys = ((small & mask) * _GOLDEN >> shift).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    starts = np.zeros((1 << bits) + 1, np.int64)
    np.cumsum(np.bincount(keys, minlength=1 << bits), out=starts[1:])
    for offset in range(0, len(large), _CHUNK):
        places = ((large[offset : offset + _CHUNK] & mask) * _GOLDEN >> shift).astype(np.int64)
        first = starts[places]
        number = starts[places + 1] - first
        hit = np.flatnonzero(number)
        if len(hit):
            for which, position in _expand(first[hit], number[hit]):
                yield order[position], hit[which] + offset


def _expand(first: Indices, number: Indices) -> Iterator[tuple[Indices, Indices]]:
    """(i, first[i] + j) for all j < number[i], at most `MAX_PAIRS` at a time."""
    stop = np.cumsum(number)
    start = stop - number
    for low in range(0, int(stop[-1]), MAX_PAIRS):
        high = min(low + MAX_PAIRS, int(stop[-1]))
        inside = np.arange(np.searchsorted(stop, low, "right"), np.searchsorted(start, high, "left"))
        begin, end = np.maximum(start[inside], low), np.minimum(stop[inside], high)
        which = np.repeat(inside, end - begin)
        yield which, np.arange(low, high) + (first - start)[which]
