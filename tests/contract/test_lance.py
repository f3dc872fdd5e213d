"""What MTV relies on in pylance, and what it works around. A version that breaks one of these breaks a promise about users' tables."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError
from lance.file import LanceFileWriter
from lance.fragment import DataFile, FragmentMetadata, write_fragments

SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.struct([pa.field("text", pa.string())])), nullable=False),
    ]
)
DEPTH = pa.schema([pa.field("depth", pa.binary()), pa.field("depth_rev", pa.string())])
BOXES = pa.schema([pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4))), pa.field("boxes_rev", pa.string())])


def rows(first: int, last: int) -> pa.Table:
    numbers = range(first, last)
    return pa.table({"uid": [f"u{n}" for n in numbers], "captions": [[{"text": str(n)}] for n in numbers]}, schema=SCHEMA)


def fragments(uri: str, table: pa.Table, mode: str = "append") -> list[FragmentMetadata]:
    return write_fragments(
        table,
        uri,
        schema=table.schema,
        mode=mode,
        max_rows_per_file=4,
        data_storage_version="2.2",
        enable_stable_row_ids=mode == "create",
    )


def append(uri: str, table: pa.Table, read_version: int | None = None) -> LanceDataset:
    operation = LanceOperation.Append(fragments(uri, table))
    return LanceDataset.commit(uri, operation, read_version=read_version or lance.dataset(uri).version)


def depth(n: int, revision: str = "r1") -> pa.Table:
    return pa.table({"depth": [f"{revision}-{i}".encode() for i in range(n)], "depth_rev": [revision] * n}, schema=DEPTH)


def boxes(n: int, revision: str = "r1") -> pa.Table:
    return pa.table({"boxes": [[[0.0, 0.0, 1.0, 1.0]]] * n, "boxes_rev": [revision] * n}, schema=BOXES)


def group(uri: str, fragment: int, labels: pa.Table) -> Any:
    name = f"label-{len(list(Path(uri, 'data').iterdir()))}.lance"
    with LanceFileWriter(f"{uri}/data/{name}", labels.schema, version="2.2") as writer:
        for batch in labels.to_batches():
            writer.write_batch(batch)
    return LanceOperation.DataReplacementGroup(fragment, DataFile.create(lance.dataset(uri), name))


def replace(uri: str, groups: list[Any], read_version: int | None = None) -> LanceDataset:
    return LanceDataset.commit(uri, LanceOperation.DataReplacement(groups), read_version=read_version or lance.dataset(uri).version)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """10 rows in fragments of 4, 4, 2, with null label columns."""
    uri = str(tmp_path / "samples.lance")
    create = LanceOperation.Overwrite(SCHEMA, fragments(uri, rows(0, 10), "create"))
    dataset = LanceDataset.commit(uri, create, read_version=0, enable_stable_row_ids=True)
    dataset.add_columns(DEPTH)
    dataset.add_columns(BOXES)
    return uri


def column(uri: str, name: str) -> list[Any]:
    return lance.dataset(uri).to_table(columns=[name])[name].to_pylist()


class TestWriting:
    def test_fragments_are_invisible_until_committed(self, tmp_path: Path) -> None:
        uri = str(tmp_path / "samples.lance")
        written = fragments(uri, rows(0, 10), "create")
        assert len(list((tmp_path / "samples.lance" / "data").iterdir())) == 3
        with pytest.raises(ValueError, match="was not found"):
            lance.dataset(uri)
        LanceDataset.commit(uri, LanceOperation.Overwrite(SCHEMA, written), read_version=0, enable_stable_row_ids=True)
        assert column(uri, "uid") == [f"u{n}" for n in range(10)]

    def test_metadata_survives_json(self, uri: str) -> None:
        import json

        texts = [json.dumps(fragment.to_json()) for fragment in fragments(uri, rows(10, 15))]
        operation = LanceOperation.Append([FragmentMetadata.from_json(text) for text in texts])
        LanceDataset.commit(uri, operation, read_version=lance.dataset(uri).version)
        assert column(uri, "uid") == [f"u{n}" for n in range(15)]

    def test_stable_row_ids_are_chosen_by_the_creating_commit(self, uri: str, tmp_path: Path) -> None:
        assert lance.dataset(uri).has_stable_row_ids
        other = str(tmp_path / "other.lance")
        LanceDataset.commit(other, LanceOperation.Overwrite(SCHEMA, fragments(other, rows(0, 2), "create")), read_version=0)
        assert not lance.dataset(other).has_stable_row_ids

    def test_the_same_fragments_twice_double_the_rows(self, uri: str) -> None:
        written = fragments(uri, rows(10, 15))
        for _ in range(2):
            LanceDataset.commit(uri, LanceOperation.Append(written), read_version=lance.dataset(uri).version)
        assert lance.dataset(uri).count_rows() == 20

    def test_published_data_files_are_named_in_the_manifest(self, uri: str) -> None:
        written = fragments(uri, rows(10, 15))
        names = {file.path for fragment in written for file in fragment.files}

        def published() -> set[str]:
            return {file.path for fragment in lance.dataset(uri).get_fragments() for file in fragment.data_files()}

        assert not names & published()
        LanceDataset.commit(uri, LanceOperation.Append(written), read_version=lance.dataset(uri).version)
        assert names <= published()

    def test_a_second_overwrite_replaces_the_table_silently(self, uri: str) -> None:
        written = fragments(uri, rows(90, 92))
        LanceDataset.commit(uri, LanceOperation.Overwrite(SCHEMA, written), read_version=lance.dataset(uri).version)
        assert column(uri, "uid") == ["u90", "u91"]

    def test_but_not_with_read_version_0(self, uri: str) -> None:
        written = fragments(uri, rows(90, 92))
        with pytest.raises(OSError, match="was not found"):
            LanceDataset.commit(uri, LanceOperation.Overwrite(SCHEMA, written), read_version=0, max_retries=0, enable_stable_row_ids=True)
        assert lance.dataset(uri).count_rows() == 10

    @pytest.mark.parametrize("attempt", range(5))
    def test_one_of_several_creators_wins_without_retries(self, tmp_path: Path, attempt: int) -> None:
        """With retries, as is the default, a second one replaced the first one's table in 6 of 15 attempts."""
        uri = str(tmp_path / "samples.lance")
        written = [fragments(uri, rows(10 * n, 10 * n + 2), "create") for n in range(4)]
        failures: list[BaseException] = []

        def create(mine: list[FragmentMetadata]) -> None:
            operation = LanceOperation.Overwrite(SCHEMA, mine)
            try:
                LanceDataset.commit(uri, operation, read_version=0, max_retries=0, enable_stable_row_ids=True)
            except OSError as error:
                failures.append(error)

        threads = [threading.Thread(target=create, args=(mine,)) for mine in written]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failures) == 3
        assert lance.dataset(uri).version == 1
        assert lance.dataset(uri).count_rows() == 2

    def test_appends_rebase(self, uri: str) -> None:
        version = lance.dataset(uri).version
        append(uri, rows(10, 12), version)
        append(uri, rows(12, 14), version)
        assert column(uri, "uid") == [f"u{n}" for n in range(14)]

    def test_rows_without_label_columns_can_be_appended(self, uri: str) -> None:
        append(uri, rows(10, 12))
        assert column(uri, "depth_rev") == [None] * 12

    def test_config_is_kept_by_every_commit(self, uri: str) -> None:
        lance.dataset(uri).update_config({"mtv.accepted.depth": "r1"})
        append(uri, rows(10, 12))
        replace(uri, [group(uri, 0, depth(4))])
        lance.dataset(uri).delete("uid = 'u9'")
        assert lance.dataset(uri).config()["mtv.accepted.depth"] == "r1"

    def test_two_configs_of_different_keys_rebase(self, uri: str) -> None:
        one, other = lance.dataset(uri), lance.dataset(uri)
        one.update_config({"mtv.accepted.depth": "r1"})
        other.update_config({"mtv.accepted.boxes": "r2"})
        assert lance.dataset(uri).config() == {"mtv.accepted.depth": "r1", "mtv.accepted.boxes": "r2"}


