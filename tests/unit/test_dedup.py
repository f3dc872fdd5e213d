"""`decide` against the walk it replaces."""

from __future__ import annotations

import itertools
import random as randoms
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.data.dedup import CANDIDATES, COPIES, DETAILS, KNOWN, Fate, Nothing, Verdict, decide
from mtv_core.data.dedup_config import DedupConfig, PlaceholderConfig
from mtv_core.data.hamming import usable
from mtv_core.data.placeholders import name_of, parse

Row = dict[str, Any]
WALK = ("uid", "uri", "key", "position")
CENTRE = 0x0F1E2D3C4B5A6978
# Of each image: a chain (0–1–2–3, two bits each), ties (4 is as far from 0 as from 2), equal hashes (5 and 6), one far away, two of no use.
HASHES = [CENTRE ^ bits for bits in (0b0, 0b11, 0b1111, 0b111111, 0b10010, 0xFF00, 0xFF00, 0xFFFF0000, CENTRE, CENTRE)]
CAPTIONS = 4
OLD = 3  # a shard that was staged by a version that made other hashes


def row(image: int, caption: int, key: int, shard: int, position: int, salt: int = 0) -> Row:
    # Two shards of one URI: a file before and after it changed.
    uid = f"{randoms.Random(f'{salt} {image} {caption}').randrange(100):02}-{image}-{caption}"
    return {
        "uid": uid,
        "sha256": f"{image:02x}",
        "phash": HASHES[image] ^ (1 << 40 if shard == OLD and HASHES[image] else 0),
        "caption_hash": caption,
        "key": f"k{key}",
        "shard": f"i{shard}",
        "uri": f"u{shard // 2}",
        "position": position,
    }


def known(rows: list[Row], copies: list[Row] | None = None, classes: list[str] | None = None) -> Nothing:
    """A table in memory. The rows are asked for without those that no candidate's image matches, so they are shuffled here."""
    found = [{**r, "row": number} for number, r in enumerate(rows)]
    return Nothing(
        rows=pa.Table.from_pylist([{name: r[name] for name in KNOWN.names} for r in reversed(found)], schema=KNOWN),
        hashes=np.array([r["phash"] for r in rows], np.uint64),
        placeholders=parse(classes or []),
        all_details=pa.Table.from_pylist([{name: r[name] for name in DETAILS.names} for r in rows], schema=DETAILS),
        all_copies=pa.Table.from_pylist(copies or [], schema=COPIES),
    )


def table_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=CANDIDATES)


def told(verdict: Verdict) -> list[tuple[Fate, str, int]]:
    return [
        (Fate(fate), survivor, distance)
        for fate, survivor, distance in zip(verdict.fate.tolist(), verdict.survivor.to_pylist(), verdict.distance.tolist(), strict=True)
    ]


