"""Ingest: every good sample a row, every other a reason, each exactly once."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tars import picture, sample, shards, tar

from mtv_core import ingest, ingest_commit, ingest_shard
from mtv_core.data.sources import SourceConfig, expand
from mtv_core.executor import Outcome, SerialExecutor
from mtv_core.ingest_config import IngestConfig
from mtv_core.store import denylist, staging
from mtv_core.store.table import Table


def run(table: Path, *uris: Path | str, executor: Any = None, **config: Any) -> ingest.IngestResult:
    sources = [SourceConfig(uri=str(uri)) for uri in uris]
    return ingest.run(sources, str(table), IngestConfig(**config), executor or SerialExecutor())


def rows(table: Path) -> list[dict[str, Any]]:
    return Table.open(str(table)).dataset().to_table().to_pylist()


def uids(table: Path) -> list[str]:
    return [row["uid"] for row in rows(table)]


def reasons(table: Path) -> list[tuple[str, str]]:
    return sorted((row["key"], row["error"]) for row in Table.create_or_open(str(table)).rejects.read().to_pylist())


def ledger(table: Path) -> list[tuple[int, int, int, str]]:
    entries = Table.create_or_open(str(table)).ledger.read().to_pylist()
    return [(e["rows_in"], e["rows_out"], e["rows_rejected"], e["state"]) for e in sorted(entries, key=lambda e: e["uri"])]


class Backwards(SerialExecutor):
    """Another order of work."""

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, resources: Mapping[str, float] | None = None
    ) -> Iterator[Outcome[Any, Any]]:
        yield from super().map(function, items[::-1])


class Before(SerialExecutor):
    """Something happens after the shards were listed and before they are read."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, resources: Mapping[str, float] | None = None
    ) -> Iterator[Outcome[Any, Any]]:
        self.action()
        yield from super().map(function, items)


def test_every_sample_is_a_row_in_order(tmp_path: Path) -> None:
    shards(tmp_path / "in", 3, 10)
    result = run(tmp_path / "t", tmp_path / "in", rows_per_fragment=12, held_out=0.5)
    found = rows(tmp_path / "t")
    assert (result.rows, result.report.rows_in, result.report.rows_out) == (30, 30, 30)
    for number, row in enumerate(found):
        image, caption = picture(number), f"picture {number}"
        assert row["image"] == image
        assert row["uid"] == hashlib.sha256(image + caption.encode()).hexdigest()[:32]
        assert (row["width"], row["height"], row["caption"], row["caption_raw"]) == (24, 16, caption, caption)
        assert row["captions"] == [{"text": caption, "kind": "web"}]
        assert (row["key"], row["source"], row["license"]) == (f"{number:06d}", "in", "CC0-1.0")
        assert row["url"] == json.loads(row["meta"])["url"]
        assert row["sha256"] == hashlib.sha256(image).hexdigest()
    assert {row["split"] for row in found} == {"train", "held_out"}
    fragments = Table.open(str(tmp_path / "t")).dataset().get_fragments()
    assert [fragment.physical_rows for fragment in fragments] == [12, 12, 6]
    assert ledger(tmp_path / "t") == [(10, 10, 0, "done")] * 3


def test_order_of_work_and_cutting_change_no_row(tmp_path: Path) -> None:
    shards(tmp_path / "in", 3, 10)
    tar(tmp_path / "in" / "more.tar", [*sample(3), *sample(5, "b"), *sample(90)])
    run(tmp_path / "one", tmp_path / "in")
    run(tmp_path / "other", *sorted((tmp_path / "in").iterdir(), reverse=True), executor=Backwards(), rows_per_fragment=4)
    assert rows(tmp_path / "other") == rows(tmp_path / "one")
    assert reasons(tmp_path / "other") == reasons(tmp_path / "one")
    assert ledger(tmp_path / "other") == ledger(tmp_path / "one")


