"""Slices are those of the naive loop, whatever the layout: nested, fair, and the same on every rank."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from training_world import make_table, tiny_config

from mtv_core.config import resolve_config
from mtv_core.data.schema import SAMPLES, label_schema
from mtv_core.store import slices
from mtv_core.store.loader import Loader, Row
from mtv_core.store.slice_config import SliceConfig
from mtv_core.store.slices import check_where, known_schema
from mtv_core.store.table import Table
from mtv_core.store.view import View
from mtv_core.training import launch
from mtv_core.training.job import TrainJob
from tasks import train as train_stage

ROWS = 700
# Conditions in SQL and in pandas. A null meets none of them.
CONDITIONS: list[tuple[str | None, str]] = [
    (None, "index == index"),
    ("width >= 256", "width >= 256"),
    ("width >= 256 and source = 'b'", "width >= 256 and source == 'b'"),
    ("source = 'a' or width < 20", "source == 'a' or width < 20"),
    ("license = 'mit'", "license == 'mit'"),
    ("license <> 'mit'", "license == license and license != 'mit'"),
    ("width > 10 -- or not", "width > 10"),
    ("depth is not null", "depth == depth"),
    ("caption like 'row 1%'", "caption.str.startswith('row 1')"),
    ("width < 0", "width < 0"),
]


def rows(first: int, last: int) -> pa.Table:
    values = []
    for n in range(first, last):
        digest = hashlib.sha256(str(n).encode()).hexdigest()
        row: dict[str, Any] = {
            "uid": digest[:32], "image": b"x", "width": n % 512, "height": 1, "caption": f"row {n}", "captions": [], "caption_raw": "",
            "source": "abc"[n % 3], "shard": "t", "key": str(n), "sha256": digest, "ingest_id": "i",
            "license": [None, "mit", "cc"][n % 7 % 3],
            "split": "held_out" if n % 11 == 0 else "train",
        }  # fmt: skip
        values.append(row)
    return pa.Table.from_pylist(values, schema=SAMPLES)


def label(table: Table) -> None:
    """Depth for the rows with an odd number."""
    table.ensure_columns("depth")
    version = table.version
    staged = []
    for task in table.stale("depth", "r").fragments:
        keys = table.read_fragment(version, task.fragment_id, ["key"])["key"].to_pylist()
        depth = [b"d" if int(key) % 2 else None for key in keys]
        batch = pa.table({"depth": depth, "depth_rev": ["r"] * len(keys)}, schema=label_schema("depth"))
        staged.append(table.stage_labels("depth", version, task.fragment_id, batch))
    table.commit_labels(staged)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, View]:
    """The same rows in four layouts: in one piece, reversed in small ones, with deleted ones between, compacted and deleted again."""
    folder = tmp_path_factory.mktemp("layouts")
    everything = rows(0, ROWS)
    tables = {name: Table.create_or_open(str(folder / name)) for name in ("plain", "reversed", "deleted", "compacted")}
    tables["plain"].append(everything, 10_000)
    backwards = everything.take(list(range(ROWS))[::-1])
    for start in range(0, ROWS, 200):
        tables["reversed"].append(backwards.slice(start, 200), 60)
    for name in ("deleted", "compacted"):
        tables[name].append(rows(5000, 5003), 2)
        for start in (400, 0, 300):
            tables[name].append(pa.concat_tables([everything.slice(start, 100), rows(6000 + start, 6040 + start)]), 100)
        tables[name].append(everything.slice(100, 200), 70)
        tables[name].append(everything.slice(500), 1000)
        tables[name].dataset().delete("cast(key as int) >= 6000")
    tables["compacted"].dataset().optimize.compact_files(target_rows_per_fragment=150)
    for table in tables.values():
        label(table)
        table.dataset().delete("cast(key as int) >= 5000")
    return {name: Table.at(table.uri) for name, table in tables.items()}


@pytest.fixture(scope="module")
def frames(layouts: dict[str, View]) -> dict[str, pd.DataFrame]:
    return {name: view.dataset.to_table().to_pandas() for name, view in layouts.items()}


def naive(frame: pd.DataFrame, query: str, fraction: float, limit: int | None, split: str | None) -> list[int]:
    """The docstring of `select`, word by word."""
    kept = []
    inside = frame.query(query, engine="python").index
    for index, row in frame.sort_values("uid").iterrows():
        if index not in inside or (split is not None and row["split"] != split):
            continue
        if int(row["uid"], 16) / 2**128 >= fraction:
            continue
        kept.append(int(index))  # type: ignore[call-overload]
        if len(kept) == limit:
            break
    return sorted(kept)


def uids(view: View, part: SliceConfig, split: str | None = "train") -> list[str]:
    return view.take(view.indices(part, split), ["uid"])["uid"].to_pylist()


parts = st.builds(
    SliceConfig,
    where=st.sampled_from([sql for sql, _ in CONDITIONS]),
    fraction=st.floats(1e-3, 1.0),
    limit=st.none() | st.integers(1, 2 * ROWS),
)
LAYOUTS = st.sampled_from(["plain", "reversed", "deleted", "compacted"])


@settings(max_examples=60, deadline=None)
@given(LAYOUTS, st.sampled_from(CONDITIONS), st.floats(1e-3, 1.0), st.none() | st.integers(1, ROWS), st.sampled_from(["train", None]))
@example("compacted", CONDITIONS[0], 1.0, None, None)
def test_equal_to_the_naive_loop(
    layouts: dict[str, View],
    frames: dict[str, pd.DataFrame],
    layout: str,
    condition: tuple[str | None, str],
    fraction: float,
    limit: int | None,
    split: str | None,
) -> None:
    selection = layouts[layout].select(SliceConfig(where=condition[0], fraction=fraction, limit=limit), split)
    assert selection.indices.tolist() == naive(frames[layout], condition[1], fraction, limit, split)
    assert list(selection.counts.values())[-1] == len(selection.indices)


@settings(max_examples=40, deadline=None)
@given(parts)
def test_the_layout_does_not_matter(layouts: dict[str, View], part: SliceConfig) -> None:
    found = [sorted(uids(view, part)) for view in layouts.values()]
    assert found[0] == found[1] == found[2] == found[3]


@settings(max_examples=40, deadline=None)
@given(parts, parts)
def test_a_smaller_one_lies_inside_the_larger(layouts: dict[str, View], one: SliceConfig, other: SliceConfig) -> None:
    """Smaller in fraction, in limit, or in both, under the same condition."""
    large = SliceConfig(
        where=one.where, fraction=max(one.fraction, other.fraction), limit=one.limit and other.limit and max(one.limit, other.limit)
    )
    small_limit = min((limit for limit in (one.limit, other.limit) if limit is not None), default=None)
    small = SliceConfig(where=one.where, fraction=min(one.fraction, other.fraction), limit=small_limit)
    view = layouts["deleted"]
    assert set(uids(view, small)) <= set(uids(view, large))


def test_growth_leaves_a_fraction_where_it_was(tmp_path: Path) -> None:
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(rows(0, 400), 100)
    part = SliceConfig(fraction=0.3, where="source = 'a'")
    before = set(uids(Table.at(table.uri), part))
    table.append(rows(400, 900), 100)
    after = uids(Table.at(table.uri), part)
    old = {row["uid"] for row in rows(0, 400).to_pylist()}
    assert {uid for uid in after if uid in old} == before
    # Fewer of what came first may be left under a limit, never others.
    few = SliceConfig(limit=50)
    assert {uid for uid in uids(Table.at(table.uri), few) if uid in old} <= set(uids(Table.at(table.uri, version=1), few))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("where", [None, "width < 256"])
def test_a_fraction_is_fair(layouts: dict[str, View], fraction: float, where: str | None) -> None:
    view = layouts["plain"]
    total = len(view.indices(SliceConfig(where=where)))
    share = len(view.indices(SliceConfig(where=where, fraction=fraction)))
    assert abs(share - total * fraction) < 4 * math.sqrt(total * fraction * (1 - fraction)) + 1


def test_dropping_what_cannot_be_in_the_limit_changes_nothing(layouts: dict[str, View], monkeypatch: pytest.MonkeyPatch) -> None:
    part = SliceConfig(limit=37, where="width > 5")
    reference = layouts["reversed"].indices(part, "train").tolist()
    monkeypatch.setattr(slices, "_PRUNE", 10)
    scan = View.scan
    monkeypatch.setattr(View, "scan", lambda self, **options: scan(self, **{**options, "batch_size": 50}))
    assert layouts["reversed"].indices(part, "train").tolist() == reference


def test_uids_are_compared_to_the_last_bit() -> None:
    keys = slices._keys(pa.array(["x", "0" * 31 + "1", "8" + "0" * 31, "f" * 32, "8" + "0" * 30 + "1"]).slice(1))
    assert [int(high) << 64 | int(low) for high, low in keys] == [1, 2**127, 2**128 - 1, 2**127 + 1]
    assert slices._below(keys, 2**127).tolist() == [True, False, False, False]
    assert slices._below(keys, 2**127 + 1).tolist() == [True, True, False, False]
    assert SliceConfig(fraction=0.5).uid_bound == 2**127


def test_uids_that_begin_alike_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_PRUNE", 5)
    table = Table.create_or_open(str(tmp_path / "table"))
    order = [(n * 37) % 100 for n in range(100)]
    values = rows(0, 100).to_pylist()
    for row, place in zip(values, order, strict=True):
        row |= {"uid": f"{place // 60:016x}{place:016x}", "split": "train"}
    table.append(pa.Table.from_pylist(values, schema=SAMPLES), 7)
    for limit in (1, 20, 59, 60, 61, 99, 100, 101):
        found = Table.at(table.uri).indices(SliceConfig(limit=limit), "train")
        assert sorted(order[index] for index in found) == list(range(min(limit, 100)))


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("widht > 3", "No field named widht"),
        ("width", "does not return a boolean"),
        ("width >=", "Expected: an expression"),
        ("width > 1) or (width > 5", "brackets do not match"),  # Lance reads 'width > 1' and ignores the rest
        ("width > 3; drop table samples", "Expected"),
        ("width > 1 garbage", "Expected"),
        ("\"source\" <> 'a'", "backticks"),  # Lance takes "source" for a text: true for every row
        ("it's", "Unterminated"),
        ("width = 'many'", "could not convert"),
        ("random() < 0.5", "random says something else"),
        ("cast(now() as string) > 'a'", "now says something else"),
        ("_rowid < 100", "_rowid says something else"),
    ],
)
def test_a_bad_condition_is_said_with_the_columns(layouts: dict[str, View], where: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"It is SQL over the columns uid, image, width, .*depth_rev, for example") as raised:
        layouts["plain"].indices(SliceConfig(where=where))
    assert reason in str(raised.value)
    assert ".rs:" not in str(raised.value)


@pytest.mark.parametrize("where", ["100 / (width - width) > 1", "cast(source as int) > 3"])
def test_a_condition_that_fails_on_a_row_is_said(layouts: dict[str, View], where: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be used: .*(Divide by zero|Cannot cast string)"):
        layouts["plain"].indices(SliceConfig(where=where))


def test_words_in_texts_are_only_words() -> None:
    check_where("source = 'random() (' and caption <> 'now _rowid \"it\"'", known_schema())
    check_where("boxes is not null and array_length(phrases) > 2 and detection_rev = 'r1'", known_schema())
    with pytest.raises(ValueError, match="No field named boxes"):
        check_where("boxes is not null", SAMPLES)


@pytest.mark.parametrize("values", [{"fraction": 0}, {"fraction": 1.01}, {"limit": 0}, {"percent": 3}])
def test_a_slice_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        SliceConfig.model_validate(values)


def test_a_blank_condition_is_none() -> None:
    assert SliceConfig(where="  ").whole
    assert str(SliceConfig()) == "all rows"
    assert str(SliceConfig(where="width > 9", fraction=0.1, limit=3)) == "where width > 9, fraction 0.1, limit 3"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int, str | None]:
    return make_table(tmp_path_factory.mktemp("slice"), 30, held_out=3)


class TestTraining:
    PART = SliceConfig(where="cast(key as int) % 3 <> 1", fraction=0.9, limit=13)

    def loader(self, view: View, rank: int = 0, ranks: int = 1) -> Loader[list[Row]]:
        return Loader(view, list, global_batch=4, seed=5, part=self.PART, rank=rank, ranks=ranks)

    def test_exact_epochs_of_the_slice_on_any_number_of_ranks(self, table: tuple[str, int, str | None]) -> None:
        view = Table.at(table[0], tag=table[2])
        wanted = set(uids(view, self.PART))
        assert 4 <= len(wanted) <= 13
        assert not wanted & set(uids(view, SliceConfig(), "held_out"))
        whole = [[(row.uid, row.epoch) for row in batch] for batch in self.loader(view).batches(0, len(wanted))]
        seen = list(itertools.chain(*whole))
        for epoch in range(4):
            assert sorted(uid for uid, e in seen if e == epoch) == sorted(wanted)
        for ranks, first in ((2, 0), (4, 5)):
            shares = [list(self.loader(view, rank, ranks).batches(first, len(wanted))) for rank in range(ranks)]
            joined = [[(row.uid, row.epoch) for part in batch for row in part] for batch in zip(*shares, strict=True)]
            assert joined == whole[first:]

    def test_too_small_a_slice_is_said_with_counts(self, table: tuple[str, int, str | None]) -> None:
        view = Table.at(table[0], tag=table[2])
        empty = SliceConfig(where="width > 100", fraction=0.5)
        message = (
            r"train.data \(where width > 100, fraction 0.5\) leaves 0 rows to train on.* 30 rows, 27 of the split, 0 after where, 0 after"
        )
        with pytest.raises(ValueError, match=message):
            Loader(view, list, global_batch=2, seed=0, part=empty)
        with pytest.raises(ValueError, match=message):
            launch.preflight(self.job(table, data=empty.model_dump()))

    def job(self, table: tuple[str, int, str | None], **changes: object) -> TrainJob:
        return TrainJob(folder=Path("unused"), table_uri=table[0], version=table[1] + 0, tag=None, config=tiny_config(**changes))

    def test_preflight_looks_at_the_rows_of_the_slice(self, table: tuple[str, int, str | None]) -> None:
        view = Table.at(table[0], tag=table[2])
        table = (view.uri, view.version, None)
        launch.preflight(self.job(table, data={"where": "depth is not null"}))
        with pytest.raises(ValueError, match=r"no training row .* has a label of the depth expert"):
            launch.preflight(self.job(table, data={"where": "depth is null"}))
        with pytest.raises(ValueError, match="No field named depht"):
            launch.preflight(self.job(table, data={"where": "depht is null"}))

    def test_the_slice_is_part_of_what_a_run_goes_on_from(self, table: tuple[str, int, str | None]) -> None:
        one, other = self.job(table), self.job(table, data={"fraction": 0.5})
        assert one.fingerprint != other.fingerprint
        assert other.fingerprint["config.data"] == {"where": None, "fraction": 0.5, "limit": None}

    def test_a_bad_condition_stops_the_run_before_its_first_stage(self, tmp_path: Path, table: tuple[str, int, str | None]) -> None:
        def config(uri: str, where: str) -> Any:
            return resolve_config("demo", {"table": {"uri": uri}}, {"train.data.where": where}).config

        for uri in (str(tmp_path / "not there yet"), table[0]):
            train_stage.check(config(uri, "width >= 64 and depth is not null and detection_rev = 'r'"))
            with pytest.raises(ValueError, match=r"train.data.where: the condition 'widht > 3' .* No field named widht"):
                train_stage.check(config(uri, "widht > 3"))