class TestLabels:
    def test_null_columns_touch_no_data_file(self, tmp_path: Path) -> None:
        uri = str(tmp_path / "samples.lance")
        create = LanceOperation.Overwrite(SCHEMA, fragments(uri, rows(0, 4), "create"))
        dataset = LanceDataset.commit(uri, create, read_version=0)
        before = {(p.name, p.stat().st_mtime_ns) for p in Path(uri, "data").iterdir()}
        dataset.add_columns(DEPTH)
        assert {(p.name, p.stat().st_mtime_ns) for p in Path(uri, "data").iterdir()} == before
        assert column(uri, "depth") == [None] * 4
        with pytest.raises(OSError, match="already exists"):
            dataset.add_columns(DEPTH)

    def test_replacement_of_some_fragments(self, uri: str) -> None:
        replace(uri, [group(uri, 0, depth(4)), group(uri, 2, depth(2))])
        assert column(uri, "depth_rev") == ["r1"] * 4 + [None] * 4 + ["r1"] * 2
        assert column(uri, "uid") == [f"u{n}" for n in range(10)]

    def test_replacement_again(self, uri: str) -> None:
        replace(uri, [group(uri, 0, depth(4, "r1"))])
        replace(uri, [group(uri, 1, boxes(4))])
        replace(uri, [group(uri, 0, depth(4, "r2"))])
        assert column(uri, "depth") == [f"r2-{i}".encode() for i in range(4)] + [None] * 6
        assert column(uri, "boxes_rev") == [None] * 4 + ["r1"] * 4 + [None] * 2

    def test_one_commit_holds_one_expert(self, uri: str) -> None:
        with pytest.raises(OSError, match="must have the same fields"):
            replace(uri, [group(uri, 0, depth(4)), group(uri, 1, boxes(4))])

    def test_row_ids_survive_replacement(self, uri: str) -> None:
        before = lance.dataset(uri).to_table(columns=["uid"], with_row_id=True)
        replace(uri, [group(uri, 1, depth(4))])
        assert lance.dataset(uri).to_table(columns=["uid"], with_row_id=True) == before

    def test_an_older_version_keeps_its_labels(self, uri: str) -> None:
        version = replace(uri, [group(uri, 0, depth(4, "r1"))]).version
        replace(uri, [group(uri, 0, depth(4, "r2"))])
        assert lance.dataset(uri, version=version).to_table(columns=["depth_rev"])[0].to_pylist()[:4] == ["r1"] * 4

    def test_two_experts_rebase(self, uri: str) -> None:
        version = lance.dataset(uri).version
        replace(uri, [group(uri, 0, depth(4))], version)
        replace(uri, [group(uri, 0, boxes(4))], version)
        assert column(uri, "depth_rev")[:4] == column(uri, "boxes_rev")[:4] == ["r1"] * 4

    def test_other_fragments_of_the_same_expert_rebase(self, uri: str) -> None:
        version = lance.dataset(uri).version
        replace(uri, [group(uri, 0, depth(4))], version)
        replace(uri, [group(uri, 1, depth(4))], version)
        assert column(uri, "depth_rev")[:8] == ["r1"] * 8

    def test_the_same_column_of_the_same_fragment_conflicts(self, uri: str) -> None:
        version = lance.dataset(uri).version
        replace(uri, [group(uri, 0, depth(4, "r1"))], version)
        with pytest.raises(CommitConflictError):
            replace(uri, [group(uri, 0, depth(4, "r2"))], version)
        assert column(uri, "depth_rev")[:4] == ["r1"] * 4

    def test_a_raised_read_version_hides_the_conflict(self, uri: str) -> None:
        replace(uri, [group(uri, 0, depth(4, "r1"))])
        replace(uri, [group(uri, 0, depth(4, "r2"))])  # why we never do that
        assert column(uri, "depth_rev")[:4] == ["r2"] * 4

    def test_appends_rebase(self, uri: str) -> None:
        version = lance.dataset(uri).version
        append(uri, rows(10, 12))
        replace(uri, [group(uri, 0, depth(4))], version)
        assert column(uri, "depth_rev") == ["r1"] * 4 + [None] * 8

    def test_deletes_rebase_and_positions_are_physical(self, uri: str) -> None:
        version = lance.dataset(uri).version
        labels = group(uri, 0, depth(4))
        lance.dataset(uri).delete("uid = 'u1'")
        replace(uri, [labels], version)
        table = lance.dataset(uri).to_table(columns=["uid", "depth"]).slice(0, 3)
        assert table.to_pydict() == {"uid": ["u0", "u2", "u3"], "depth": [b"r1-0", b"r1-2", b"r1-3"]}

    def test_deleted_rows_can_be_read_in_place(self, uri: str) -> None:
        lance.dataset(uri).delete("uid = 'u1'")
        fragment = lance.dataset(uri).get_fragment(0)
        assert fragment is not None
        assert (fragment.physical_rows, fragment.count_rows()) == (4, 3)
        table = fragment.scanner(columns=["uid"], with_row_id=True, include_deleted_rows=True).to_table()
        assert table["uid"].to_pylist() == ["u0", "u1", "u2", "u3"]
        assert table["_rowid"].is_null().to_pylist() == [False, True, False, False]

    def test_compaction_conflicts(self, uri: str) -> None:
        version = lance.dataset(uri).version
        labels = group(uri, 0, depth(4))
        lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=100)
        with pytest.raises(OSError, match=r"conflict|does not exist|not found|Fragment"):
            replace(uri, [labels], version)
        assert column(uri, "depth_rev") == [None] * 10

    @pytest.mark.parametrize("length", [3, 5])
    def test_a_file_of_another_length_commits(self, uri: str, length: int) -> None:
        replace(uri, [group(uri, 0, depth(length))])  # why stage_labels counts first
        if length < 4:
            with pytest.raises(ValueError, match="cannot read"):
                column(uri, "depth_rev")
        else:
            assert len(column(uri, "uid")) == 10