def slow_truth(
    candidates: list[Row],
    table: list[Row],
    config: DedupConfig,
    leaks: dict[str, str] | None = None,
    copies: list[Row] | None = None,
    classes: list[str] | None = None,
) -> list[tuple[Fate, str, int]]:
    leaks, threshold = leaks or {}, config.near_threshold

    def apart(a: int, b: int) -> int | None:
        """The distance of two hashes if they are near."""
        distance = (a ^ b).bit_count()
        both = usable(np.array([a, b], np.uint64)).all()
        return distance if threshold is not None and both and distance <= threshold else None

    order = sorted(range(len(candidates)), key=lambda i: [candidates[i][name] for name in WALK])
    members: dict[str, list[int]] = {}
    for i in order:
        members.setdefault(candidates[i]["sha256"], []).append(i)
    there = {r["sha256"]: r for r in table}
    own: dict[str, int] = {}
    again: dict[str, int] = {}
    for image, rows in members.items():
        for found, name in ((own, "shard"), (again, "uri")):
            mine = [i for i in rows if image in there and all(candidates[i][k] == there[image][k] for k in ("uid", "key", name))]
            if mine and image not in own:
                found[image] = mine[0]
    phash = {image: there[image]["phash"] if image in own else candidates[rows[0]]["phash"] for image, rows in members.items()}

    kept: list[str] = []
    named: dict[int, tuple[str, int]] = {}  # hash → what stands for it, an image, and the distance
    fate: dict[str, tuple[Fate, str, int]] = {}  # image → …, the survivor is an image
    named_class: dict[str, str] = {}
    walk = list(members)
    for image in walk:
        if image in leaks:
            fate[image] = (Fate.LEAK, leaks[image], -1)
        elif config.placeholders and (name := its_class(image, candidates[members[image][0]]["phash"], classes or [], apart)):
            fate[image] = (Fate.PLACEHOLDER, name, -1)
            named_class[image] = name
        elif image in there:
            fate[image] = (Fate.DUPLICATE, image, -1)
        if image in fate and image not in own:
            continue
        value = phash[image]
        if not usable(np.array([value], np.uint64)).all():
            fate.setdefault(image, (Fate.ADDED, image, -1))
            continue
        if value not in named:
            rows = [
                (d, n, r["sha256"]) for n, r in enumerate(table) if r["sha256"] not in own and (d := apart(value, r["phash"])) is not None
            ]
            same = [other for other in walk if other in own and phash[other] == value]
            before = [(d, walk.index(k), k) for k in kept if (d := apart(value, phash[k])) is not None]
            ours = [(d, walk.index(k), k) for k in own if (d := apart(value, phash[k])) is not None]
            before += [one for one in ours if one[1] < walk.index(image)]
            if rows:
                named[value] = (min(rows)[2], min(rows)[0])
            elif same and threshold is not None:
                named[value] = (same[0], 0)
            elif before or ours:
                distance, _, survivor = min(before or ours)
                named[value] = (survivor, distance)
            elif threshold is not None:
                named[value] = (image, 0)
        if image in own:
            continue
        survivor, distance = named.get(value, (image, 0))
        fate[image] = (Fate.ADDED, image, -1) if survivor == image else (Fate.NEAR_DUPLICATE, survivor, distance)
        kept += [image] * (survivor == image)

    uid = {image: there[image]["uid"] if image in there else candidates[rows[0]]["uid"] for image, rows in members.items()}
    uid |= {image: r["uid"] for image, r in there.items()}
    verdict: list[Any] = [None] * len(candidates)
    cluster: dict[str, list[int]] = {}
    for image, rows in members.items():
        what, survivor, distance = fate[image]
        for i in rows:
            if i in (own.get(image), again.get(image)):
                verdict[i] = (Fate.PUBLISHED if i == own.get(image) else Fate.AGAIN, image, -1)
            elif what is Fate.ADDED and i != rows[0]:
                verdict[i] = (Fate.DUPLICATE, image, -1)
            else:
                verdict[i] = (what, survivor, distance)
            if verdict[i][0] in (Fate.ADDED, Fate.DUPLICATE, Fate.NEAR_DUPLICATE):
                cluster.setdefault(survivor, []).append(i)
    renamed: dict[str, str] = {}
    for survivor, rows in cluster.items() if config.placeholders else ():
        assert config.placeholders
        number, captions = len(rows), {candidates[i]["caption_hash"] for i in rows}
        uids = {candidates[i]["uid"] for i in rows}
        if survivor in there:
            number, captions, uids = number + 1, captions | {there[survivor]["caption_hash"]}, uids | {uid[survivor]}
        earlier = [r for r in copies or [] if survivor in there and r["survivor"] == uid[survivor]]
        different = len(captions) + len({r["uid"] for r in earlier} - uids)
        number += sum(r["copies"] for r in earlier)
        if number >= config.placeholders.min_copies and different > config.placeholders.different * number:
            first = there[survivor] if survivor in there else candidates[members[survivor][0]]
            renamed[survivor] = name_of(survivor, first["phash"])
            for i in rows:
                verdict[i] = (Fate.PLACEHOLDER, survivor, -1)

    def named_in_full(one: tuple[Fate, str, int]) -> tuple[Fate, str, int]:
        what, survivor, distance = one
        name = {Fate.LEAK: survivor, Fate.PLACEHOLDER: renamed.get(survivor, survivor)}.get(what) or uid[survivor]
        return what, name, distance

    return [named_in_full(one) for one in verdict]


def its_class(image: str, phash: int, classes: list[str], apart: Any) -> str | None:
    found = sorted(zip(parse(classes).to_pylist(), range(len(classes)), strict=True), key=lambda one: one[1])
    same = [one["name"] for one, _ in found if one["sha256"] == image]
    near = [(d, place, one["name"]) for one, place in found if (d := apart(phash, one["phash"])) is not None]
    return same[0] if same else min(near)[2] if near else None


images = st.integers(0, len(HASHES) - 1)
salts = st.integers(0, 1000)  # which order the uids have


def row_lists(shards: list[int]) -> st.SearchStrategy[list[tuple[int, ...]]]:
    def of(some: set[int]) -> st.SearchStrategy[list[tuple[int, ...]]]:
        one = st.tuples(st.sampled_from(sorted(some)), st.integers(0, CAPTIONS - 1), st.integers(0, 2), st.sampled_from(shards))
        return st.lists(one, max_size=20)

    return st.sets(images, min_size=1, max_size=5).flatmap(of)


