"""The table: staged labels published once, staleness, tags, views, refusals."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mtv_core.data.schema import SAMPLES, label_schema
from mtv_core.report import Reject
from mtv_core.store.labels import LabelConflictError, StagedLabels
from mtv_core.store.table import Table


def rows(first: int, last: int) -> pa.Table:
    fixed = {"image": b"x", "width": 1, "height": 1, "caption": "a", "captions": [{"text": "a", "kind": "web"}], "caption_raw": "a"}
    origin = {"source": "s", "shard": "t", "sha256": "0", "split": "train", "ingest_id": "i"}
    return pa.Table.from_pylist([fixed | origin | {"uid": f"{n:032x}", "key": str(n)} for n in range(first, last)], schema=SAMPLES)


def depth(number: int, revision: str | None = "r1") -> pa.Table:
    return pa.table({"depth": [b"d"] * number, "depth_rev": [revision] * number}, schema=label_schema("depth"))


def refusal(key: str, revision: str = "r1", **more: Any) -> Reject:
    return Reject(**{"shard": "t", "key": key, "stage": "depth", "error": "NoDepth", "message": "flat", "revision": revision} | more)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(rows(0, 25), 10)
    table.ensure_columns("depth")
    return table


def stage_all(table: Table, revision: str = "r1") -> list[StagedLabels]:
    plan = table.stale("depth", revision)
    return [table.stage_labels("depth", plan.version, task.fragment_id, depth(task.physical_rows, revision)) for task in plan.fragments]


def revisions(table: Table) -> dict[str, int]:
    return table.label_counts()["depth"]


class TestTable:
    def test_there_is_none_before_its_first_rows(self, tmp_path: Path) -> None:
        table = Table.create_or_open(str(tmp_path / "table"))
        assert not table.exists()
        assert not (tmp_path / "table").exists()
        with pytest.raises(FileNotFoundError, match="mtv ingest"):
            Table.open(str(tmp_path / "table"))

    def test_columns_are_added_once(self, table: Table) -> None:
        version = table.version
        table.ensure_columns("depth")
        assert table.version == version
        table.ensure_columns("detection")
        assert table.dataset().schema.names == [*SAMPLES.names, *label_schema("depth").names, *label_schema("detection").names]

    def test_accepted(self, table: Table) -> None:
        table.accept("depth", "r1", {"model": "a"})
        version = table.version
        table.accept("depth", "r1", {"model": "a"})
        table.append(rows(25, 26))
        assert table.version == version + 1
        assert {name: a.revision for name, a in table.accepted().items()} == {"depth": "r1"}
        table.accept("depth", "r2", {"model": "b"})
        assert table.accepted()["depth"].source == {"model": "b"}

    def test_it_pickles(self, table: Table) -> None:
        assert pickle.loads(pickle.dumps(table)).num_rows == 25


class TestLabels:
    def test_stage_commit_nothing_left(self, table: Table) -> None:
        assert [(t.fragment_id, t.num_stale) for t in table.stale("depth", "r1").fragments] == [(0, 10), (1, 10), (2, 5)]
        staged = stage_all(table)
        assert revisions(table) == {"": 25}
        table.commit_labels(staged)
        assert revisions(table) == {"r1": 25}
        assert table.stale("depth", "r1").num_stale == 0
        assert table.staged("depth", "r1", table.version) == []

    def test_committing_again_changes_nothing(self, table: Table) -> None:
        staged = stage_all(table)
        version = table.commit_labels(staged)
        assert table.commit_labels(staged) == version

    def test_staged_work_survives_a_restart(self, table: Table) -> None:
        first, *others = stage_all(table)
        table.commit_labels([first])
        again = Table.open(table.uri)
        found = again.staged("depth", "r1", again.version)
        assert found == others
        again.commit_labels(found)
        assert revisions(again) == {"r1": 25}

    def test_published_records_of_a_killed_run_are_dropped(self, table: Table) -> None:
        staged = stage_all(table)
        table.commit_labels(staged)
        table.files.write(staged[0].record, staged[0].model_dump_json().encode())
        assert table.staged("depth", "r1", table.version) == []
        assert not table.files.exists(staged[0].record)

    def test_a_lost_data_file_is_not_offered(self, table: Table) -> None:
        staged = stage_all(table)
        table.files.remove(f"samples.lance/data/{staged[1].data_file}")
        assert table.staged("depth", "r1", table.version) == [staged[0], staged[2]]

    def test_rows_that_come_meanwhile_stay_stale(self, table: Table) -> None:
        staged = stage_all(table)
        table.append(rows(25, 28))
        table.commit_labels(staged)
        assert revisions(table) == {"r1": 25, "": 3}
        assert [(t.fragment_id, t.num_stale) for t in table.stale("depth", "r1").fragments] == [(3, 3)]

    def test_another_run_was_quicker(self, table: Table) -> None:
        mine, theirs = stage_all(table, "r1"), stage_all(table, "r2")
        table.commit_labels(theirs)
        with pytest.raises(LabelConflictError):
            table.commit_labels(mine)
        assert revisions(table) == {"r2": 25}
        assert table.staged("depth", "r1", table.version) == []

    def test_compaction_is_a_conflict(self, table: Table) -> None:
        staged = stage_all(table)
        table.dataset().optimize.compact_files(target_rows_per_fragment=100)
        with pytest.raises(LabelConflictError):
            table.commit_labels(staged)
        assert revisions(table) == {"": 25}

    def test_new_revision_replaces_only_its_expert(self, table: Table) -> None:
        table.ensure_columns("detection")
        table.commit_labels(stage_all(table, "r1"))
        before = table.dataset().to_table(columns=["uid", "detection_rev", "image"], with_row_id=True)
        assert table.stale("depth", "r2").num_stale == 25
        table.commit_labels(stage_all(table, "r2"))
        assert revisions(table) == {"r2": 25}
        assert table.dataset().to_table(columns=["uid", "detection_rev", "image"], with_row_id=True) == before

    def test_wrong_batches_are_refused(self, table: Table) -> None:
        version = table.version
        with pytest.raises(ValueError, match="10 physical rows"):
            table.stage_labels("depth", version, 0, depth(9))
        mixed = pa.concat_tables([depth(5, "r1"), depth(5, "r2")])
        with pytest.raises(ValueError, match="one revision"):
            table.stage_labels("depth", version, 0, mixed)
        with pytest.raises(ValueError, match="one revision"):
            table.stage_labels("depth", version, 0, depth(10, None))
        assert table.stage_labels("depth", version, 0, depth(10, None), revision="r1").num_labelled == 0

    def test_deleted_rows_keep_their_place(self, table: Table) -> None:
        table.dataset().delete(f"uid = '{1:032x}'")
        read = table.read_fragment(table.version, 0, ["key"])
        assert read["key"].to_pylist() == [str(n) for n in range(10)]
        labels = pa.table(
            {"depth": [key.encode() for key in read["key"].to_pylist()], "depth_rev": ["r1"] * 10}, schema=label_schema("depth")
        )
        table.commit_labels([table.stage_labels("depth", table.version, 0, labels)])
        found = table.dataset().to_table(columns=["key", "depth"]).slice(0, 9).to_pylist()
        assert [(r["key"], r["depth"]) for r in found] == [(str(n), str(n).encode()) for n in range(10) if n != 1]

    def test_rejects_are_published_with_the_labels(self, table: Table) -> None:
        staged = table.stage_labels("depth", table.version, 0, depth(10), [refusal("3")])
        assert table.rejects.read().num_rows == 0
        for _ in range(2):
            table.commit_labels([staged])
        assert table.rejects.read()["key"].to_pylist() == ["3"]


class TestRejects:
    def test_appending_is_idempotent(self, table: Table) -> None:
        assert table.rejects.append([refusal("1"), refusal("2"), refusal("1")]) == 2
        assert table.rejects.append([refusal("2"), refusal("3"), refusal("2", "r2"), refusal("2", stage="ingest")]) == 3
        assert table.rejects.append([refusal("it's", shard="o'clock")]) == 1
        assert table.rejects.append([refusal("it's", shard="o'clock")]) == 0
        assert table.rejects.counts() == {"NoDepth": 6}
        assert table.rejects.counts("ingest") == {"NoDepth": 1}


class TestTagsAndViews:
    def test_unlabelled_rows_are_not_tagged(self, table: Table) -> None:
        table.commit_labels(stage_all(table)[:2])
        with pytest.raises(ValueError, match="5 of 25 rows have no depth labels of revision r1"):
            table.tag({"depth": "r1"})
        assert not table.tags()
        tag = table.tag({"depth": "r1"}, allow_mixed=True)
        assert table.dataset().tags.list()[tag]["metadata"]["counts"] == '{"depth": {"r1": 20, "": 5}}'

    def test_a_tag_names_version_and_revisions(self, table: Table) -> None:
        table.commit_labels(stage_all(table))
        tag = table.tag({"depth": "r1"})
        assert table.tag({"depth": "r1"}) == tag
        assert tag.startswith("mtv-")
        assert len(tag) == 16
        table.append(rows(25, 26))
        assert table.tag({}) != tag
        view = Table.at(table.uri, tag=tag)
        assert (view.num_rows, table.num_rows) == (25, 26)

    def test_a_view_reads_its_version_after_a_pickle(self, table: Table) -> None:
        view = Table.at(table.uri)
        table.append(rows(25, 30))
        copy = pickle.loads(pickle.dumps(view))
        assert copy.take([24, 0, 7], ["key"])["key"].to_pylist() == ["24", "0", "7"]
        assert [key for batch in copy.scan(["key"]) for key in batch["key"].to_pylist()] == [str(n) for n in range(25)]
        assert [b["key"].to_pylist() for b in copy.scan(["key"], condition="key = '7'", with_row_ids=True)] == [["7"]]
        assert copy.count("key < '2'") == 12

    def test_what_is_missing_is_said(self, table: Table) -> None:
        with pytest.raises(FileNotFoundError, match="no tag 'mtv-x'"):
            Table.at(table.uri, tag="mtv-x")
        with pytest.raises(FileNotFoundError, match="no version 99"):
            Table.at(table.uri, version=99)
        assert table.version_exists(1)
        assert not table.version_exists(99)