class TestComparedAppends:
    """Fragments that come with an Update of the first fragment which changes nothing: an append that conflicts with its like."""

    @staticmethod
    def add(uri: str, table: pa.Table, read_version: int | None = None) -> LanceDataset:
        before = lance.dataset(uri, version=read_version)
        operation = LanceOperation.Update(
            updated_fragments=[before.get_fragments()[0].metadata], new_fragments=fragments(uri, table), update_mode="rewrite_columns"
        )
        return LanceDataset.commit(uri, operation, read_version=before.version)

    def test_it_adds_rows_and_touches_none(self, uri: str) -> None:
        lance.dataset(uri).delete("uid = 'u1'")
        lance.dataset(uri).update_config({"mtv.accepted.depth": "r1"})
        columns = ["uid", "depth_rev", "_row_created_at_version", "_row_last_updated_at_version"]
        before = lance.dataset(uri).to_table(columns=columns, with_row_id=True)
        version = self.add(uri, rows(10, 12)).version
        after = lance.dataset(uri).to_table(columns=columns, with_row_id=True)
        assert after.slice(0, 9) == before
        assert after.slice(9).to_pylist() == [
            {"uid": f"u{n}", "depth_rev": None, "_row_created_at_version": version, "_row_last_updated_at_version": version, "_rowid": n}
            for n in (10, 11)
        ]
        assert [fragment.fragment_id for fragment in lance.dataset(uri).get_fragments()] == [0, 1, 2, 3]
        assert lance.dataset(uri).config() == {"mtv.accepted.depth": "r1"}

    def test_the_second_of_two_conflicts(self, uri: str) -> None:
        version = lance.dataset(uri).version
        self.add(uri, rows(10, 12), version)
        with pytest.raises(CommitConflictError):
            self.add(uri, rows(12, 14), version)
        assert column(uri, "uid") == [f"u{n}" for n in range(12)]

    @pytest.mark.parametrize("attempt", range(3))
    def test_one_of_several_at_once_wins(self, uri: str, attempt: int) -> None:
        version, failures = lance.dataset(uri).version, list[BaseException]()

        def run(number: int) -> None:
            try:
                self.add(uri, rows(100 * number, 100 * number + 2), version)
            except CommitConflictError as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failures) == 3
        assert lance.dataset(uri).count_rows() == 12

    @pytest.mark.parametrize("fragment", [0, 1])
    def test_labels_rebase_on_it(self, uri: str, fragment: int) -> None:
        version = lance.dataset(uri).version
        self.add(uri, rows(10, 12), version)
        replace(uri, [group(uri, fragment, depth(4))], version)
        assert [n for n, revision in enumerate(column(uri, "depth_rev")) if revision] == [4 * fragment + n for n in range(4)]
        assert column(uri, "uid") == [f"u{n}" for n in range(12)]

    def test_it_rebases_on_labels_but_of_the_first_fragment(self, uri: str) -> None:
        version = lance.dataset(uri).version
        replace(uri, [group(uri, 1, depth(4))], version)
        self.add(uri, rows(10, 12), version)
        assert column(uri, "depth_rev") == [None] * 4 + ["r1"] * 4 + [None] * 4
        version = lance.dataset(uri).version
        replace(uri, [group(uri, 0, depth(4))], version)
        with pytest.raises(CommitConflictError):
            self.add(uri, rows(12, 14), version)
        assert column(uri, "depth_rev") == ["r1"] * 8 + [None] * 4

    def test_a_plain_append_goes_unseen(self, uri: str) -> None:
        version = lance.dataset(uri).version
        append(uri, rows(20, 22))
        self.add(uri, rows(10, 12), version)  # why nobody appends samples plainly
        assert lance.dataset(uri).count_rows() == 14