def test_again_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "in", 2, 3)
    first = run(tmp_path / "t", tmp_path / "in")
    monkeypatch.setattr(ingest_shard, "read", lambda *_: pytest.fail("a shard was opened"))
    second = run(tmp_path / "t", tmp_path / "in")
    assert (second.version, second.rows, second.report.rows_out, second.report.rows_skipped) == (first.version, 6, 0, 6)


def test_new_shards_are_added(tmp_path: Path) -> None:
    shards(tmp_path / "in", 1, 3)
    run(tmp_path / "t", tmp_path / "in")
    shards(tmp_path / "more", 1, 4, first=50)
    result = run(tmp_path / "t", tmp_path / "in", tmp_path / "more")
    assert (result.rows, result.report.rows_out, result.report.rows_skipped) == (7, 4, 3)
    assert [row["source"] for row in rows(tmp_path / "t")] == ["in"] * 3 + ["more"] * 4


def test_bad_samples_are_rows_with_reasons(tmp_path: Path) -> None:
    members = [
        *sample(1),
        ("nocaption.jpg", picture(2)),
        ("blank.jpg", picture(3)),
        ("blank.txt", b" \n\t"),
        ("broken.jpg", picture(4)[:200]),
        ("broken.txt", b"a"),
        ("latin.jpg", picture(5)),
        ("latin.txt", b"caf\xe9"),
        ("noimage.txt", b"a"),
        ("page.jpg", b"<html>"),
        ("page.txt", b"a"),
        ("huge.jpg", b"x" * 5000),
        ("huge.txt", b"a"),
        *sample(9),
    ]
    tar(tmp_path / "in" / "0.tar", members)
    report = run(tmp_path / "t", tmp_path / "in", max_bytes=4000).report
    assert reasons(tmp_path / "t") == [
        ("blank", "NoCaption"),
        ("broken", "BrokenImage"),
        ("huge", "TooLarge"),
        ("latin", "CaptionNotUtf8"),
        ("nocaption", "NoCaption"),
        ("noimage", "NoImage"),
        ("page", "UnsupportedImage"),
    ]
    assert [row["key"] for row in rows(tmp_path / "t")] == ["000001", "000009"]
    assert ledger(tmp_path / "t") == [(9, 2, 7, "done")]
    assert report.counts["rejected/NoCaption"] == 2
    messages = Table.open(str(tmp_path / "t")).rejects.read()["message"].to_pylist()
    assert any("add a .txt of the same key" in message for message in messages)


def test_captions_are_cleaned_and_kept_as_received(tmp_path: Path) -> None:
    tar(
        tmp_path / "in" / "0.tar",
        [("a.jpg", picture(1)), ("a.txt", "  Cafe\u0301 \n au\tlait ".encode()), ("a.caption", b"two"), ("a.json", b"{")],
    )
    run(tmp_path / "t", tmp_path / "in")
    [row] = rows(tmp_path / "t")
    assert row["caption"] == "Café au lait"
    assert row["caption_raw"] == "  Cafe\u0301 \n au\tlait "
    assert [caption["text"] for caption in row["captions"]] == ["Café au lait", "two"]
    assert row["meta"] is None


class TestDuplicates:
    def test_the_smallest_uid_survives(self, tmp_path: Path) -> None:
        image = picture(1)
        captions = ["one", "two", "three"]
        for number, caption in enumerate(captions):
            tar(tmp_path / "in" / f"{number}.tar", [(f"{number}.jpg", image), (f"{number}.txt", caption.encode())])
        run(tmp_path / "t", tmp_path / "in")
        expected = min(hashlib.sha256(image + caption.encode()).hexdigest()[:32] for caption in captions)
        assert uids(tmp_path / "t") == [expected]
        refused = Table.open(str(tmp_path / "t")).rejects.read().to_pylist()
        assert [(r["error"], r["survivor"]) for r in refused] == [("Duplicate", expected)] * 2

    def test_rows_in_the_table_win(self, tmp_path: Path) -> None:
        captions = sorted(["one", "two"], key=lambda text: hashlib.sha256(picture(1) + text.encode()).hexdigest(), reverse=True)
        for folder, caption in zip(("first", "second"), captions, strict=True):
            tar(tmp_path / folder / "0.tar", [("a.jpg", picture(1)), ("a.txt", caption.encode()), *sample(10 + len(folder))])
            run(tmp_path / "t", tmp_path / folder)
        assert [row["caption"] for row in rows(tmp_path / "t")] == [captions[0], "picture 15", "picture 16"]
        assert reasons(tmp_path / "t") == [("a", "Duplicate")]