rows, plain_rows = row_lists([0, 1, 2, OLD]), row_lists([0, 1, 2])
configs = st.builds(
    DedupConfig,
    near_threshold=st.sampled_from([4, 4, 2, 3, 0, None]),
    placeholders=st.none() | st.builds(PlaceholderConfig, min_copies=st.integers(2, 6), different=st.sampled_from([0.0, 0.5, 0.9])),
)


def staged_rows(values: list[tuple[int, ...]], salt: int) -> list[Row]:
    return [row(image, caption, key, shard, position, salt) for position, (image, caption, key, shard) in enumerate(values)]


def table_rows(values: list[tuple[int, ...]], salt: int) -> list[Row]:
    return [row(*one, 0, salt) for one in {one[0]: one for one in values}.values()]


@given(rows, st.just([]) | rows, salts, configs, st.data())
@settings(max_examples=300, deadline=None)
def test_same_as_the_walk(
    staged: list[tuple[int, ...]], table: list[tuple[int, ...]], salt: int, config: DedupConfig, data: st.DataObject
) -> None:
    candidates, there = staged_rows(staged, salt), table_rows(table, salt)
    some_images = st.sets(images, max_size=2)
    leaks = {f"{image:02x}": f"set/{image}" for image in data.draw(some_images, "leaks")}
    classes = [name_of(f"{image:02x}", HASHES[image]) for image in sorted(data.draw(some_images, "placeholders"))]
    copies = [
        {"survivor": r["uid"], "uid": f"{r['uid'][:-1]}{caption}", "copies": data.draw(st.integers(1, 3))}
        for r in there
        for caption in data.draw(st.sets(st.integers(0, CAPTIONS - 1), max_size=2), "copies")
    ]
    verdict = decide(
        table_of(candidates), known(there, copies, classes), config, pa.array([leaks.get(r["sha256"]) for r in candidates], pa.string())
    )
    assert told(verdict) == slow_truth(candidates, there, config, leaks, copies, classes)


