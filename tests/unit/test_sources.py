"""Shards found and told apart; tars read to their end, and damaged ones to where they are damaged."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import fsspec
import pytest
import yaml
from source_files import contents, img2dataset
from tars import picture, sample, shards, tar

from mtv_core.data.sources import FORMATS, RawSample, ShardRef, SourceConfig, expand, metadata, read, records, source_name
from mtv_core.data.sources.config import Columns
from mtv_core.report import Reject

LIMIT = 1 << 20


def ref(path: Path) -> ShardRef:
    [shard] = expand(SourceConfig(uri=str(path)))
    return shard


def everything(path: Path, limit: int = LIMIT) -> tuple[list[RawSample], list[Reject]]:
    found = list(read(ref(path), limit))
    return [f for f in found if isinstance(f, RawSample)], [f for f in found if isinstance(f, Reject)]


class TestExpand:
    def test_file_folder_glob_and_braces_name_the_same_shards(self, tmp_path: Path) -> None:
        paths = [str(path) for path in shards(tmp_path / "in", 3, 1)]
        folder = tmp_path / "in"
        for uri in (
            folder,
            f"{folder}/",
            f"{folder}/*.tar",
            f"{folder}/0000[0-2].tar",
            f"{folder}/{{00000..00002}}.tar",
            f"file://{folder}",
        ):
            assert [shard.uri for shard in expand(SourceConfig(uri=str(uri)))] == paths
        assert [shard.uri for shard in expand(SourceConfig(uri=f"{folder}/0000{{2,0}}.tar"))] == [paths[0], paths[2]]

    def test_what_describes_shards_is_no_shard(self, tmp_path: Path) -> None:
        """Folder and glob alike."""
        folder = img2dataset(tmp_path / "in", contents(20))
        for uri in (folder, f"{folder}/*", f"{tmp_path}/*"):
            assert [Path(shard.uri).name for shard in expand(SourceConfig(uri=uri))] == ["00000.tar", "00001.tar", "00002.tar"]
        assert [shard.format for shard in expand(SourceConfig(uri=f"{folder}/*.parquet"))] == ["parquet"] * 3
        assert [shard.format for shard in expand(SourceConfig(uri=folder, format="parquet"))] == ["parquet"] * 3

    def test_nested_folders(self, tmp_path: Path) -> None:
        shards(tmp_path / "in" / "a", 2, 1)
        shards(tmp_path / "in" / "b" / "c", 1, 1, first=9)
        assert len(expand(SourceConfig(uri=str(tmp_path / "in")))) == 3

    def test_links_to_shards_are_followed(self, tmp_path: Path) -> None:
        """As in Hugging Face's cache."""
        [path] = shards(tmp_path / "blobs", 1, 1)
        (tmp_path / "snapshot").mkdir()
        (tmp_path / "snapshot" / "0.tar").symlink_to(path)
        [shard] = expand(SourceConfig(uri=str(tmp_path / "snapshot")))
        assert len(list(read(shard, LIMIT))) == 1

    def test_two_formats_in_a_folder_are_not_guessed(self, tmp_path: Path) -> None:
        shards(tmp_path / "in", 1, 1)
        (tmp_path / "in" / "cat.jpg").write_bytes(picture(1))
        with pytest.raises(
            ValueError, match=r"1 of webdataset \(00000.tar, …\) and 1 of imagefolder \(cat.jpg, …\); set the source's `format`"
        ):
            expand(SourceConfig(uri=str(tmp_path / "in")))
        for form in ("webdataset", "imagefolder"):
            assert [shard.format for shard in expand(SourceConfig(uri=str(tmp_path / "in"), format=form))] == [form]  # type: ignore[arg-type]

    def test_a_format_that_the_name_does_not_say(self, tmp_path: Path) -> None:
        [path] = shards(tmp_path / "in", 1, 1)
        other = path.rename(path.with_name("shard.data"))
        [shard] = expand(SourceConfig(uri=str(other), format="webdataset"))
        assert len(list(read(shard, LIMIT))) == 1

    def test_images_by_a_glob(self, tmp_path: Path) -> None:
        (tmp_path / "cat.jpg").write_bytes(picture(1))
        with pytest.raises(ValueError, match="give the folder"):
            expand(SourceConfig(uri=f"{tmp_path}/*.jpg"))

    def test_relative_to_the_working_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        [path] = shards(tmp_path / "in", 1, 1)
        monkeypatch.chdir(tmp_path)
        assert [shard.uri for shard in expand(SourceConfig(uri="in"))] == [str(path)]

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("nowhere", "does not exist"),
            ("nowhere/*.tar", "matches no file"),
            ("empty", "folder without shards"),
            ("in/{00000..00009}.tar", "does not exist"),
            ("in/{5..1}.tar", "empty or too long"),
            ("in/{0..9999}/{0..9999}-{0..9999}.tar", "name more than 1,000,000 files"),
            ("in/other.zip", "cannot tell the format.*unzip it"),
            ("in/other.docx", "cannot tell the format.*expected .tar"),
            ("texts", "without shards: it holds 2 × .docx, 1 × no ending; expected .tar"),
            ("blocks://demo?samples=3", "not made yet"),
            ("nosuch://bucket/a.tar", "cannot open"),
        ],
    )
    def test_mistakes_are_explained(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str) -> None:
        shards(tmp_path / "in", 1, 1)
        (tmp_path / "empty").mkdir()
        (tmp_path / "texts").mkdir()
        for name in ("in/other.zip", "in/other.docx", "texts/a.docx", "texts/b.docx", "texts/README"):
            (tmp_path / name).write_bytes(b"x")
        monkeypatch.chdir(tmp_path)
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            expand(SourceConfig(uri=uri))

    @pytest.mark.parametrize("uri", ["", " ", "\n\t"])
    def test_nothing_is_not_the_working_folder(self, uri: str) -> None:
        for given in ({"uri": uri}, {"uri": "a", "images": uri}):
            with pytest.raises(ValueError, match="it is empty"):
                SourceConfig.model_validate(given)

    def test_columns_of_no_use_are_not_ignored(self, tmp_path: Path) -> None:
        shards(tmp_path / "tars", 1, 1)
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.jpg").write_bytes(picture(1))
        for name in ("tars", "images"):
            with pytest.raises(ValueError, match=r"`columns.key` means nothing.*leave it out"):
                expand(SourceConfig(uri=str(tmp_path / name), columns=Columns(key="id")))

    def test_another_content_is_another_shard(self, tmp_path: Path) -> None:
        [path] = shards(tmp_path, 1, 1)
        before = ref(path)
        assert ref(path).id == before.id
        os.utime(path, ns=(1, 1))
        assert ref(path).id != before.id
        assert ref(path).uri == before.uri

    def test_other_file_systems(self, tmp_path: Path) -> None:
        [path] = shards(tmp_path, 1, 2)
        with fsspec.open("memory://bucket/a/00000.tar", "wb") as file:
            file.write(path.read_bytes())
        [shard] = expand(SourceConfig(uri="memory://bucket/a/*.tar"))
        assert shard.uri.startswith("memory://")
        assert [found.key for found in read(shard, LIMIT)] == ["000000", "000001"]

    @pytest.mark.parametrize(
        ("uri", "name"),
        [
            ("/data/cc12m/*.tar", "cc12m"),
            ("/data/cc12m/00000.tar", "cc12m"),
            ("s3://bucket/laion/{000..010}.tar", "laion"),
            ("blocks://demo?samples=3", "demo"),
        ],
    )
    def test_a_source_is_named_after_its_folder(self, uri: str, name: str) -> None:
        assert source_name(SourceConfig(uri=uri)) == name
        assert source_name(SourceConfig(uri=uri, name="mine")) == "mine"