class TestDamagedShards:
    def test_cut_then_repaired(self, tmp_path: Path) -> None:
        path, good = shards(tmp_path / "in", 2, 10)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        run(tmp_path / "t", tmp_path / "in")
        kept = len(rows(tmp_path / "t")) - 10
        assert 2 < kept < 8
        assert reasons(tmp_path / "t") == [("", "TruncatedShard")]
        assert ledger(tmp_path / "t") == [(kept, kept, 0, "damaged"), (10, 10, 0, "done")]

        path.write_bytes(whole)
        result = run(tmp_path / "t", tmp_path / "in")
        assert sorted(uids(tmp_path / "t")) == sorted(
            hashlib.sha256(picture(n) + f"picture {n}".encode()).hexdigest()[:32] for n in range(20)
        )
        assert (result.report.rows_out, result.report.rows_skipped) == (10 - kept, kept + 10)
        assert reasons(tmp_path / "t") == []
        [note] = result.notes
        assert note == f"{path} changed since it was ingested: {10 - kept} rows are new, {kept} are as before"
        assert good.exists()

    def test_a_touched_shard_adds_nothing(self, tmp_path: Path) -> None:
        [path] = shards(tmp_path / "in", 1, 5)
        version = run(tmp_path / "t", path).version
        os.utime(path, ns=(1, 1))
        assert run(tmp_path / "t", path).version == version
        assert reasons(tmp_path / "t") == []

    def test_a_shard_that_cannot_be_read_is_tried_again(self, tmp_path: Path) -> None:
        path, _ = shards(tmp_path / "in", 2, 3)
        content = path.read_bytes()
        run(tmp_path / "t", tmp_path / "in", executor=Before(lambda: path.unlink(missing_ok=True)))
        assert (len(rows(tmp_path / "t")), len(ledger(tmp_path / "t"))) == (3, 1)
        [refused] = Table.open(str(tmp_path / "t")).rejects.read().to_pylist()
        assert (refused["error"], refused["reject_class"], refused["location"]) == ("Unreadable", "transient", str(path))
        path.write_bytes(content)
        run(tmp_path / "t", tmp_path / "in")
        assert len(rows(tmp_path / "t")) == 6
        assert reasons(tmp_path / "t") == []

    def test_no_shard_can_be_read(self, tmp_path: Path) -> None:
        [path] = shards(tmp_path / "in", 1, 3)
        with pytest.raises(OSError, match="none of 1 shards could be read"):
            run(tmp_path / "t", tmp_path / "in", executor=Before(path.unlink))
        assert not Table.create_or_open(str(tmp_path / "t")).exists()

    def test_nothing_usable_says_why_and_makes_no_table(self, tmp_path: Path) -> None:
        tar(tmp_path / "in" / "0.tar", [("a.jpg", picture(1)), ("b.jpg", picture(2))])
        tar(tmp_path / "in" / "1.tar", [("labels.csv", b"1")])
        for _ in range(2):
            with pytest.raises(ValueError, match=r"not one usable sample \(2 × NoCaption, 1 × EmptyShard|1 × NoImage"):
                run(tmp_path / "t", tmp_path / "in")
        assert not (tmp_path / "t" / "samples.lance").exists()