class TestReading:
    def test_stale_rows_by_address(self, uri: str) -> None:
        replace(uri, [group(uri, 0, depth(4, "r2")), group(uri, 1, depth(4, "r1"))])
        scanner = lance.dataset(uri).scanner(columns=[], with_row_address=True, filter="depth_rev is null or depth_rev <> 'r2'")
        addresses = scanner.to_table()["_rowaddr"].to_pylist()
        assert [(address >> 32, address & 0xFFFFFFFF) for address in addresses] == [(1, n) for n in range(4)] + [(2, 0), (2, 1)]

    def test_scan_and_take_agree_on_positions(self, uri: str) -> None:
        lance.dataset(uri).delete("uid = 'u1'")
        append(uri, rows(10, 12))
        dataset = lance.dataset(uri)
        scanned = [uid for batch in dataset.scanner(columns=["uid"]).to_batches() for uid in batch["uid"].to_pylist()]
        order = [10, 0, 5, 1]
        assert dataset.take(order, columns=["uid"])["uid"].to_pylist() == [scanned[index] for index in order]

    def test_missing_things_say_so(self, uri: str, tmp_path: Path) -> None:
        for where, version in ((str(tmp_path / "none.lance"), None), (uri, 999)):
            with pytest.raises(ValueError, match="was not found"):
                lance.dataset(where, version=version)
        with pytest.raises(ValueError, match="does not exist"):
            lance.dataset(uri, version="no-tag")


