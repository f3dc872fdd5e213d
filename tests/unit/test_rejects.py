"""The log of refusals: appended once, selected, counted, exported, and changed by retries without losing or doubling one."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.data.schema import REJECTS
from mtv_core.report import Reject, RejectClass
from mtv_core.store.dataset import append_rows
from mtv_core.store.reject_export import export
from mtv_core.store.rejects import ALL, RejectLog, Selection


def refusal(key: str, error: str = "NoCaption", shard: str = "s0", stage: str = "ingest", revision: str = "r1", **more: object) -> Reject:
    where = f"/in_put/{shard}.tar#{key}" if key else f"/in_put/{shard}.tar"
    fields = {"location": where, "message": f"{error} of {key}"} | more
    return Reject(shard=shard, key=key, stage=stage, error=error, revision=revision, **fields)


def rows_of(*rejects: Reject) -> pa.Table:
    return pa.Table.from_pylist([reject.model_dump(mode="json") for reject in rejects], schema=REJECTS)


@pytest.fixture
def log(tmp_path: Path) -> RejectLog:
    return RejectLog(str(tmp_path / "t" / "rejects.lance"))


def state(log: RejectLog) -> list[tuple[str, str, str, str, int]]:
    return sorted((r["shard"], r["key"], r["stage"], r["error"], r["attempt"]) for r in log.read().to_pylist())


MANY = [
    refusal("1"), refusal("2"), refusal("3", "BrokenImage"), refusal("1", shard="s1"), refusal("", "TruncatedShard", shard="s1"),
    refusal("1", "KeyError", stage="depth", reject_class=RejectClass.BUG, uid="u1"), refusal("it's 100%_*", "Odd'Reason", shard="o'clock"),
]  # fmt: skip


class TestSelect:
    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            (ALL, 7),
            (Selection(stage="ingest"), 6),
            (Selection(stage="depth"), 1),
            (Selection(reasons=["NoCaption"]), 3),
            (Selection(reasons=["NoCaption", "Odd'Reason"]), 4),
            (Selection(classes=["bug"]), 1),
            (Selection(shards=["s1", "o'clock"]), 3),
            (Selection(location="/in_put/s1"), 2),
            (Selection(location="/in%put/s1"), 0),
            (Selection(location="/inXput/s1"), 0),
            (Selection(location="*s1.tar#"), 1),
            (Selection(location="/in_put/o'clock.tar#it's 100%_"), 1),
            (Selection(attempt=2), 0),
            (Selection(samples=True), 6),
            (Selection(samples=False, stage="ingest"), 1),
            (Selection(stage="ingest", reasons=["NoCaption"], location="/in_put/s0"), 2),
        ],
    )
    def test_each_part_narrows(self, log: RejectLog, selection: Selection, expected: int) -> None:
        log.append(MANY)
        assert log.count(selection) == sum(batch.num_rows for batch in log.select(selection)) == expected
        assert sum(group.rows for group in log.groups(selection)) == expected

    def test_groups(self, log: RejectLog) -> None:
        log.append(MANY)
        found = log.groups(examples=2)
        assert [(group.stage, group.error, group.rows) for group in found] == [
            ("depth", "KeyError", 1), ("ingest", "NoCaption", 3), ("ingest", "BrokenImage", 1), ("ingest", "Odd'Reason", 1),
            ("ingest", "TruncatedShard", 1),
        ]  # fmt: skip
        assert [len(group.examples) for group in found] == [1, 2, 1, 1, 1]
        assert all(example["error"] == group.error for group in found for example in group.examples)
        assert found[0].examples[0]["uid"] == "u1"
        assert log.counts() == Counter(reject.error for reject in MANY)
        assert log.counts("depth") == {"KeyError": 1}

    def test_nothing_was_refused(self, log: RejectLog, tmp_path: Path) -> None:
        assert (log.exists(), log.count(), log.groups(), log.counts()) == (False, 0, [], {})
        assert log.read().schema == REJECTS
        assert log.resolve([("s", "k")], "ingest") == 0
        assert log.append([]) == 0
        assert log.replace({}, "ingest", REJECTS.empty_table()) == 0
        assert log.samples_to_retry("ingest") == {}
        assert export(log, str(tmp_path / "none.csv")) == 0
        assert (tmp_path / "none.csv").read_text().startswith('"uid"')


class TestExport:
    def test_every_format_holds_every_row(self, log: RejectLog, tmp_path: Path) -> None:
        log.append([*MANY, refusal("é\n,\"'", "Ünicode")])
        expected = log.read().to_pylist()
        for name in ("all.jsonl", "all.jsonl.gz", "all.csv", "all.csv.gz", "all.parquet"):
            assert export(log, str(tmp_path / "new" / name)) == len(expected)
        lines = (tmp_path / "new" / "all.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == expected
        assert gzip.decompress((tmp_path / "new" / "all.jsonl.gz").read_bytes()) == (tmp_path / "new" / "all.jsonl").read_bytes()
        with (tmp_path / "new" / "all.csv").open(newline="") as file:
            read = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
        assert [(row["key"] or "", row["message"], int(row["attempt"] or 0)) for row in read] == [
            (row["key"], row["message"], row["attempt"]) for row in expected
        ]
        assert pq.read_table(tmp_path / "new" / "all.parquet").to_pylist() == expected

    def test_a_selection_to_another_file_system(self, log: RejectLog) -> None:
        import fsspec

        log.append(MANY)
        assert export(log, "memory://out/some.jsonl", Selection(reasons=["NoCaption"])) == 3
        assert len(fsspec.filesystem("memory").cat("/out/some.jsonl").splitlines()) == 3

    def test_an_unknown_ending(self, log: RejectLog, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"\.jsonl, \.csv or \.parquet"):
            export(log, str(tmp_path / "all.xlsx"))


class TestRetry:
    def test_append_is_idempotent(self, log: RejectLog) -> None:
        assert log.append(MANY) == 7
        assert log.append([*MANY, MANY[0]]) == 0
        assert log.append([refusal("1", revision="r2")]) == 1

    def test_a_second_refusal_takes_the_place_of_the_first(self, log: RejectLog) -> None:
        log.append(MANY)
        tried = {"s0": ["1", "2", "9"]}
        refused = rows_of(refusal("1", "TooSmall", revision="r2"), refusal("9"), refusal("", "TruncatedShard", revision="r2"))
        assert log.replace(tried, "ingest", refused) == 2
        expected = [(r.shard, r.key, r.stage, r.error, 1) for r in MANY[2:]]
        expected += [("s0", "1", "ingest", "TooSmall", 2), ("s0", "9", "ingest", "NoCaption", 1), ("s0", "", "ingest", "TruncatedShard", 1)]
        assert state(log) == sorted(expected), "2 is a row now"
        log.replace(tried, "ingest", refused)
        assert [row[1:] for row in state(log) if row[0] == "s0" and row[2] == "ingest"] == [
            ("", "ingest", "TruncatedShard", 1), ("1", "ingest", "TooSmall", 3), ("3", "ingest", "BrokenImage", 1),
            ("9", "ingest", "NoCaption", 2),
        ]  # fmt: skip
        assert log.count(Selection(attempt=2)) == 2

    def test_worth_trying_again(self, log: RejectLog) -> None:
        log.append([*MANY, refusal("7", "Duplicate"), refusal("8", "Forgotten", shard="s1")])
        assert log.samples_to_retry("ingest") == {"s0": {"1", "2", "3"}, "s1": {"1"}, "o'clock": {"it's 100%_*"}}
        assert log.samples_to_retry("ingest", ["NoCaption"], ["1"]) == {"s0": {"1"}, "s1": {"1"}}
        assert log.samples_to_retry("ingest", ["Duplicate"]) == {"s0": {"7"}}
        assert log.samples_to_retry("ingest", ["TruncatedShard"]) == {}, "a shard is tried by ingest itself"

    def test_a_shard_with_another_content(self, log: RejectLog) -> None:
        log.append(MANY)
        log.forget_shards(["s0", *(f"x{i}" for i in range(2000))], "ingest")
        assert [(row[0], row[2]) for row in state(log)] == [("o'clock", "ingest"), ("s0", "depth"), ("s1", "ingest"), ("s1", "ingest")]

    def test_resolved_ones_are_gone(self, log: RejectLog) -> None:
        log.append(MANY)
        assert log.resolve([("s0", "1"), ("o'clock", "it's 100%_*"), ("s7", "1")], "ingest") == 2
        assert [(row[0], row[1], row[2]) for row in state(log)] == [
            ("s0", "1", "depth"), ("s0", "2", "ingest"), ("s0", "3", "ingest"), ("s1", "", "ingest"), ("s1", "1", "ingest"),
        ]  # fmt: skip
        assert log.resolve(pa.table({"shard": ["s1"], "key": [""]}), "ingest") == 1

    def test_shards_that_were_read_after_all(self, log: RejectLog) -> None:
        failed = [refusal("", "Unreadable", shard=f"s{i}", reject_class=RejectClass.TRANSIENT) for i in range(5)]
        log.append([*failed, refusal("", "TruncatedShard", shard="s1", revision="r2")])
        log.remove(["/in_put/s1.tar", "/in_put/s3.tar", *(f"/elsewhere/{i}" for i in range(2000))], "ingest")
        assert [row[0] for row in state(log)] == ["s0", "s1", "s2", "s4"]

    def test_killed_between_its_two_commits(self, log: RejectLog) -> None:
        log.append(MANY)
        program = (
            "import sys; from mtv_core.report import Reject; from mtv_core.store.rejects import RejectLog, REJECTS, pa; "
            "rows = pa.Table.from_pylist([Reject.model_validate_json(sys.argv[2]).model_dump(mode='json')], schema=REJECTS); "
            "RejectLog(sys.argv[1]).replace({'s0': ['1', '2']}, 'ingest', rows)"
        )
        again = refusal("1", "TooSmall")
        killed = subprocess.run(
            [sys.executable, "-c", program, log.uri, again.model_dump_json()],
            env=os.environ | {"MTV_FAULT": "rejects.replaced"}, cwd=Path(__file__).parents[2], check=False,
        )  # fmt: skip
        assert killed.returncode != 0
        assert log.count() == len(MANY) + 1
        log.replace({"s0": ["1", "2"]}, "ingest", rows_of(again))
        assert ("s0", "1", "ingest", "TooSmall", 2) in state(log)
        assert log.count() == len(MANY) - 1

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.sampled_from(["append", "again", "resolve"])), max_size=8))
    def test_against_a_dictionary(self, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]]) -> None:
        log = RejectLog(str(tmp_path_factory.mktemp("r") / "rejects.lance"))
        expected: dict[tuple[str, str], int] = {}
        for shard, key, step in steps:
            if step == "resolve":
                log.resolve([(shard, key)], "ingest")
                expected.pop((shard, key), None)
            else:
                again = step == "again"
                new = refusal(key, shard=shard)
                log.replace({shard: [key]}, "ingest", rows_of(new)) if again else log.append([new])
                expected[shard, key] = expected.get((shard, key), 0) + 1 if step == "again" else expected.get((shard, key), 1)
        assert {(row[0], row[1]): row[4] for row in state(log)} == expected
        assert log.count() == len(expected)


def test_a_million_refusals(log: RejectLog, tmp_path: Path) -> None:
    number = 1_000_000
    shard = np.arange(number) // 1000
    errors = np.array(["NoCaption", "BrokenImage", "Duplicate"])[np.arange(number) % 3]
    errors[777_777] = "Rare"
    names = np.char.add("s", shard.astype(str))
    constant = {
        "stage": "ingest",
        "reject_class": "data",
        "revision": "r1",
        "location": "/in/x.tar",
        "message": "it was refused for a reason",
    }
    columns = {
        "uid": pa.nulls(number, pa.string()), "shard": pa.array(names), "key": pa.array((np.arange(number) % 1000).astype(str)),
        "error": pa.array(errors), "survivor": pa.nulls(number, pa.string()), "attempt": pa.array(np.ones(number, np.int32)),
        **{name: pa.repeat(value, number) for name, value in constant.items()},
    }  # fmt: skip
    append_rows(pa.table({name: columns[name] for name in REJECTS.names}, schema=REJECTS), log.uri, number)
    began = time.process_time()
    found = log.groups(examples=2)
    spent = time.process_time() - began
    assert [(group.error, group.rows) for group in found] == [
        ("BrokenImage", 333_333), ("Duplicate", 333_333), ("NoCaption", 333_333), ("Rare", 1),
    ]  # fmt: skip
    assert found[-1].examples[0]["key"] == "777"
    assert spent < 10, "0.5 s when measured alone"
    assert log.append([refusal("1", shard="s5"), refusal("x", shard="s5")]) == 1
    retried = pa.table({"shard": pa.array(names[:300_000]), "key": columns["key"].slice(0, 300_000)})
    assert log.resolve(retried, "ingest") == 300_000
    assert log.count() == number - 300_000 + 1