class TestTarget:
    def test_not_a_folder(self, tmp_path: Path) -> None:
        shards(tmp_path / "in", 1, 3)
        (tmp_path / "file").write_text("")
        with pytest.raises(PermissionError, match=r"cannot write to .*choose another table.uri"):
            run(tmp_path / "file" / "t", tmp_path / "in")

    @pytest.mark.parametrize("kilobytes", [1, 12, 40])
    def test_full(self, tmp_path: Path, kilobytes: int) -> None:
        """Full while staging, while writing the fragment, or while committing: said, and afterwards the run goes through."""
        for number in range(6):
            tar(tmp_path / "in" / f"{number}.tar", [m for n in range(12) for m in sample(12 * number + n)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, hard))
        try:
            with pytest.raises(OSError, match="no space left to write"):
                run(tmp_path / "t", tmp_path / "in")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not Table.create_or_open(str(tmp_path / "t")).exists()
        assert run(tmp_path / "t", tmp_path / "in").rows == 72

    def test_another_ingest_meanwhile(self, tmp_path: Path) -> None:
        """It brings the shards of the first, and more; the first finds them done."""
        shards(tmp_path / "in", 2, 3)
        shards(tmp_path / "more", 1, 5, first=3)

        def second() -> None:
            run(tmp_path / "t", tmp_path / "in", tmp_path / "more")
            assert (tmp_path / "t" / "_staging" / "ingest").exists()  # the first may need it

        run(tmp_path / "t", tmp_path / "in", executor=Before(second))
        assert sorted(row["key"] for row in rows(tmp_path / "t")) == [f"{n:06d}" for n in range(8)]
        assert ledger(tmp_path / "t") == [(3, 3, 0, "done"), (3, 3, 0, "done"), (5, 2, 3, "done")]
        assert not (tmp_path / "t" / "_staging" / "ingest").exists()

    def test_rows_added_meanwhile_are_not_doubled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever writes without the right to: the commit sees that the table is not the one that was deduplicated against."""
        shards(tmp_path / "in", 1, 3)
        shards(tmp_path / "other", 1, 2, first=1)
        run(tmp_path / "t", tmp_path / "other")
        shards(tmp_path / "third", 1, 3)
        decide = ingest_commit.decide_staged

        def meanwhile(*arguments: Any) -> Any:
            decided = decide(*arguments)
            table = Table.open(str(tmp_path / "t"))
            table.append(table.dataset().to_table().slice(0, 1))
            return decided

        monkeypatch.setattr(ingest_commit, "decide_staged", meanwhile)
        with pytest.raises(OSError, match="others added rows"):
            run(tmp_path / "t", tmp_path / "in")
        assert len(rows(tmp_path / "t")) == 3


class TestChangedShards:
    def rewrite(self, path: Path, numbers: list[int]) -> None:
        """Another content behind the same path, size and time."""
        stat = path.stat()
        tar(path, [member for n in numbers for member in sample(n)])
        assert path.stat().st_size == stat.st_size
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))

    def test_rows_that_are_gone_stay_and_are_told_of(self, tmp_path: Path) -> None:
        [path] = shards(tmp_path / "in", 1, 4)
        run(tmp_path / "t", path)
        tar(path, [member for n in (2, 3, 4) for member in sample(n)])
        result = run(tmp_path / "t", path)
        assert [row["key"] for row in rows(tmp_path / "t")] == [f"{n:06d}" for n in range(5)]
        assert result.notes == [
            f"{path} changed since it was ingested: 1 rows are new, 2 are as before; 2 rows of the table are not in it any more and stay "
            "(mtv forget removes them)"
        ]
        entries = Table.open(str(tmp_path / "t")).ledger.read().to_pylist()
        assert [entry["replaces"] for entry in entries] == [None, entries[0]["shard"]]
        assert run(tmp_path / "t", path).notes == []

    def test_changed_and_changed_back(self, tmp_path: Path) -> None:
        [path] = shards(tmp_path / "in", 1, 3)
        first, time = path.read_bytes(), path.stat().st_mtime_ns
        run(tmp_path / "t", path)
        tar(path, [member for n in (1, 2, 3) for member in sample(n)])
        run(tmp_path / "t", path)
        path.write_bytes(first)
        os.utime(path, ns=(time, time))
        result = run(tmp_path / "t", path)
        assert "0 rows are new, 3 are as before; 1 rows of the table are not in it" in result.notes[0]
        assert [row["key"] for row in rows(tmp_path / "t")] == [f"{n:06d}" for n in range(4)]
        assert run(tmp_path / "t", path).notes == []

    def test_a_change_that_size_and_time_do_not_show(self, tmp_path: Path) -> None:
        path, _ = shards(tmp_path / "in", 2, 3)
        run(tmp_path / "t", tmp_path / "in")
        self.rewrite(path, [6, 7, 8])
        assert run(tmp_path / "t", tmp_path / "in").notes == []
        result = run(tmp_path / "t", tmp_path / "in", verify="content")
        assert "3 rows are new, 0 are as before; 3 rows of the table" in result.notes[0]
        assert (result.report.rows_in, result.report.rows_out, result.report.rows_skipped) == (3, 3, 3)
        assert len(rows(tmp_path / "t")) == 9
        for verify in ("stat", "content"):
            again = run(tmp_path / "t", tmp_path / "in", verify=verify)
            assert (again.notes, again.report.rows_in) == ([], 0)


class TestReading:
    def parquet(self, path: Path, **columns: list[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"photo": [picture(n, (64, 48)) for n in range(3)], **columns}), path)
        return path

    def ingest(self, table: Path, path: Path, **columns: Any) -> ingest.IngestResult:
        return ingest.run([SourceConfig(uri=str(path), columns=columns)], str(table), IngestConfig(), SerialExecutor())

    def test_columns_that_are_corrected_are_read(self, tmp_path: Path) -> None:
        path = self.parquet(tmp_path / "a.parquet", words=["one picture", "two pictures", "three pictures"])
        with pytest.raises(ValueError, match="MissingColumns"):
            self.ingest(tmp_path / "t", path)
        with pytest.raises(ValueError, match="MissingColumns"):
            self.ingest(tmp_path / "t", path, image="photo")
        result = self.ingest(tmp_path / "t", path, image="photo", captions=["words"])
        assert (result.rows, reasons(tmp_path / "t")) == (3, [])
        assert self.ingest(tmp_path / "t", path, image="photo", captions=["words"]).report.rows_in == 0

    def test_other_captions_of_the_same_pictures(self, tmp_path: Path) -> None:
        """Rows of the table win; it is said that the shard was read in another way."""
        path = self.parquet(tmp_path / "a.parquet", en=["one picture"] * 3, de=["ein Bild"] * 3)
        self.ingest(tmp_path / "t", path, image="photo", captions=["en"])
        result = self.ingest(tmp_path / "t", path, image="photo", captions=["de"])
        assert "is read in another way than it was ingested: 0 rows are new, 0 are as before" in result.notes[0]
        assert {row["caption"] for row in rows(tmp_path / "t")} == {"one picture"}
        assert reasons(tmp_path / "t") == [(f"{n:09d}", "Duplicate") for n in range(3)]

    def test_one_shard_in_two_ways_at_once(self, tmp_path: Path) -> None:
        path = self.parquet(tmp_path / "a.parquet", en=["one picture"] * 3, de=["ein Bild"] * 3)
        sources = [SourceConfig(uri=str(path), columns={"image": "photo", "captions": [name]}) for name in ("en", "de")]
        with pytest.raises(ValueError, match=r"two sources name .*a shard is read in one way"):
            ingest.run(sources, str(tmp_path / "t"), IngestConfig(), SerialExecutor())

    def test_a_source_whose_pictures_look_alike(self, tmp_path: Path) -> None:
        large = [picture(1, (240, 160), quality=quality) for quality in (90, 75)]
        tar(tmp_path / "in" / "0.tar", [m for n, image in enumerate(large) for m in ((f"{n}.jpg", image), (f"{n}.txt", b"large"))])
        for compared, expected in ((True, 1), (False, 2)):
            source = SourceConfig(uri=str(tmp_path / "in"), near_duplicates=compared)
            assert ingest.run([source], str(tmp_path / f"t{compared}"), IngestConfig(), SerialExecutor()).rows == expected


class TestRetry:
    def retry(self, table: Path, source: Path, config: dict[str, Any], **choice: Any) -> ingest.IngestResult:
        return ingest.retry([SourceConfig(uri=str(source))], str(table), IngestConfig(**config), SerialExecutor(), **choice)

    def test_with_other_limits(self, tmp_path: Path) -> None:
        """The refused sample becomes a row, the one that is refused again counts an attempt more, the others are let alone."""
        large = picture(5, size=(64, 64))
        members = [
            *sample(1),
            ("big.jpg", large),
            ("big.txt", b"a big one"),
            ("cut.jpg", picture(6)[:200]),
            ("cut.txt", b"x"),
            *sample(1, "b"),
        ]
        tar(tmp_path / "in" / "0.tar", members)
        run(tmp_path / "t", tmp_path / "in", max_pixels=1000)
        assert reasons(tmp_path / "t") == [("b000001", "Duplicate"), ("big", "TooManyPixels"), ("cut", "BrokenImage")]
        result = self.retry(tmp_path / "t", tmp_path / "in", {})
        assert (result.report.rows_in, result.report.rows_out, result.report.rows_rejected) == (2, 1, 1)
        assert [row["key"] for row in rows(tmp_path / "t")] == ["000001", "big"]
        refused = Table.open(str(tmp_path / "t")).rejects.read().to_pylist()
        assert sorted((r["key"], r["error"], r["attempt"]) for r in refused) == [("b000001", "Duplicate", 1), ("cut", "BrokenImage", 2)]
        assert ledger(tmp_path / "t")[-1] == (4, 2, 2, "done")
        assert run(tmp_path / "t", tmp_path / "in").report.rows_in == 0
        assert not (tmp_path / "t" / "_staging" / "ingest").exists()

    def test_only_what_is_meant(self, tmp_path: Path) -> None:
        members = [
            ("big.jpg", picture(5, size=(64, 64))),
            ("big.txt", b"a big one"),
            ("cut.jpg", picture(6)[:200]),
            ("cut.txt", b"x"),
            *sample(1),
        ]
        tar(tmp_path / "in" / "0.tar", members)
        run(tmp_path / "t", tmp_path / "in", max_pixels=1000)
        result = self.retry(tmp_path / "t", tmp_path / "in", {}, reasons=["BrokenImage"])
        assert (result.report.rows_in, result.report.rows_out) == (1, 0)
        with pytest.raises(ValueError, match=r"no refusal of .* is meant"):
            self.retry(tmp_path / "t", tmp_path / "in", {}, reasons=["NoCaption"])
        assert self.retry(tmp_path / "t", tmp_path / "in", {}, keys=["big"]).report.rows_out == 1

    def test_shards_that_changed_are_left_to_ingest(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "in" / "0.tar", [("cut.jpg", picture(6)[:200]), ("cut.txt", b"x"), *sample(1)])
        run(tmp_path / "t", tmp_path / "in")
        tar(path, [("cut.jpg", picture(6)), ("cut.txt", b"x"), *sample(1)])
        with pytest.raises(ValueError, match=r"among the sources as it was.*mtv ingest"):
            self.retry(tmp_path / "t", tmp_path / "in", {})
        assert run(tmp_path / "t", tmp_path / "in").report.rows_out == 1
        assert reasons(tmp_path / "t") == []


class TestEvaluationLeaks:
    def test_leaks_are_refused_and_told_of(self, tmp_path: Path) -> None:
        tar(tmp_path / "old" / "0.tar", sample(7))
        run(tmp_path / "t", tmp_path / "old")
        tar(tmp_path / "bench" / "0.tar", [("one.jpg", picture(1)), ("seven.jpg", picture(7)), ("other.jpg", picture(99))])
        shards(tmp_path / "in", 1, 3)
        result = run(tmp_path / "t", tmp_path / "in", decontaminate={"sets": [{"uri": str(tmp_path / "bench"), "name": "bench"}]})
        assert [row["key"] for row in rows(tmp_path / "t")] == ["000007", "000000", "000002"]
        [refused] = Table.open(str(tmp_path / "t")).rejects.read().to_pylist()
        assert (refused["key"], refused["error"], refused["survivor"]) == ("000001", "EvaluationLeak", "bench/one")
        assert "1 rows of the table show evaluation images" in result.notes[0]
        assert "bench/seven" in result.notes[0]

    def test_a_set_that_is_named_later(self, tmp_path: Path) -> None:
        """Nothing is new, and still the table is compared with it; the file of uids is one that a takedown takes."""
        shards(tmp_path / "in", 1, 8)
        tar(tmp_path / "bench" / "0.tar", [(f"{n}.jpg", picture(n)) for n in range(7)])
        run(tmp_path / "t", tmp_path / "in")
        later = {"decontaminate": {"sets": [str(tmp_path / "bench")]}}
        [note] = run(tmp_path / "t", tmp_path / "in", **later).notes
        assert "7 rows of the table show evaluation images" in note
        assert "and 2 more; remove them with `mtv forget --uids" in note
        listed = (tmp_path / "t" / "reports" / "leaks.txt").read_text().split()
        assert sorted(listed) == sorted(row["uid"] for row in rows(tmp_path / "t") if row["key"] != "000007")

    def test_a_set_that_cannot_be_read_stops_the_ingest(self, tmp_path: Path) -> None:
        shards(tmp_path / "in", 1, 3)
        path = tar(tmp_path / "bench" / "0.tar", [("one.jpg", picture(1)), ("two.jpg", picture(2))])
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(ValueError, match="cannot be kept out of training"):
            run(tmp_path / "t", tmp_path / "in", decontaminate={"sets": [{"uri": str(tmp_path / "bench")}]})
        assert not Table.create_or_open(str(tmp_path / "t")).exists()


def test_a_budget_stops_before_anything_is_committed(tmp_path: Path) -> None:
    tar(tmp_path / "in" / "0.tar", [*sample(0), *(m for n in range(1, 9) for m in ((f"{n}.jpg", picture(n)[:200]), (f"{n}.txt", b"x")))])
    with pytest.raises(ValueError, match=r"ingest was stopped: 8 of 9 samples failed \(8 × BrokenImage\)"):
        run(tmp_path / "t", tmp_path / "in", failures={"min_samples": 5})
    assert not Table.create_or_open(str(tmp_path / "t")).exists()
    with pytest.raises(ValueError, match=r"For example BrokenImage: .*0\.tar#1 \(the image is"):
        run(tmp_path / "t", tmp_path / "in", failures={"min_samples": 5})
    assert run(tmp_path / "t", tmp_path / "in", failures={"min_samples": 5, "share": 0.9}).rows == 1
    source = [SourceConfig(uri=str(tmp_path / "in"))]  # what is tried again failed before: it does not count
    config = IngestConfig(failures={"min_samples": 5})  # type: ignore[arg-type]
    assert ingest.retry(source, str(tmp_path / "t"), config, SerialExecutor()).report.rows_rejected == 8


def test_what_a_worker_stages_after_a_takedown_is_not_used(tmp_path: Path) -> None:
    """It outlived its driver: what it read was allowed then."""
    tar(tmp_path / "in" / "0.tar", [m for n in range(3) for m in sample(n)])
    [shard] = expand(SourceConfig(uri=str(tmp_path / "in")))
    run(tmp_path / "t", tar(tmp_path / "other" / "0.tar", sample(9)))
    table = Table.open(str(tmp_path / "t"))
    key = denylist.make_key(table)
    denylist.add(table, key, denylist.hashes(key, {"image": [hashlib.sha256(picture(1)).hexdigest()]}))
    ingest_shard.stage_shard(
        ingest_shard.ShardJob(table.uri, shard, IngestConfig(), {}, denied=ingest._digest(Table(str(tmp_path / "new"))))
    )
    run(tmp_path / "t", tmp_path / "in")
    assert [row["key"] for row in rows(tmp_path / "t")] == ["000009", "000000", "000002"]
    assert reasons(tmp_path / "t") == [("000001", "Forgotten")]


def test_speed_does_not_count_what_was_staged_before(tmp_path: Path) -> None:
    shards(tmp_path / "in", 6, 20)
    for shard in expand(SourceConfig(uri=str(tmp_path / "in")))[:5]:
        job = ingest_shard.ShardJob(str(tmp_path / "t"), shard, IngestConfig(), {}, denied=ingest._digest(Table(str(tmp_path / "t"))))
        assert not ingest_shard.stage_shard(job).found
        assert ingest_shard.stage_shard(job).found
    said: list[str] = []
    ingest.run(
        [SourceConfig(uri=str(tmp_path / "in"))], str(tmp_path / "t"), IngestConfig(), SerialExecutor(), lambda *told: said.append(told[2])
    )
    assert not any("samples/s" in one for one in said[:6])


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    shards(tmp_path / "in", 1, 3)
    run(tmp_path / "t", tmp_path / "in")
    data = tmp_path / "t" / "samples.lance" / "data"
    [published] = data.iterdir()
    for name in ("0" * 24 + "a" * 26 + ".lance", "label-depth-r1-1-0-aa.lance", ".tmpOLD", ".tmpNEW"):
        (data / name).write_bytes(b"")
    os.utime(data / ".tmpOLD", (1, 1))
    (tmp_path / "t" / "_staging" / "ingest" / "0123").mkdir(parents=True)
    run(tmp_path / "t", tmp_path / "in")
    assert {path.name for path in data.iterdir()} == {published.name, "label-depth-r1-1-0-aa.lance", ".tmpNEW"}


class _LosesWorkers:
    """Runs each item again after its worker was lost, as Dask does."""

    def __init__(self) -> None:
        self.lost = 0

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, resources: Mapping[str, float] | None = None
    ) -> Iterator[Outcome[Any, Any]]:
        for item in items:
            try:
                result = function(item)
            except SystemExit:
                self.lost += 1
                result = function(item)
            yield Outcome(item, result=result)


def test_a_worker_that_is_lost_within_a_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path / "in", 2, 3)
    passed: Counter[str] = Counter()

    def dies_at_first(point: str) -> None:
        passed[point] += 1
        if point == "ingest.fragment_written" and passed[point] == 1:
            raise SystemExit  # the data file is there, its record is not

    monkeypatch.setattr(staging, "fault_point", dies_at_first)
    executor = _LosesWorkers()
    ingest.run([SourceConfig(uri=str(tmp_path / "in"))], str(tmp_path / "t"), IngestConfig(), executor)
    assert executor.lost == 1
    dataset = Table.open(str(tmp_path / "t")).dataset()
    named = {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}
    assert dataset.count_rows() == 6
    assert {path.name for path in (tmp_path / "t" / "samples.lance" / "data").iterdir()} == named


def test_nothing_is_left_in_staging(tmp_path: Path) -> None:
    shards(tmp_path / "in", 2, 3)
    run(tmp_path / "t", tmp_path / "in")
    assert [path.name for path in (tmp_path / "t" / "_staging").rglob("*")] == []