class TestTags:
    def test_a_tag_stays_where_it_is(self, uri: str) -> None:
        dataset = lance.dataset(uri)
        dataset.tags.create("mtv-1", dataset.version)
        append(uri, rows(10, 12))
        assert lance.dataset(uri, version="mtv-1").count_rows() == 10
        with pytest.raises(ValueError, match="already exists"):
            lance.dataset(uri).tags.create("mtv-1", lance.dataset(uri).version)

    def test_a_tag_protects_its_version(self, uri: str) -> None:
        replace(uri, [group(uri, 0, depth(4, "r1"))])
        dataset = lance.dataset(uri)
        tagged = dataset.version
        dataset.tags.create("mtv-1", tagged)
        dataset.tags.replace_metadata("mtv-1", {"revisions": "r1"})
        replace(uri, [group(uri, 0, depth(4, "r2"))])
        lance.dataset(uri).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)
        assert {version["version"] for version in lance.dataset(uri).versions()} == {tagged, tagged + 1}
        old = lance.dataset(uri, version="mtv-1").to_table(columns=["depth_rev"])
        assert old[0].to_pylist()[:4] == ["r1"] * 4
        assert lance.dataset(uri).tags.list()["mtv-1"]["metadata"] == {"revisions": "r1"}

    def test_clean_up_spares_unverified_files_unless_told(self, uri: str) -> None:
        staged = group(uri, 0, depth(4)).new_file.path
        lance.dataset(uri).cleanup_old_versions(older_than=timedelta(0))
        assert Path(uri, "data", staged).exists()
        lance.dataset(uri).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
        assert not Path(uri, "data", staged).exists()