class TestWebdataset:
    def test_samples_in_their_order(self, tmp_path: Path) -> None:
        samples, rejects = everything(shards(tmp_path, 1, 5)[0])
        assert [s.key for s in samples] == [f"{n:06d}" for n in range(5)]
        assert [s.image for s in samples] == [picture(n) for n in range(5)]
        assert [[c.text for c in s.captions] for s in samples] == [[f"picture {n}".encode()] for n in range(5)]
        assert not rejects

    def test_names(self, tmp_path: Path) -> None:
        members = [
            ("dir.v2/a.JPG", b"a"),
            ("dir.v2/a.seg.png", b"mask"),
            ("dir.v2/a.txt", b"A"),
            (".hidden.jpg", b"no"),
            ("__MACOSX/._a.jpg", b"no"),
            ("README", b"no"),
            ("b.webp", b"b"),
            ("b.caption", b"second"),
            ("b.txt", b"first"),
            ("c.png", b"c"),
            ("c.json", b'{"caption": "from json"}'),
            ("d.png", b"d"),
            ("d.json", b"[" * 5000),
        ]
        samples, _ = everything(tar(tmp_path / "0.tar", members))
        assert [(s.key, s.image, [c.text for c in s.captions]) for s in samples] == [
            ("dir.v2/a", b"a", [b"A"]),
            ("b", b"b", [b"first", b"second"]),
            ("c", b"c", [b"from json"]),
            ("d", b"d", []),
        ]

    def test_gzip(self, tmp_path: Path) -> None:
        samples, rejects = everything(tar(tmp_path / "0.tar.gz", sample(1) + sample(2)))
        assert (len(samples), rejects) == (2, [])

    def test_large_members_are_not_read(self, tmp_path: Path) -> None:
        samples, _ = everything(tar(tmp_path / "0.tar", [("a.jpg", b"x" * 2000), ("a.txt", b"A"), *sample(1)]), limit=1500)
        assert [(s.key, s.image is None, s.too_large) for s in samples] == [("a", True, 2000), ("000001", False, 0)]

    def test_a_cut_anywhere_keeps_what_was_whole(self, tmp_path: Path) -> None:
        """At every 512-byte block, and beside it: never an exception, never half a sample, always said."""
        path = tar(tmp_path / "0.tar", [member for n in range(4) for member in sample(n)])
        whole = path.read_bytes()
        full, _ = everything(path)
        with tarfile.open(path) as file:
            begun = [member.offset_data for member in file if member.name.endswith(".jpg")]
            end = file.offset
        for block in range(0, end, 512):
            for size in (block, block + 100):
                path.write_bytes(whole[:size])
                samples, rejects = everything(path)
                assert [(r.key, r.error) for r in rejects] == [("", "TruncatedShard" if size >= 512 else "UnreadableShard")], size
                assert samples == full[: len(samples)]
                # A sample is known to be whole once the next one begins.
                assert len(samples) == max(sum(start <= size for start in begun) - 1, 0), size

    @pytest.mark.parametrize("damage", [b"\xff" * 512, b"\x00" * 300 + b"\x01" * 212])
    def test_a_broken_header_is_no_end(self, tmp_path: Path, damage: bytes) -> None:
        path = tar(tmp_path / "0.tar", [member for n in range(4) for member in sample(n)])
        with tarfile.open(path) as file:
            start = next(member.offset for member in file if member.name == "000002.jpg")
        with path.open("r+b") as raw:
            raw.seek(start)
            raw.write(damage)
        samples, rejects = everything(path)
        assert [s.key for s in samples] == ["000000"]
        assert rejects[0].error == "TruncatedShard"

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, b"\x1f\x8b\x08\x00garbage"])
    def test_no_tar_at_all(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "0.tar"
        path.write_bytes(content)
        samples, rejects = everything(path)
        assert (samples, [r.error for r in rejects]) == ([], ["UnreadableShard"])

    def test_an_unwritable_name_is_no_obstacle(self, tmp_path: Path) -> None:
        path = tmp_path / "0.tar"
        with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as file:
            for name in ("caf\xe9.jpg", "caf\xe9.txt"):
                info = tarfile.TarInfo(name)
                info.size = 1
                file.addfile(info, io.BytesIO(b"x"))
        samples, rejects = everything(path)
        assert [s.key.encode() for s in samples] == [b"caf\\xe9"]
        assert not rejects


class TestDocs:
    """docs/sources.md is true."""

    page = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()

    def test_examples_are_configurations(self) -> None:
        found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", self.page, re.DOTALL)]
        assert len(found) > 3
        for document in found:
            assert document.keys() == {"sources"}
            for source in document["sources"]:
                SourceConfig.model_validate(source)

    def test_names_are_all_there(self) -> None:
        names = [*records.WEB, *records.SYNTHETIC, *records.URL, *records.LICENSE, *records.KEY, *metadata.FILE_NAMES, *FORMATS]
        endings = [ending for form in FORMATS.values() for ending in form.endings]
        assert not [name for name in [*names, *endings, *records.IMAGE_ENDINGS] if name not in self.page]
        for text in re.findall(r"`([a-z_]+caption[a-z_]*)`", self.page):
            assert text in (*records.WEB, *records.SYNTHETIC), text
