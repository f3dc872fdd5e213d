"""The search against comparing everything with everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.data import hamming
from mtv_core.data.hamming import Hashes, greedy, nearest, search, usable


def hashes(values: list[int]) -> Hashes:
    return np.array(values, np.uint64)


# Few centres and few flipped bits, so that there are clusters, chains and ties.
bit = st.integers(0, 63).map(lambda place: 1 << place)
near = st.tuples(st.sampled_from([0x0F1E2D3C4B5A6978, 0x0F1E2D3C4B5A6978 ^ 0x11, 0xF0F0F0F0F0F0F0F0]), st.lists(bit, max_size=5)).map(
    lambda drawn: int(np.bitwise_xor.reduce(np.array([drawn[0], *drawn[1]], np.uint64)))
)
universe = st.lists(st.one_of(near, st.integers(0, 2**64 - 1)), max_size=40).map(hashes)


def slow_search(queries: Hashes, base: Hashes, threshold: int) -> list[tuple[int, int, int]]:
    return sorted(
        (i, j, distance)
        for i, a in enumerate(queries.tolist())
        for j, b in enumerate(base.tolist())
        if (distance := (a ^ b).bit_count()) <= threshold
    )


def slow_greedy(values: Hashes, threshold: int) -> list[bool]:
    kept: list[int] = []
    fates = []
    for value in values.tolist():
        stays = all((value ^ other).bit_count() > threshold for other in kept)
        fates.append(stays)
        kept += [value] * stays
    return fates


@given(universe, universe, st.integers(0, 7), st.sampled_from([None, 0, 1, 2, 3]))
@settings(max_examples=200, deadline=None)
def test_search_finds_every_pair_once(queries: Hashes, base: Hashes, threshold: int, agree: int | None) -> None:
    found = [tuple(map(int, pair)) for batch in search(queries, base, threshold, agree) for pair in zip(*batch, strict=True)]
    assert sorted(found) == slow_search(queries, base, threshold)


@given(universe, universe, st.integers(0, 7), st.data())
@settings(max_examples=100, deadline=None)
def test_nearest_prefers_the_near_then_the_first(queries: Hashes, base: Hashes, threshold: int, data: st.DataObject) -> None:
    limits = st.none() | st.lists(st.integers(0, len(base)), min_size=len(queries), max_size=len(queries))
    before = data.draw(limits)
    index, distance = nearest(queries, base, threshold, None if before is None else np.array(before, np.int64))
    pairs = slow_search(queries, base, threshold)
    for i in range(len(queries)):
        best = min(((d, j) for q, j, d in pairs if q == i and (before is None or j < before[i])), default=(-1, -1))
        assert (distance[i], index[i]) == best


@given(universe, st.integers(0, 7), st.sampled_from([1, 5, 10**6]))
@settings(max_examples=200, deadline=None)
def test_greedy_is_the_walk(values: Hashes, threshold: int, max_edges: int) -> None:
    assert greedy(values, threshold, max_edges).tolist() == slow_greedy(values, threshold)


def clustered(rng: np.random.Generator, number: int) -> Hashes:
    centres = rng.integers(0, 2**64, 1 + number // 20, dtype=np.uint64)
    values = centres[rng.integers(0, len(centres), number)]
    for _ in range(4):
        values ^= np.uint64(1) << rng.integers(0, 64, number, dtype=np.uint64)
    return values


@pytest.mark.parametrize("threshold", [3, 4, 8])
def test_many_hashes(threshold: int) -> None:
    """Large enough for tables of every size, and for a plan chosen by cost."""
    rng = np.random.default_rng(threshold)
    base, queries = clustered(rng, 20_000), clustered(rng, 2_000)
    queries[:1000] = base[:1000] ^ (np.uint64(1) << rng.integers(0, 64, 1000, dtype=np.uint64))
    assert hamming._plan(queries, base, threshold, None).agree > 0
    distance = np.bitwise_count(queries[:, None] ^ base[None, :])
    left, right, found = (np.concatenate(part) for part in zip(*search(queries, base, threshold), strict=True))
    truth = np.argwhere(distance <= threshold)
    order = np.lexsort((right, left))
    np.testing.assert_array_equal(np.stack([left, right], 1)[order], truth)
    np.testing.assert_array_equal(found[order], distance[tuple(truth.T)])


def test_one_huge_cluster_is_cut_into_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = np.full(3000, rng.integers(0, 2**64, dtype=np.uint64))
    for _ in range(3):
        values ^= np.uint64(1) << rng.integers(0, 64, len(values), dtype=np.uint64)
    monkeypatch.setattr(hamming, "MAX_PAIRS", 1000)
    assert greedy(values, 4, max_edges=5000).tolist() == slow_greedy(values, 4)
    assert max(len(batch[0]) for batch in search(values, values, 2, agree=2)) <= 1000


def test_pictures_without_structure_have_no_usable_hash() -> None:
    assert usable(hashes([0, 1, 2**64 - 1, 0xFF, 0xAAAAAAAAAAAAAAAA, 0x0F1E2D3C4B5A6978])).tolist() == [False] * 4 + [True] * 2
    random = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    assert usable(random).all()