@given(plain_rows, plain_rows, salts, configs, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_neither_order_nor_shards_matter(
    staged: list[tuple[int, ...]], table: list[tuple[int, ...]], salt: int, config: DedupConfig, random: randoms.Random
) -> None:
    there = [{**r, "shard": "earlier", "uri": "elsewhere"} for r in table_rows(table, salt)]

    def fates(candidates: list[Row]) -> Counter[tuple[str, Fate, str]]:
        found = told(decide(table_of(candidates), known(there), config))
        return Counter((r["uid"], fate, survivor) for r, (fate, survivor, _) in zip(candidates, found, strict=True))

    candidates = staged_rows(staged, salt)
    other = [{**r, "shard": f"s{n}", "uri": f"s{n}", "key": f"k{random.random()}"} for r in candidates for n in [random.randrange(5)]]
    random.shuffle(other)
    assert fates(other) == fates(candidates)


@given(row_lists([0, 2]), st.just([]) | rows, salts, configs)
@settings(max_examples=300, deadline=None)
def test_killed_before_the_ledger_and_run_again(
    staged: list[tuple[int, ...]], table: list[tuple[int, ...]], salt: int, config: DedupConfig
) -> None:
    """The rows are in the table, the ledger does not know: the same fates and survivors, and nothing is added again."""
    candidates = [{**r, "key": f"k{r['position']}"} for r in staged_rows(staged, salt)]  # keys of a shard are unique
    there = [{**r, "shard": f"{r['shard']} then"} for r in table_rows(table, salt)]
    first = told(decide(table_of(candidates), known(there), config))
    published = there + [r for r, (fate, _, _) in zip(candidates, first, strict=True) if fate is Fate.ADDED]
    again = told(decide(table_of(candidates), known(published), config))
    assert again == [(Fate.PUBLISHED if fate is Fate.ADDED else fate, survivor, distance) for fate, survivor, distance in first]


@pytest.mark.parametrize("threshold", [2, 4])
def test_every_order_of_a_chain(threshold: int) -> None:
    """Which of the five are kept, and what the others are called after, depends on the order; running again must not change it."""
    config = DedupConfig(near_threshold=threshold)
    for order in itertools.permutations(range(5)):
        candidates = [{**row(image, 0, image, 0, image), "uid": f"{place}"} for place, image in enumerate(order)]
        first = told(decide(table_of(candidates), Nothing(), config))
        assert first == slow_truth(candidates, [], config)
        published = [r for r, (fate, _, _) in zip(candidates, first, strict=True) if fate is Fate.ADDED]
        again = told(decide(table_of(candidates), known(published), config))
        assert again == [(Fate.PUBLISHED if fate is Fate.ADDED else fate, survivor, distance) for fate, survivor, distance in first]
        assert again == slow_truth(candidates, published, config)


@pytest.mark.parametrize("threshold", [0, 2, 4])
def test_rows_of_ones_own_stay_wherever_they_stand(threshold: int) -> None:
    """Published under another configuration, with other hashes: rows that this walk would not have kept, the last ones of it."""
    config = DedupConfig(near_threshold=threshold)
    for order in itertools.permutations((0, 1, 2, 5, 6)):
        candidates = [{**row(image, 0, image, 0, image), "uid": f"{place}"} for place, image in enumerate(order)]
        for published in (candidates[3:], [{**r, "phash": r["phash"] ^ 1 << 40} for r in candidates[4:]]):
            found = told(decide(table_of(candidates), known(published), config))
            assert found == slow_truth(candidates, published, config)
            assert all(fate is Fate.PUBLISHED for fate, _, _ in found[5 - len(published) :])


@given(plain_rows, salts, configs)
@settings(max_examples=200, deadline=None)
def test_what_is_kept_is_apart_and_what_goes_has_a_survivor(staged: list[tuple[int, ...]], salt: int, config: DedupConfig) -> None:
    candidates = staged_rows(staged, salt)
    found = told(decide(table_of(candidates), Nothing(), config))
    kept = {r["uid"]: r for r, (fate, _, _) in zip(candidates, found, strict=True) if fate is Fate.ADDED}
    assert len({r["sha256"] for r in kept.values()}) == len(kept)
    told_apart = [r for r in kept.values() if r["phash"] != 0]
    for a, b in itertools.combinations(told_apart, 2):
        assert config.near_threshold is None or (a["phash"] ^ b["phash"]).bit_count() > config.near_threshold
    for r, (fate, survivor, distance) in zip(candidates, found, strict=True):
        if fate is Fate.NEAR_DUPLICATE:
            assert (r["phash"] ^ kept[survivor]["phash"]).bit_count() == distance
        elif fate in (Fate.ADDED, Fate.DUPLICATE):
            assert kept[survivor]["sha256"] == r["sha256"]


def copies_of(image: int, number: int, captions: int) -> list[Row]:
    return [{**row(image, 0, 0, 0, n), "uid": f"{n:03}", "caption_hash": n % captions, "key": f"k{n}"} for n in range(number)]


@pytest.mark.parametrize(
    ("number", "captions", "expected"),
    [(20, 20, Fate.PLACEHOLDER), (19, 19, Fate.DUPLICATE), (40, 20, Fate.DUPLICATE), (40, 21, Fate.PLACEHOLDER), (500, 1, Fate.DUPLICATE)],
)
def test_many_copies_with_other_captions_are_placeholders(number: int, captions: int, expected: Fate) -> None:
    verdict = decide(table_of(copies_of(0, number, captions)), Nothing())
    assert set(verdict.fate.tolist()) == ({expected} if expected is Fate.PLACEHOLDER else {expected, Fate.ADDED})
    assert [(one.copies, one.captions, one.row) for one in verdict.placeholders] == [(number, captions, None)] * (
        expected is Fate.PLACEHOLDER
    )


def test_a_placeholder_is_known_in_later_ingests_by_the_name_in_the_refusals() -> None:
    first = decide(table_of(copies_of(0, 30, 30)), Nothing())
    later = [row(0, 1, 0, 2, 0), row(1, 2, 1, 2, 1), row(2, 0, 2, 2, 2), row(7, 0, 3, 2, 3)]  # itself, near, not near enough, another
    names = first.survivor.to_pylist()
    verdict = decide(table_of(later), known([], classes=names), DedupConfig(near_threshold=2))
    assert told(verdict)[:2] == [(Fate.PLACEHOLDER, names[0], -1)] * 2
    assert [fate for fate, _, _ in told(verdict)[2:]] == [Fate.ADDED] * 2
    off = decide(table_of(later), known([], classes=names), DedupConfig(near_threshold=2, placeholders=None))
    assert Fate.PLACEHOLDER not in off.fate


def test_a_placeholder_in_the_table_is_reported_and_stays() -> None:
    there = {**row(0, 0, 0, 0, 0), "uid": "there", "caption_hash": 1000}
    earlier = [{"survivor": "there", "uid": f"u{n}", "copies": 1} for n in range(10)]
    verdict = decide(table_of([{**r, "shard": "new", "uri": "new"} for r in copies_of(1, 9, 9)]), known([there], earlier))
    assert set(verdict.fate.tolist()) == {Fate.PLACEHOLDER}
    (found,) = verdict.placeholders
    assert (found.copies, found.captions, found.row, found.name) == (20, 20, "there", name_of("00", HASHES[0]))
    assert set(verdict.survivor.to_pylist()) == {found.name}
