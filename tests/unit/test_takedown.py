"""What is taken down is gone from every file, the rest is as it was, and dropped tags lead on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import takedown_tables as tables
from takedown_tables import everything, image, on_disk, row
from tars import sample, tar

from mtv_core.data.schema import SAMPLES
from mtv_core.store import denylist, takedown, takedown_erase, takedown_journal, tombstones
from mtv_core.store.denylist import Denylist
from mtv_core.store.table import Table
from mtv_core.store.takedown_request import Request
from mtv_core.store.tombstones import TagForgottenError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("made") / "table"
    table, tags = tables.make(folder)
    return Path(table.uri), tags


@pytest.fixture
def table(made: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.delenv(denylist.KEY_VARIABLE, raising=False)
    shutil.copytree(made[0], tmp_path / "table")
    return Table.open(str(tmp_path / "table"))


@pytest.fixture
def tags(made: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return made[1]


def uid(number: int) -> str:
    return str(row(number, image_of=3 if number == 30 else None)["uid"])


def forget(table: Table, reason: str = "", **entries: Any) -> takedown_journal.Journal:
    return takedown.run(table, Request(**entries), reason)[-1]


class TestGone:
    def test_from_every_file(self, table: Table) -> None:
        before = on_disk(Path(table.uri), [3])
        assert any("samples.lance" in found and "uid" not in found for found in before)
        for place in ("samples.lance", "rejects.lance", "_staging", "reports"):
            assert any(found.startswith(place) for found in before), place
        journal = forget(table, uids=[uid(3)])
        assert on_disk(Path(table.uri), [3, 30]) == []
        assert (journal.state, journal.num_rows, journal.num_rejects) == ("done", 2, 2)
        assert not list(Path(table.uri).rglob(".tmp*"))
        assert takedown_erase.strays(table, table.samples_uri) == []
        assert takedown_erase.staged(table) == []

    def test_the_others_are_untouched(self, table: Table) -> None:
        before = everything(table)
        forget(table, uids=[uid(3), uid(17)])
        gone = {uid(3), uid(17), uid(30)}
        assert everything(table) == {one: values for one, values in before.items() if one not in gone}
        for one, values in everything(table).items():
            assert values["depth"] == f"depth of {one} by r2".encode()
            assert values["phrases"] == [f"{one}-d1"]
        assert table.stale("depth", "r2").num_stale == table.stale("detection", "d1").num_stale == 0
        assert {expert: one.revision for expert, one in table.accepted().items()} == {"depth": "r2", "detection": "d1"}
        assert table.dataset().has_stable_row_ids

    def test_only_fragments_that_held_them_are_rewritten(self, table: Table) -> None:
        before = {fragment.fragment_id: fragment.physical_rows for fragment in table.dataset().get_fragments()}
        journal = forget(table, keys=["00001.tar:000002"])
        after = {fragment.fragment_id: fragment.physical_rows for fragment in table.dataset().get_fragments()}
        assert journal.fragments == 1
        assert before.keys() - after.keys() == {1}
        assert sorted(after.values()) == [7, 8, 8, 8]

    def test_labelling_and_appending_go_on(self, table: Table) -> None:
        forget(table, uids=[uid(3)])
        tables.add(table, [row(number) for number in range(32, 36)])
        tables.label(table, "depth", "r3")
        tables.label(table, "detection", "d1")
        rows = everything(table)
        assert len(rows) == 34
        assert all(values["depth"] == f"depth of {one} by r3".encode() for one, values in rows.items())
        assert table.tag({"depth": "r3", "detection": "d1"}) in table.tags()

    def test_reports_keep_their_figures(self, table: Table) -> None:
        forget(table, uids=[uid(3)])
        left = {str(path.relative_to(table.uri)) for path in Path(table.uri, "reports").rglob("*") if path.is_file()}
        assert left == {"reports/i/stats.json", "reports/j/report.json"}
        assert Path(table.uri, "_experts/depth/preview.png").exists()

    def test_refusals(self, table: Table) -> None:
        forget(table, uids=[uid(3)], urls=["https://example.org/900.jpg"])
        left = {(one["shard"], one["key"]) for one in table.rejects.read().to_pylist()}
        assert left == {("shard-id-9", "c"), ("shard-id-0", "000004")}

    def test_a_copy_that_was_refused_stays_out(self, table: Table) -> None:
        """Of a near copy the uid is all that its refusal has; whoever has the file can add its hash."""
        near = "cd" * 32
        forget(table, uids=[uid(3)])
        assert Denylist.load(table).denies(near, None, "c0" * 16)
        assert not Denylist.load(table).denies(near, None, "c1" * 16)
        forget(table, images=[near])
        assert Denylist.load(table).denies(near, None, "c1" * 16)

    def test_all_of_them(self, table: Table) -> None:
        forget(table, uids=list(everything(table)))
        assert table.num_rows == 0
        assert on_disk(Path(table.uri), list(range(32))) == []
        assert table.tags() == {}

    def test_a_half_deleted_row_is_found_in_the_files(self, table: Table) -> None:
        table.dataset().delete(f"uid = '{uid(5)}'")
        assert on_disk(Path(table.uri), [5])
        journal = forget(table, uids=[uid(5)])
        assert journal.num_rows == 1
        assert on_disk(Path(table.uri), [5]) == []

    def test_rows_of_a_tag_alone(self, table: Table, tags: dict[str, str]) -> None:
        table.dataset().delete(f"uid = '{uid(5)}'")
        table.dataset().optimize.compact_files(target_rows_per_fragment=8, materialize_deletions_threshold=0.0)
        forget(table, uids=[uid(5)])
        assert on_disk(Path(table.uri), [5]) == []
        assert not set(tags.values()) & set(table.tags())


class TestWays:
    @pytest.mark.parametrize(
        ("entries", "expected"),
        [
            ({"uids": [uid(9).upper()]}, [9]),
            ({"images": [hashlib.sha256(image(9)).hexdigest()]}, [9]),
            ({"urls": ["HTTP://EXAMPLE.org:80/9.jpg#x"]}, [9]),
            ({"keys": ["00001.tar:000001"]}, [9]),
            ({"keys": ["s3://bucket/00001.tar#000001"]}, [9]),
            ({"keys": ["shard-id-1:000001"]}, [9]),
            ({"keys": ["000001"], "source": "nobody"}, []),
            ({"images": [hashlib.sha256(image(3)).hexdigest()]}, [3, 30]),
            ({"uids": [uid(30)]}, [3, 30]),
            (
                {"uids": [uid(1)], "urls": ["http://example.org/2.jpg", "http://example.org/20.jpg"], "keys": ["00002.tar:000000"]},
                [1, 2, 16, 20],
            ),
        ],
    )
    def test_found(self, table: Table, entries: dict[str, Any], expected: list[int]) -> None:
        found = takedown.plan(table, Request(**entries)).found
        assert set(found.rows) == {uid(number) for number in expected}

    @pytest.mark.parametrize("key", ["000001", "source0:000001"])
    def test_a_key_of_several_images_is_refused(self, table: Table, key: str) -> None:
        with pytest.raises(ValueError, match=r"stand for several images.*write shard:key"):
            takedown.plan(table, Request(keys=[key]))

    def test_a_key_with_colons_of_its_own(self, table: Table) -> None:
        tables.add(table, [row(40, key="a:b#c")])
        for key in ("a:b#c", "shard-id-5:a:b#c", "source1#a:b#c", "s3://bucket/00005.tar#a:b#c"):
            assert set(takedown.plan(table, Request(keys=[key])).found.rows) == {uid(40)}, key

    @pytest.mark.parametrize("entries", [{"uids": ["abc"]}, {"images": ["g" * 64]}, {"images": [uid(3)]}, {"uids": ["é" * 32]}])
    def test_what_is_no_hash_is_refused(self, entries: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="hexadecimal digits"):
            Request(**entries)


class TestDenied:
    def test_images_urls_and_entries_not_found(self, table: Table) -> None:
        journal = forget(
            table, uids=[uid(3), "ee" * 16], images=["dd" * 32], urls=["http://example.org/9.jpg", "http://nowhere.org/"], keys=["nobody:1"]
        )
        assert journal.not_found == {"uids": 1, "images": 1, "urls": 1, "keys": 1}
        denied = Denylist.load(table)
        for number in (3, 9):
            assert denied.denies(row(number)["sha256"], None)
            assert denied.denies("0" * 64, f"https://example.org/{number}.jpg")
        assert denied.denies("dd" * 32, None)
        assert denied.denies("0" * 64, "https://nowhere.org")
        assert denied.denies("0" * 64, None, "ee" * 16)
        assert not any(denied.denies(row(n)["sha256"], row(n)["url"], row(n)["uid"]) for n in range(24) if n not in (3, 9))

    def test_a_url_that_others_have_too_is_not_the_images_own(self, table: Table) -> None:
        page = "https://example.org/page"
        tables.add(table, [row(40, url=page), row(41, url=page)])
        forget(table, uids=[uid(40)])
        assert not Denylist.load(table).denies(row(41)["sha256"], page)
        forget(table, urls=[page])
        assert Denylist.load(table).denies("0" * 64, page)
        assert uid(41) not in everything(table)

    def test_again_there_is_nothing_to_do(self, table: Table) -> None:
        forget(table, uids=[uid(3)])
        version, files = table.version, sorted(path for path in Path(table.uri).rglob("*"))
        journal = forget(table, uids=[uid(3)])
        assert (journal.num_rows, journal.num_denied, journal.not_found) == (0, 0, {"uids": 1})
        assert takedown.plan(table, Request(uids=[uid(3)])).denied_before == 1
        assert (version, files) == (table.version, sorted(path for path in Path(table.uri).rglob("*")))

    def test_before_the_table_has_rows(self, tmp_path: Path) -> None:
        table = Table.create_or_open(str(tmp_path / "new"))
        assert forget(table, urls=["https://example.org/9.jpg"]).num_denied == 1
        assert Denylist.load(table).denies("0" * 64, "http://example.org/9.jpg")
        assert not table.exists()

    def test_a_later_ingest_refuses_them(self, tmp_path: Path) -> None:
        from mtv_core import ingest
        from mtv_core.data.sources.config import SourceConfig
        from mtv_core.executor import SerialExecutor
        from mtv_core.ingest_config import IngestConfig

        def run() -> None:
            config = IngestConfig.model_validate({"filters": []})
            ingest.run([SourceConfig(uri=str(tmp_path / "in"))], str(tmp_path / "table"), config, SerialExecutor())

        shard = tar(tmp_path / "in" / "0.tar", [member for n in range(6) for member in sample(n)])
        run()
        table = Table.open(str(tmp_path / "table"))
        keys = {one["key"]: one for one in everything(table).values()}
        forget(table, uids=[keys["000002"]["uid"]], urls=["https://example.org/4.jpg"])
        run()  # the ledger has the shard: nothing happens
        assert {one["key"] for one in everything(table).values()} == keys.keys() - {"000002", "000004"}
        tar(shard, [member for n in range(8) for member in sample(n)])  # now it has other content
        tar(tmp_path / "in" / "1.tar", [member for n in (2, 4, 9) for member in sample(n, "again")])
        run()
        assert {one["key"] for one in everything(table).values()} == {
            "000000",
            "000001",
            "000003",
            "000005",
            "000006",
            "000007",
            "again000009",
        }
        refused = [one for one in table.rejects.read().to_pylist() if one["error"] == "Forgotten"]
        assert sorted(one["key"] for one in refused) == ["000002", "000004", "again000002", "again000004"]
        assert on_disk_of(table, keys["000002"]) == []


class TestRefusedCopies:
    """A copy that was refused has no row, but its picture is in the table."""

    @pytest.fixture
    def ingested(self, tmp_path: Path) -> tuple[Table, Callable[[], None]]:
        from mtv_core import ingest
        from mtv_core.data.sources.config import SourceConfig
        from mtv_core.executor import SerialExecutor
        from mtv_core.ingest_config import IngestConfig

        def run() -> None:
            config = IngestConfig.model_validate({"filters": []})
            ingest.run([SourceConfig(uri=str(tmp_path / "in"))], str(tmp_path / "table"), config, SerialExecutor())

        tar(tmp_path / "in" / "0.tar", [member for n in range(4) for member in sample(n)])
        run()
        for shard, key in (("1", "other"), ("2", "third")):
            about = json.dumps({"url": f"http://elsewhere.org/{key}.jpg"}).encode()
            content = sample(2)[0][1]
            members = [(f"{key}.jpg", content), (f"{key}.json", about), (f"{key}.txt", f"in other words, {key}".encode())]
            tar(tmp_path / "in" / f"{shard}.tar", members)
        run()
        return Table.open(str(tmp_path / "table")), run

    @pytest.mark.parametrize("by", ["uids", "keys"])
    def test_naming_one_takes_the_picture(self, ingested: tuple[Table, Callable[[], None]], by: str) -> None:
        table, run = ingested
        copies = {one["key"]: one for one in table.rejects.read().to_pylist()}
        assert {one["error"] for one in copies.values()} == {"Duplicate"}
        kept = next(one for one in everything(table).values() if one["key"] == "000002")
        entries: dict[str, Any] = {by: {"uids": [copies["other"]["uid"]], "keys": ["1.tar:other"]}[by]}
        plan = takedown.plan(table, Request(**entries))
        assert (set(plan.found.rows), plan.not_found) == ({kept["uid"]}, {})
        journal = forget(table, **entries)
        assert (journal.num_rows, journal.num_rejects, journal.not_found) == (1, 2, {})
        assert on_disk_of(table, kept) == []
        denied = Denylist.load(table)
        assert denied.denies(kept["sha256"], None)
        assert all(denied.has("uid", one["uid"]) for one in (kept, *copies.values()))
        tar(Path(table.uri).parent / "in" / "3.tar", [(f"new.{name}", c) for name, c in (("jpg", sample(2)[0][1]), ("txt", b"new words"))])
        run()
        assert {one["key"] for one in everything(table).values()} == {"000000", "000001", "000003"}

    def test_tags_of_the_picture_are_dropped(self, table: Table, tags: dict[str, str]) -> None:
        copies = [
            tables.reject("shard-id-9", "copy", "ingest", uid="d1" * 16, error="Duplicate", survivor="d2" * 16, message="the same bytes"),
            tables.reject("shard-id-9", "first", "ingest", uid="d2" * 16, error="Duplicate", survivor=uid(30), message="the same bytes"),
        ]
        table.rejects.append(copies)
        journal = forget(table, uids=["d1" * 16])  # over two copies to row 30, and row 3 has its picture too
        assert (journal.num_rows, set(journal.tags)) == (2, set(tags.values()))
        assert on_disk(Path(table.uri), [3, 30]) == []
        assert Denylist.load(table).denies("0" * 64, None, "d2" * 16)

    def test_a_near_one_is_for_a_person_to_look_at(self, table: Table) -> None:
        plan = takedown.plan(table, Request(uids=["c0" * 16]))
        assert (plan.found.rows, plan.near, plan.not_found) == ({}, [uid(3)], {})
        forget(table, uids=["c0" * 16])
        assert uid(3) in everything(table)
        assert not Denylist.load(table).denies(row(3)["sha256"], None)

    def test_a_key_of_a_row_and_of_a_copy_of_another_is_refused(self, table: Table) -> None:
        table.rejects.append(
            [tables.reject("shard-id-1", "000001", "ingest", uid="d1" * 16, error="Duplicate", survivor=uid(20), message="the same bytes")]
        )
        with pytest.raises(ValueError, match="stand for several images"):
            takedown.plan(table, Request(keys=["shard-id-1:000001"]))


def on_disk_of(table: Table, one: dict[str, Any]) -> list[str]:
    needles = (one["uid"].encode(), one["sha256"].encode(), one["image"][-80:])
    return [str(path) for path in Path(table.uri).rglob("*") if path.is_file() and any(needle in path.read_bytes() for needle in needles)]


class TestTags:
    def test_dropped_ones_name_their_successors(self, table: Table, tags: dict[str, str]) -> None:
        journal = forget(table, "asked by its owner", uids=[uid(3)])
        assert {name: (loss.removed, loss.left) for name, loss in journal.tags.items()} == {
            tags["one"]: (1, 23),
            tags["two"]: (2, 30),
            tags["three"]: (2, 30),
        }
        [successor] = table.tags()
        assert set(journal.successors.values()) == {successor}
        assert Table.at(table.uri, tag=successor).num_rows == 30
        assert table.tag_revisions(successor) == {"depth": "r2", "detection": "d1"}
        with pytest.raises(TagForgottenError, match=rf"2 of its 32 rows were taken down .*by its owner.*successor is {successor}$"):
            Table.at(table.uri, tag=tags["three"])
        with pytest.raises(TagForgottenError, match="whose labels may be of other revisions"):
            Table.at(table.uri, tag=tags["two"])
        with pytest.raises(FileNotFoundError, match="has no tag 'mtv-0'"):
            Table.at(table.uri, tag="mtv-0")

    def test_others_stay(self, table: Table, tags: dict[str, str]) -> None:
        before = Table.at(table.uri, tag=tags["one"]).dataset.to_table()
        journal = forget(table, uids=[uid(25)])
        assert set(journal.tags) == {tags["two"], tags["three"]}
        assert tags["one"] in table.tags()
        assert Table.at(table.uri, tag=tags["one"]).dataset.to_table() == before
        assert on_disk(Path(table.uri), [25]) == []

    def test_chains_lead_to_the_newest(self, table: Table, tags: dict[str, str]) -> None:
        for number in (4, 5, 6):
            forget(table, uids=[uid(number)])
        [successor] = table.tags()
        for name in tags.values():
            stone = tombstones.read(table, name)
            assert stone is not None
            assert stone.successor != successor
            assert tombstones.newest(table, stone) == successor
            with pytest.raises(TagForgottenError, match=f"successor is {successor}") as raised:
                Table.at(table.uri, tag=name)
            assert raised.value.successor == successor
            # 'one' and 'two' had the labels of an older model; every later step kept what there was
            assert ("may be of other revisions" in str(raised.value)) == (name != tags["three"])

    def test_a_chain_has_other_labels_if_one_step_has(self, table: Table, tags: dict[str, str]) -> None:
        forget(table, uids=[uid(4)])
        tables.label(table, "depth", "r3")
        forget(table, uids=[uid(5)])  # from r2 to r3
        forget(table, uids=[uid(6)])
        with pytest.raises(TagForgottenError, match="may be of other revisions"):
            Table.at(table.uri, tag=tags["three"])

    def test_dropped_ones_are_asked_too(self, table: Table, tags: dict[str, str]) -> None:
        """A run that trained on a tag which an earlier takedown dropped has seen the rows of a later one."""
        first = forget(table, uids=[uid(4)])
        assert first.earlier == {}
        assert set(forget(table, uids=[uid(5)]).earlier) == set(tags.values())
        assert set(forget(table, uids=[uid(25)]).earlier) == {tags["two"], tags["three"], *first.successors.values()} - {None}

    def test_rows_that_wait_for_labels_have_no_tag_to_name(self, table: Table, tags: dict[str, str]) -> None:
        tables.add(table, [row(40)])
        journal = forget(table, uids=[uid(3)])
        assert set(journal.successors.values()) == {None}
        with pytest.raises(TagForgottenError, match="no tag in its place; run `mtv label`") as raised:
            Table.at(table.uri, tag=tags["three"])
        assert raised.value.successor is None


class TestDryRun:
    def test_changes_nothing(self, table: Table) -> None:
        def state() -> dict[str, bytes]:
            return {str(path): path.read_bytes() for path in sorted(Path(table.uri).rglob("*")) if path.is_file()}

        before = state()
        plan = takedown.plan(table, Request(uids=[uid(3), "ee" * 16], urls=["http://example.org/9.jpg"], keys=["x:y"]))
        assert state() == before
        assert set(plan.found.rows) == {uid(3), uid(9), uid(30)}
        assert plan.not_found == {"uids": ["ee" * 16], "keys": ["x:y"]}
        assert {loss.removed for loss in plan.tags.values()} == {2, 3}
        assert plan.fragments == 3
        assert plan.versions == len(table.dataset().versions()) - 1
        reports = {f"reports/i/{name}" for name in ("gallery.jpg", "leaks.html", "card.md", "urls.csv", "report.json", "report.md")}
        assert set(plan.files) == {"_staging/ingest", "_staging/labels", *reports}

    def test_says_what_is_done_then(self, table: Table) -> None:
        request = Request(uids=[uid(3)], keys=["00001.tar:000002"])
        plan = takedown.plan(table, request)
        journal = takedown.run(table, request)[-1]
        assert (journal.num_rows, journal.num_rejects) == (len(plan.found.rows), len(plan.rejects.identities))
        assert (journal.tags, journal.fragments) == (plan.tags, plan.fragments)


class TestJournal:
    def test_names_nobody(self, table: Table) -> None:
        saved: list[bytes] = []
        original = takedown_journal.Journal.save

        def save(self: takedown_journal.Journal, where: Table) -> None:
            original(self, where)
            saved.append(where.files.read(f"_takedowns/{self.id}.json"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(takedown_journal.Journal, "save", save)
            forget(table, uids=[uid(3)], urls=["https://example.org/9.jpg"], keys=["00001.tar:000002"])
        assert len(saved) == 2
        for number in (3, 9, 10):
            one = row(number)
            for clear in (one["uid"], one["sha256"], one["url"], "00001.tar"):
                assert not any(clear.encode() in content for content in saved)
        assert json.loads(saved[0])["rows"]
        assert json.loads(saved[1])["rows"] == json.loads(saved[1])["denied"] == json.loads(saved[1])["rejects"] == ""

    def test_a_lost_key_stops_it(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(denylist.KEY_VARIABLE, "a key from the vault")
        die_at(table, "takedown.denied", uids=[uid(3)])
        monkeypatch.delenv(denylist.KEY_VARIABLE)
        with pytest.raises(ValueError, match="set MTV_DENY_KEY to the value it had"):
            takedown.resume(table)
        monkeypatch.setenv(denylist.KEY_VARIABLE, "a key from the vault")
        [journal] = takedown.resume(table)
        assert journal.state == "done"
        assert takedown.resume(table) == []
        assert on_disk(Path(table.uri), [3, 30]) == []


class _Died(BaseException):
    pass


def die_at(table: Table, point: str, action: Callable[[], Any] = lambda: None, **entries: Any) -> None:
    """Stop a takedown at a point. Kills are in tests/fault."""

    def fault(name: str) -> None:
        if name == point:
            action()
            raise _Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(takedown, "fault_point", fault)
        with pytest.raises(_Died):
            forget(table, **entries)


class TestInterrupted:
    def test_a_new_one_finishes_it_first(self, table: Table) -> None:
        die_at(table, "takedown.deleted", uids=[uid(3)])
        assert [journal.state for journal in takedown_journal.pending(table)] == ["begun"]
        first, second = takedown.run(table, Request(uids=[uid(20)]))
        assert (first.num_rows, second.num_rows) == (2, 1)
        assert on_disk(Path(table.uri), [3, 20, 30]) == []
        assert takedown_journal.pending(table) == []

    def test_what_was_tagged_meanwhile_is_dropped_too(self, table: Table, tags: dict[str, str]) -> None:
        die_at(table, "takedown.deleted", uids=[uid(3)])
        between = table.tag({"depth": "r2", "detection": "d1"})  # its files still hold the rows
        [journal] = takedown.resume(table)
        assert set(journal.tags) == {*tags.values(), between}
        assert on_disk(Path(table.uri), [3, 30]) == []
        assert len(table.tags()) == 1

    def test_what_appears_while_it_runs_is_not_overlooked(self, table: Table) -> None:
        """Somebody who does not ask for the lock tags in the wrong moment: the takedown does not say that it is done."""

        def tag(name: str) -> None:
            if name == "takedown.untagged" and "mtv-wrong" not in table.tags():
                table.dataset(version).tags.create("mtv-wrong", version)

        version = table.version
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(takedown, "fault_point", tag)
            with pytest.raises(RuntimeError, match=rf"not everything is gone.*version {version} has rows of it.*mtv forget --resume"):
                forget(table, uids=[uid(3)])
        assert takedown.resume(table)[0].state == "done"
        assert on_disk(Path(table.uri), [3, 30]) == []

    def test_refused_while_somebody_writes(self, table: Table) -> None:
        from mtv_core.store import locks

        before = table.version
        with locks.writing(table, "an ingest"), pytest.raises(OSError, match="an ingest"):
            forget(table, uids=[uid(3)])
        assert table.version == before
        assert not Denylist.load(table).denies(row(3)["sha256"], None)


def test_a_hundred_thousand(tmp_path: Path) -> None:
    """Half of 100 000 rows, and as many entries nobody has heard of: a matter of seconds."""
    table = Table.create_or_open(str(tmp_path / "table"))
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(150_000)]
    columns = {name: [value] * 100_000 for name, value in row(0).items()}
    columns |= {"image": [b"x"] * 100_000, "uid": [one[:32] for one in hashes[:100_000]], "sha256": hashes[:100_000]}
    columns |= {"url": [f"https://example.org/{n}" for n in range(100_000)], "key": [str(n) for n in range(100_000)]}
    table.append(pa.table(columns, schema=SAMPLES), 10_000)
    began = time.monotonic()
    journal = forget(table, uids=[one[:32] for one in hashes[50_000:]], urls=[f"http://example.org/{n}#" for n in range(0, 200_000, 2)])
    seconds = time.monotonic() - began
    assert journal.num_rows == 75_000
    assert journal.not_found == {"uids": 50_000, "urls": 50_000}
    assert table.num_rows == 25_000
    assert set(table.dataset().to_table(columns=["key"])["key"].to_pylist()) == {str(n) for n in range(1, 50_000, 2)}
    assert seconds < 60


class TestObjectStore:
    def test_gone_from_every_object(self, bucket: str) -> None:
        """On S3 as on a disk; and a killed one is resumed there."""
        table, tags = tables.make(f"{bucket}/a/table")
        before = everything(table)
        assert {name.split("/")[2] for name in on_disk(bucket, [3])} == {"samples.lance", "rejects.lance", "_staging", "reports"}
        plan = takedown.plan(table, Request(uids=[uid(3)]))
        die_at(table, "takedown.untagged", uids=[uid(3)])
        [journal] = takedown.resume(table)
        assert on_disk(bucket, [3, 30]) == []
        assert journal.tags == plan.tags
        gone = {uid(3), uid(30)}
        assert everything(table) == {one: values for one, values in before.items() if one not in gone}
        assert Denylist.load(table).denies(row(3)["sha256"], None)
        [successor] = table.tags()
        with pytest.raises(TagForgottenError, match=f"successor is {successor}"):
            Table.at(table.uri, tag=tags["three"])
        left = [name for name, _ in tables.files(bucket) if "/reports/" in name or "/_staging/" in name]
        assert sorted(left) == [f"a/table/reports/{name}" for name in ("i/stats.json", "j/report.json")]
