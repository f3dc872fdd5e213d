"""Folders of images and COCO: nothing is lost, whoever forgot what; parts stay what they are when others change."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import Content, coco, contents, fingerprint, folder_jsonl, folder_texts
from tars import picture, tar

from mtv_core.data.sources import RawSample, ShardRef, SourceConfig, expand, imagefolder, metadata, parts, read
from mtv_core.data.sources.access import opened
from mtv_core.data.sources.config import Columns
from mtv_core.data.sources.jsonstream import items
from mtv_core.data.sources.parts import Member
from mtv_core.report import Reject

LIMIT = 1 << 20


def everything(uri: Path | str, limit: int = LIMIT, columns: Columns | None = None, **config: object) -> list[RawSample]:
    shards = expand(SourceConfig(uri=str(uri), columns=columns or Columns(), **config))  # type: ignore[arg-type]
    found = [one for shard in shards for one in read(shard, limit)]
    assert not [one for one in found if isinstance(one, Reject)]
    return [one for one in found if isinstance(one, RawSample)]


def outcomes(found: list[RawSample]) -> dict[str, str]:
    """Key → reason; empty for a good sample."""

    def reason(one: RawSample) -> str:
        if one.problem:
            return one.problem[0]
        return "TooLarge" if one.too_large else "NoImage" if one.image is None else "" if one.captions else "NoCaption"

    assert len({one.key for one in found}) == len(found)
    return {one.key: reason(one) for one in found}


def texts(one: RawSample) -> list[tuple[str, str]]:
    return [(caption.text.decode(), caption.kind) for caption in one.captions]


def images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))


def jsonl(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


class TestMetadata:
    def test_every_row_and_every_image_has_an_outcome(self, tmp_path: Path) -> None:
        images(tmp_path / "in", "a.jpg", "b.PNG", "c.webp", "d.jpg", "sub/e.jpg")
        (tmp_path / "outside.jpg").write_bytes(picture(9))
        (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
        (tmp_path / "in" / "here.jpg").symlink_to(tmp_path / "in" / "a.jpg")
        (tmp_path / "in" / "nothing.jpg").symlink_to(tmp_path / "gone.jpg")
        os.mkfifo(tmp_path / "in" / "pipe.jpg")
        jsonl(
            tmp_path / "in" / "metadata.jsonl",
            {"file_name": "a.jpg", "text": "A"},
            {"file_name": "./b.PNG", "text": ""},
            {"file_name": "c.webp", "text": None},
            {"file_name": "sub/e.jpg", "text": ["E", "F"]},
            {"file_name": "gone.jpg", "text": "no image"},
            {"file_name": "../outside.jpg", "text": "stolen"},
            {"file_name": str(tmp_path / "outside.jpg"), "text": "stolen"},
            {"file_name": "link.jpg", "text": "stolen"},
            {"file_name": "here.jpg", "text": "fine"},
            {"file_name": "pipe.jpg", "text": "waits for ever"},
            {"file_name": "nothing.jpg", "text": "dangling"},
            {"file_name": "\ud800.jpg", "text": "half a letter"},
            {"file_name": "a\0b.jpg", "text": "NUL"},
            {"file_name": "x" * 3000, "text": "long"},
            {"text": "no name"},
            {"file_name": 3, "text": "no name"},
            "{",
            "[1]",
            "",
            "[" * 100_000,
            '{"file_name": "big", "text": "' + "x" * (2 << 20) + '"}',
        )
        found = outcomes(everything(tmp_path / "in"))
        assert found == {
            "a.jpg": "",
            "b.PNG": "",  # an empty caption, which whoever chooses captions refuses
            "c.webp": "NoCaption",
            "d.jpg": "NoCaption",
            "sub/e.jpg": "",
            "here.jpg": "",
            "gone.jpg": "NoImage",
            "../outside.jpg": "UnsafePath",
            str(tmp_path / "outside.jpg"): "UnsafePath",
            "link.jpg": "UnsafePath",
            "pipe.jpg": "UnsafePath",
            "nothing.jpg": "UnsafePath",
            "\\ud800.jpg": "NoImage",
            "a\0b.jpg": "UnsafePath",
            "x" * 3000: "NoImage",
            **{f"metadata.jsonl:{line}": "BadRow" for line in (15, 16, 17, 18, 20, 21)},
        }

    def test_locations_are_files(self, tmp_path: Path) -> None:
        images(tmp_path / "in", "x/a.jpg")
        jsonl(tmp_path / "in" / "x" / "metadata.jsonl", {"file_name": "a.jpg", "text": "A"})
        [one] = everything(tmp_path / "in")
        assert Path(one.location).read_bytes() == one.image

    def test_several_rows_of_one_image(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        jsonl(tmp_path / "metadata.jsonl", *({"file_name": "a.jpg", "text": text, "recaption": text.upper()} for text in "abc"))
        [one] = everything(tmp_path)
        assert texts(one) == [("a", "web"), ("b", "web"), ("c", "web"), ("A", "synthetic"), ("B", "synthetic"), ("C", "synthetic")]

    def test_meta(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        row = {"file_name": "a.jpg", "text": "A", "url": "http://x", "license": "mine", "objects": {"id": [1, 2]}, "score": 0.5}
        jsonl(tmp_path / "metadata.jsonl", row)
        [one] = everything(tmp_path)
        assert (one.url, one.license, json.loads(one.meta or b"")) == ("http://x", "mine", {"objects": {"id": [1, 2]}, "score": 0.5})

    def test_mapped(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        (tmp_path / "metadata.csv").write_text("picture,de,file_name,machine\na.jpg,ein Bild,gone.jpg,a picture\n")
        [one] = everything(tmp_path, columns=Columns(image="picture", captions=["de"], synthetic=["machine"]))
        assert (one.key, texts(one)) == ("a.jpg", [("ein Bild", "web"), ("a picture", "synthetic")])

    def test_csv_as_people_write_it(self, tmp_path: Path) -> None:
        images(tmp_path, *(f"{letter}.jpg" for letter in "abcdefg"))
        (tmp_path / "metadata.csv").write_bytes(
            b"\xef\xbb\xbffile_name,text,more\r\n"
            b'a.jpg,"two\r\nlines, ""quoted""",1\r\n'
            b"\r\n"
            b"b.jpg,caf\xe9,2\r\n"
            b"c.jpg\r\n"
            b"d.jpg,D,4,5,6\r\n"
            b",nobody,7\r\n" + "e.jpg,sep\u2028arated,8\r\n".encode() + b'f.jpg,"' + b"x" * 200_000 + b'",9\r\ng.jpg,G,10'
        )
        found = everything(tmp_path)
        assert {one.key: [caption.text for caption in one.captions] for one in found if not one.problem} == {
            "a.jpg": [b'two\r\nlines, "quoted"'],
            "b.jpg": [b"caf\xe9"],
            "c.jpg": [],
            "d.jpg": [],
            "e.jpg": ["sep\u2028arated".encode()],
            "f.jpg": [],
            "g.jpg": [b"G"],
        }
        bad = {key for key, reason in outcomes(found).items() if reason == "BadRow"}
        assert bad == {"metadata.csv:7", "metadata.csv:8", "metadata.csv:10"}
        assert [json.loads(one.meta or b"{}") for one in found if one.key == "b.jpg"] == [{"more": "2"}]

    @pytest.mark.parametrize("after", [[], ["x.jpg,X"] * 3, ['x.jpg,"X, quoted"'], ['x.jpg,"two', 'lines"'], ['x.jpg,"X ""quoted"" "']])
    @pytest.mark.parametrize("line", ['b.jpg,"open', 'b.jpg,"open""', 'b.jpg,"closed" late'])
    def test_csv_with_an_open_quote(self, tmp_path: Path, line: str, after: list[str]) -> None:
        """It costs its line: nothing after it becomes its caption, or is lost."""
        images(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "x.jpg")
        rows = ["file_name,text", "a.jpg,A", line, "c.jpg,C", *after, 'd.jpg,"D, the last"']
        (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
        found = everything(tmp_path)
        said = {one.key: texts(one)[0][0] for one in found if one.captions}
        assert (said["a.jpg"], said["c.jpg"], said["d.jpg"]) == ("A", "C", "D, the last")
        assert "b.jpg" not in said
        assert ("x.jpg" in said) == bool(after)
        assert [key for key, reason in outcomes(found).items() if reason == "BadRow"] == ["metadata.csv:3"]

    @pytest.mark.parametrize("content", [b"", b'"a', b"\n"])
    def test_csv_without_a_header(self, tmp_path: Path, content: bytes) -> None:
        images(tmp_path, "a.jpg")
        (tmp_path / "metadata.csv").write_bytes(content)
        with pytest.raises(ValueError, match="has to name its columns"):
            everything(tmp_path)

    def test_a_metadata_file_by_itself(self, tmp_path: Path) -> None:
        images(tmp_path / "pictures", "a.jpg", "b.jpg")
        jsonl(tmp_path / "lists" / "train.jsonl", {"image": "a.jpg", "caption": "A"})
        found = everything(tmp_path / "lists" / "train.jsonl", images=str(tmp_path / "pictures"))
        assert [(one.key, texts(one)) for one in found] == [("a.jpg", [("A", "web")])]

    def test_broken_parquet(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no PAR1")
        with pytest.raises(ValueError, match=r"metadata\.parquet is no parquet"):
            everything(tmp_path)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip),
            min_size=1,
            max_size=20,
        ),
        st.sampled_from(["jsonl", "csv", "parquet"]),
    )
    def test_any_text_comes_back(self, tmp_path_factory: pytest.TempPathFactory, captions: list[str], ending: str) -> None:
        """Rows that are found by their place say what a parser of the whole file reads."""
        folder = tmp_path_factory.mktemp("rows")
        rows = [{"file_name": f"{n}.jpg", "text": text} for n, text in enumerate(captions)]
        if ending == "jsonl":
            (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        elif ending == "csv":
            import csv

            with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, ["file_name", "text"]).writerows([{"file_name": "file_name", "text": "text"}, *rows])
        else:
            pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet", row_group_size=3)
        name = f"metadata.{ending}"
        found = {row.file_name: row.place for row in metadata.scan(str(folder / name), name, Columns(), None)}
        again = metadata.fetch(found.values(), str(folder), None)
        said = {name: again[place]["text"] for name, place in found.items()}
        assert {name: text if isinstance(text, str) else text.decode() for name, text in said.items()} == {
            f"{n}.jpg": text for n, text in enumerate(captions)
        }


