"""`decide` against the loop it replaces."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.data.dedup import CANDIDATES, KNOWN, Fate, decide

Row = dict[str, Any]


def slow_truth(candidates: list[Row], known: list[Row]) -> list[tuple[Fate, str]]:
    table = {row["sha256"]: row for row in known}
    verdict: dict[int, tuple[Fate, str]] = {}
    order = sorted(range(len(candidates)), key=lambda i: [candidates[i][name] for name in ("uid", "uri", "key", "position")])
    kept: dict[str, str] = {}
    for i in order:
        row = candidates[i]
        there = table.get(row["sha256"])
        if there is None:
            verdict[i] = (Fate.DUPLICATE if row["sha256"] in kept else Fate.ADDED, kept.setdefault(row["sha256"], row["uid"]))
            continue
        verdict[i] = (Fate.DUPLICATE, there["uid"])
        for fate, name in ((Fate.PUBLISHED, "shard"), (Fate.AGAIN, "uri")):
            mine = [j for j in order if all(candidates[j][k] == there[k] for k in ("sha256", "uid", "key", name))]
            if mine:
                if mine[0] == i:
                    verdict[i] = (fate, there["uid"])
                break
    return [verdict[i] for i in range(len(candidates))]


def row(image: int, caption: int, key: int, shard: int, position: int) -> Row:
    # Two shards of one URI: a file before and after it changed.
    uid = f"{(image * 7 + caption * 3) % 10}-{image}"
    return {"uid": uid, "sha256": f"s{image}", "key": f"k{key}", "shard": f"i{shard}", "uri": f"u{shard // 2}", "position": position}


rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 2), st.integers(0, 3)), max_size=25)


@given(rows, rows)
@settings(max_examples=150, deadline=None)
def test_same_as_the_loop(staged: list[tuple[int, ...]], table: list[tuple[int, ...]]) -> None:
    candidates = [row(*values, position) for position, values in enumerate(staged)]
    known = [{k: v for k, v in row(*values, 0).items() if k != "position"} for values in {values[0]: values for values in table}.values()]
    verdict = decide(pa.Table.from_pylist(candidates, schema=CANDIDATES), pa.Table.from_pylist(known, schema=KNOWN))
    found = [(Fate(fate), uid) for fate, uid in zip(verdict.fate.tolist(), verdict.survivor.to_pylist(), strict=True)]
    assert found == slow_truth(candidates, known)


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_shards_does_not_matter(staged: list[tuple[int, ...]], random: Any) -> None:
    candidates = [row(*values, position) for position, values in enumerate(staged)]

    def kept(order: list[Row]) -> set[tuple[str, int]]:
        verdict = decide(pa.Table.from_pylist(order, schema=CANDIDATES), KNOWN.empty_table())
        return {(r["uid"], r["position"]) for r, fate in zip(order, verdict.fate, strict=True) if fate == Fate.ADDED}

    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert kept(shuffled) == kept(candidates)
    assert len(kept(candidates)) == len({r["sha256"] for r in candidates})