class TestBeside:
    def test_texts(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg", "b.jpg", "c.d.jpg", "c.jpg", "same.jpg", "same.png", "j.jpg", "large.jpg")
        for name, text in {
            "a.txt": "A",
            "a.caption": "second",
            "c.d.txt": "CD",
            "same.txt": "S",
            "alone.txt": "no image",
            "j.json": '{"caption": "J", "recaption": "model", "url": "http://j"}',
            "large.txt": "x" * 2000,
            "notes.json": "{}",
        }.items():
            (tmp_path / name).write_text(text)
        (tmp_path / "c.txt").symlink_to("/etc/hostname")
        found = everything(tmp_path, limit=1500)
        assert outcomes(found) == {
            "a.jpg": "",
            "b.jpg": "NoCaption",
            "c.jpg": "UnsafePath",
            "c.d.jpg": "",
            "same.jpg": "",
            "same.png": "",
            "alone.txt": "NoImage",
            "j.jpg": "",
            "large.jpg": "CaptionTooLong",
        }
        by_key = {one.key: one for one in found}
        assert texts(by_key["a.jpg"]) == [("A", "web"), ("second", "web")]
        assert texts(by_key["j.jpg"]) == [("J", "web"), ("model", "synthetic")]
        assert by_key["j.jpg"].url == "http://j"

    def test_what_a_tar_holds_unpacked(self, tmp_path: Path) -> None:
        """The same samples as of the tar: extensions of two parts, in any case, named or usual."""
        members = {
            "a.JPG": picture(1),
            "a.TXT": b"A",
            "a.synthetic.txt": b"by a model",
            "b.jpg": picture(2),
            "b.caption": b"B",
            "b.En.txt": b"B in English",
            "b.Json": b'{"caption": "no", "recaption": "model", "url": "http://b"}',
            "c.png": picture(3),
            "c.json": b'{"text": "C", "alt": "alt of C"}',
        }
        tar(tmp_path / "tar" / "0.tar", list(members.items()))
        (tmp_path / "folder").mkdir()
        for name, content in members.items():
            (tmp_path / "folder" / name).write_bytes(content)
        for columns in (Columns(), Columns(captions=("EN.TXT", "alt"), synthetic=("synthetic.TXT",)), Columns(url="alt")):
            one, other = (
                {
                    found.image: (found.captions, found.url, found.meta, found.problem)
                    for found in everything(tmp_path / name, columns=columns)
                }
                for name in ("tar", "folder")
            )
            assert one == other
            assert len(one) == 3
        assert all(captions for captions, *_ in one.values())

    def test_a_caption_of_two_parts_alone(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        for name in ("a.other.txt", "b.synthetic.txt", "c.TXT"):
            (tmp_path / name).write_text("text")
        assert outcomes(everything(tmp_path)) == {"a.jpg": "NoCaption", "b.synthetic.txt": "NoImage", "c.TXT": "NoImage"}

    def test_a_huge_json(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg", "b.jpg")
        (tmp_path / "b.txt").write_text("B")
        for name in ("a.json", "b.json"):
            (tmp_path / name).write_text(json.dumps({"caption": "J", "more": "x" * 5000}))
        found = everything(tmp_path, limit=4000)
        assert outcomes(found) == {"a.jpg": "TooLarge", "b.jpg": ""}
        assert [one.meta for one in found] == [None, None]

    def test_an_image_column_without_a_metadata_file(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        with pytest.raises(ValueError, match=r"columns\.image"):
            everything(tmp_path, columns=Columns(image="picture"))

    def test_too_large_is_not_read(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg", "b.jpg")
        os.truncate(tmp_path / "a.jpg", 5 << 30)
        found = everything(tmp_path)
        assert [(one.key, one.too_large, one.image is None) for one in found] == [("a.jpg", 5 << 30, True), ("b.jpg", 0, False)]

    def test_hidden_files_are_not_meant(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg", ".b.jpg", ".cache/c.jpg", "__MACOSX/._a.jpg")
        assert [one.key for one in everything(tmp_path)] == ["a.jpg"]

    def test_links_to_folders(self, tmp_path: Path) -> None:
        images(tmp_path / "in", "x/a.jpg")
        images(tmp_path / "other", "b.jpg")
        (tmp_path / "in" / "out").symlink_to(tmp_path / "other")
        (tmp_path / "in" / "inside").symlink_to(tmp_path / "in" / "x")
        (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
        assert outcomes(everything(tmp_path / "in")) == {"x/a.jpg": "NoCaption", "out": "UnsafePath"}

    def test_names_that_are_no_utf8(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        (tmp_path / "a.jpg").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
        [one] = everything(tmp_path)
        assert one.key == "caf\\xe9.jpg"
        assert one.image == picture(0)


class TestParts:
    def members(self, names: set[str]) -> list[tuple[Member, str]]:
        return [(Member(name, 1), "stamp") for name in sorted(names)]

    def cut(self, names: set[str]) -> dict[str, ShardRef]:
        source = SourceConfig(uri="/x")
        return {shard.uri: shard for shard in parts.cut(self.members(names), "/x", "/x", "imagefolder", source, "x")}

    @settings(max_examples=30, deadline=None)
    @given(st.sets(st.integers(0, 9_999), max_size=5), st.integers(0, 2_000))
    def test_what_is_added_changes_little(self, added: set[int], number: int) -> None:
        """Each name is in one part; a new one changes at most the part it is in, and the one it begins."""
        names = {f"{n:06d}.jpg" for n in range(0, number * 5, 5)}
        more = names | {f"{n:06d}.jpg" for n in added}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "_PART", 64)
            before, after = self.cut(names), self.cut(more)
        for cut, want in ((before, names), (after, more)):
            members = [Member.decode(line).key for shard in cut.values() for line in shard.members]
            assert sorted(members) == sorted(want)
        same = {shard.id for shard in before.values()} & {shard.id for shard in after.values()}
        assert len(before) - len(same) <= len(more - names)
        assert len(after) - len(same) <= 2 * len(more - names)

    def test_sizes(self) -> None:
        sizes = [len(shard.members) for shard in self.cut({f"{n}.jpg" for n in range(20_000)}).values()]
        assert 8 < len(sizes) < 40
        assert max(sizes) < 10_000

    @pytest.mark.parametrize("write", [folder_jsonl, folder_texts])
    def test_any_change_is_another_identity(self, tmp_path: Path, write: object) -> None:
        folder = Path(write(tmp_path / "in", contents(10)))  # type: ignore[operator]

        def ids() -> set[str]:
            return {shard.id for shard in expand(SourceConfig(uri=str(folder)))}

        seen = [ids()]
        assert ids() == seen[0]
        image = next(folder.rglob("*.jpg"))
        image.write_bytes(image.read_bytes() + b"x")
        seen.append(ids())
        described = next(iter(sorted([*folder.rglob("metadata.jsonl"), *folder.rglob("*.txt")])))
        described.write_text(
            described.read_text().replace("a plain one", "another one").replace("猫", "犬").replace("zwei", "drei").replace("with", "x")
        )
        seen.append(ids())
        image.unlink()
        seen.append(ids())
        assert all(first.isdisjoint(second) for first, second in itertools.pairwise(seen))

    def test_content_behind_the_same_size_and_time(self, tmp_path: Path) -> None:
        folder = Path(folder_texts(tmp_path / "in", contents(4)))
        [shard] = expand(SourceConfig(uri=str(folder)))
        before = fingerprint(shard)
        for path in (next(folder.rglob("*.jpg")), next(folder.rglob("*.txt"))):
            facts = path.stat()
            path.write_bytes(path.read_bytes()[:-1] + b"~")
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
            [again] = expand(SourceConfig(uri=str(folder)))
            assert again.id == shard.id
            assert fingerprint(again) != before
            before = fingerprint(again)

    def test_a_row_moved_is_the_same_part(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        jsonl(tmp_path / "metadata.jsonl", {"file_name": "a.jpg", "text": "A"})
        [before] = expand(SourceConfig(uri=str(tmp_path)))
        (tmp_path / "metadata.jsonl").write_text("\n\n" + (tmp_path / "metadata.jsonl").read_text())
        [after] = expand(SourceConfig(uri=str(tmp_path)))
        assert before.id == after.id
        assert fingerprint(before.__class__(**{**before.__dict__, "members": after.members})) == fingerprint(after)


class TestCoco:
    def test_five_captions_in_the_order_of_their_ids(self, tmp_path: Path) -> None:
        many = [Content("one", picture(1), tuple(f"caption {n}" for n in range(5)), url="http://x")]
        [one] = everything(coco(tmp_path / "in", many))
        assert texts(one) == [(f"caption {n}", "web") for n in range(5)]
        assert (one.url, one.license, json.loads(one.meta or b"")["width"]) == ("http://x", "CC0-1.0", 24)

    def test_the_folder_of_it_all(self, tmp_path: Path) -> None:
        coco(tmp_path / "in", contents(6))
        (tmp_path / "in" / "annotations" / "instances_train2017.json").write_text('{"images": [], "annotations": [{"bbox": [1]}]}')
        assert len(everything(tmp_path / "in")) == 6

    @pytest.mark.parametrize("where", [".", "images", "train2017", "images/train2017", "../train2017", "../images/train2017"])
    def test_where_images_lie(self, tmp_path: Path, where: str) -> None:
        images(tmp_path / "in" / "json" / where, "a.jpg")
        path = tmp_path / "in" / "json" / "captions_train2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "id": 1, "caption": "A"}]})
        )
        assert outcomes(everything(path)) == {"a.jpg": ""}

    def test_the_address_that_was_named(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg")
        item = {"id": 1, "file_name": "a.jpg", "coco_url": "http://coco", "flickr_url": "http://flickr", "page": "http://page"}
        (tmp_path / "c.json").write_text(json.dumps({"images": [item], "annotations": [{"image_id": 1, "id": 1, "caption": "A"}]}))
        assert [one.url for one in everything(tmp_path / "c.json")] == ["http://coco"]
        assert [one.url for one in everything(tmp_path / "c.json", columns=Columns(url="page"))] == ["http://page"]
        for name in ("key", "image"):
            with pytest.raises(ValueError, match=f"columns.{name}.*means nothing"):
                everything(tmp_path / "c.json", columns=Columns.model_validate({name: "id"}))

    def test_images_elsewhere(self, tmp_path: Path) -> None:
        path = Path(coco(tmp_path / "in", contents(3)))
        (tmp_path / "in" / "train2017").rename(tmp_path / "other")
        with pytest.raises(ValueError, match="set the source's `images`"):
            everything(path)
        assert len(everything(path, images=str(tmp_path / "other"))) == 3

    def test_every_entry_has_an_outcome(self, tmp_path: Path) -> None:
        images(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "unlisted.jpg")
        document = {
            "images": [
                {"id": 1, "file_name": "a.jpg"},
                {"id": 2, "file_name": "b.jpg"},
                {"id": 3, "file_name": "c.jpg"},
                {"id": 4, "file_name": "gone.jpg"},
                {"id": 5, "file_name": "../secret.jpg"},
                {"id": "six", "file_name": "d.jpg"},
                {"id": 7, "file_name": "a.jpg"},
                {"id": 1, "file_name": "again.jpg"},
                {"id": 9},
                None,
            ],
            "annotations": [
                {"image_id": 1, "id": 2, "caption": "second"},
                {"image_id": 1, "id": 1, "caption": "first"},
                {"image_id": 3, "id": 3, "caption": float("nan")},
                {"image_id": 4, "id": 4, "caption": "gone"},
                {"image_id": 5, "id": 5, "caption": "secret"},
                {"image_id": "six", "id": "x", "caption": "by a name"},
                {"image_id": 7, "id": 7, "caption": "twice"},
                {"image_id": 99, "id": 8, "caption": "of no image"},
                {"id": 9, "caption": "of nothing"},
                7,
            ],
        }
        (tmp_path / "all.json").write_text(json.dumps(document))
        found = everything(tmp_path / "all.json")
        assert outcomes(found) == {
            "a.jpg": "",
            "b.jpg": "NoCaption",
            "c.jpg": "BadRow",
            "gone.jpg": "NoImage",
            "../secret.jpg": "UnsafePath",
            "d.jpg": "",
            "a.jpg#2": "DuplicateKey",
            "image_id 99": "NoImage",
            **{f"images:{n}": "BadRow" for n in (7, 8, 9)},
            **{f"annotations:{n}": "BadRow" for n in (8, 9)},
        }
        assert texts(next(one for one in found if one.key == "a.jpg")) == [("first", "web"), ("second", "web")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "the end"),
            ("[]", "expected '{'"),
            ("{}", "needs `images` and `annotations` and has nothing"),
            ('{"images": [], "info": 1}', "has images, info"),
            ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": []}]}', "no captions"),
            ('{"images": [{"id": 1', "no COCO"),
            ('{"images": [{"id": 1}, ', "no COCO"),
            ('{"images": ' + "[" * 100_000, "no COCO"),
        ],
    )
    def test_other_json(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            everything(tmp_path / "a.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


class TestJsonStream:
    @settings(max_examples=80, deadline=None)
    @given(
        st.dictionaries(st.text(max_size=5), st.lists(_JSON, max_size=6) | _JSON, max_size=5), st.integers(1, 9), st.sampled_from([None, 1])
    )
    def test_as_a_parser_of_the_whole(
        self, tmp_path_factory: pytest.TempPathFactory, document: dict[str, object], block: int, indent: int | None
    ) -> None:
        path = tmp_path_factory.mktemp("json") / "a.json"
        path.write_text(json.dumps(document, ensure_ascii=False, indent=indent).encode(errors="replace").decode(), encoding="utf-8")
        want = []
        for key, value in json.loads(path.read_bytes()).items():
            want += [(key, one) for one in value] if isinstance(value, list) else [(key, value)]
        with pytest.MonkeyPatch.context() as patch, opened(str(path)) as file:
            patch.setattr("mtv_core.data.sources.jsonstream._BLOCK", block)
            assert list(items(file)) == want

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 400))
    def test_cut(self, tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
        path = tmp_path_factory.mktemp("json") / "a.json"
        whole = json.dumps({"images": [{"id": n} for n in range(20)], "annotations": [1, 2], "n": 12}).encode()
        path.write_bytes(whole[: min(size, len(whole) - 1)])
        with opened(str(path)) as file, pytest.raises(ValueError):  # noqa: PT011
            list(items(file))


def test_names_of_formats_are_those_of_the_configuration() -> None:
    from typing import get_args

    from mtv_core.data.sources import FORMATS
    from mtv_core.data.sources.config import Format

    assert {*FORMATS, "auto"} == set(get_args(Format))
    assert isinstance(FORMATS["imagefolder"], imagefolder.ImageFolder)
