"""Tars that somebody made by hand, by accident, or to do harm: what is good in them comes out, the rest is refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import picture, sample, tar

from mtv_core.data.sources import RawSample, SourceConfig, expand, read
from mtv_core.data.sources.config import Columns
from mtv_core.report import Reject

LIMIT = 1 << 20


def everything(path: Path, limit: int = LIMIT, **columns: object) -> list[RawSample | Reject]:
    [shard] = expand(SourceConfig(uri=str(path), columns=Columns(**columns)))  # type: ignore[arg-type]
    return list(read(shard, limit))


def outcome(found: RawSample | Reject) -> tuple[str, str]:
    """(key, reason); an empty reason is a good sample."""
    if isinstance(found, Reject):
        return found.key, found.error
    if found.problem:
        return found.key, found.problem[0]
    return (
        found.key,
        ""
        if found.image is not None and found.captions
        else "TooLarge"
        if found.too_large
        else "NoImage"
        if found.image is None
        else "NoCaption",
    )


def special(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def archive(path: Path, *entries: tarfile.TarInfo | list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as file:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
                continue
            for name, content in entry:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def bytes_read() -> int:
    """What this process has read so far, of whatever."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


class TestUnsafe:
    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
    def test_links_and_devices(self, tmp_path: Path, kind: bytes) -> None:
        path = archive(tmp_path / "0.tar", sample(1), special("bad.jpg", kind), [("bad.txt", b"B")], sample(2))
        assert [outcome(one) for one in everything(path)] == [("000001", ""), ("bad", "UnsafePath"), ("000002", "")]

    def test_a_link_beside_a_good_image_spoils_the_sample(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "0.tar", [("a.jpg", picture(1))], special("a.txt", tarfile.SYMTYPE), sample(2))
        assert [outcome(one) for one in everything(path)] == [("a", "UnsafePath"), ("000002", "")]

    @pytest.mark.parametrize("name", ["../a", "/tmp/a", "x/../../a", "..\\a", "C:\\a", "\\\\host\\a"])
    def test_names_that_lead_out(self, tmp_path: Path, name: str) -> None:
        path = archive(tmp_path / "0.tar", sample(1), [(f"{name}.jpg", picture(3)), (f"{name}.txt", b"A")], sample(2))
        found = [outcome(one) for one in everything(path)]
        assert (found[0], found[-1]) == (("000001", ""), ("000002", ""))
        assert {reason for _, reason in found[1:-1]} == {"UnsafePath"}

    def test_names_that_only_look_like_it(self, tmp_path: Path) -> None:
        path = archive(tmp_path / "0.tar", *([(f"{name}.jpg", b"i"), (f"{name}.txt", b"A")] for name in ("./a", "b..c/d", "e/./f")))
        assert [outcome(one)[1] for one in everything(path)] == ["", "", ""]

    def test_tars_in_tars_are_not_opened(self, tmp_path: Path) -> None:
        inner = tar(tmp_path / "inner.tar", sample(9)).read_bytes()
        path = archive(
            tmp_path / "0.tar", sample(1), [("nested.tar", inner), ("more.jpg", picture(1)), ("more.tar", inner), ("more.txt", b"M")]
        )
        assert [outcome(one) for one in everything(path)] == [("000001", ""), ("nested", "NoImage"), ("more", "")]


class TestKeys:
    def test_the_second_of_a_key_is_refused(self, tmp_path: Path) -> None:
        again = [("000001.jpg", picture(7)), ("000001.txt", b"another")]
        path = tar(tmp_path / "0.tar", sample(1) + again + sample(2) + again)
        found = everything(path)
        assert [outcome(one) for one in found] == [
            ("000001", ""),
            ("000001#2", "DuplicateKey"),
            ("000002", ""),
            ("000001#3", "DuplicateKey"),
        ]
        assert isinstance(found[0], RawSample)
        assert [one.image for one in found if isinstance(one, RawSample)] == [picture(n) for n in (1, 7, 2, 7)]  # evaluation looks at all

    def test_members_out_of_order(self, tmp_path: Path) -> None:
        both = sample(1) + sample(2)
        path = tar(tmp_path / "0.tar", sorted(both, key=lambda member: member[0][-3:]))  # all images, then all texts
        assert sorted({outcome(one)[1] for one in everything(path)}) == ["DuplicateKey", "NoCaption"]

    def test_case_does_not_tell_extensions_apart(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "0.tar", [("a.JPG", b"1"), ("a.TXT", b"A"), ("a.jpg", b"2")])
        assert [outcome(one) for one in everything(path)] == [("a", ""), ("a#2", "DuplicateKey")]


class TestForms:
    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_and_foreign_names(self, tmp_path: Path, form: int) -> None:
        names = ["a" * 90, f"{'d' * 100}/{'f' * 80}"] + (["ö" * 200, "g" * 300] if form != tarfile.USTAR_FORMAT else [])
        path = archive(tmp_path / "0.tar", *([(f"{name}.jpg", b"i"), (f"{name}.txt", b"A")] for name in names), form=form)
        assert [one.key for one in everything(path)] == names

    def test_pax_with_times_as_webdatasets_own_writer_makes_them(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as file:
            for name, content in sample(1) + sample(2):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(content), 1234567.891  # type: ignore[assignment]
                file.addfile(info, io.BytesIO(content))
        assert [outcome(one) for one in everything(tmp_path / "0.tar")] == [("000001", ""), ("000002", "")]

    @pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.1"]])
    def test_sparse_members(self, tmp_path: Path, options: list[str]) -> None:
        content = bytes(100_000) + picture(1) + bytes(200_000) + b"end"
        with (tmp_path / "a.jpg").open("wb") as file:
            for offset, piece in ((100_000, picture(1)), (len(content) - 3, b"end")):
                file.seek(offset)
                file.write(piece)
        (tmp_path / "a.txt").write_bytes(b"A")
        (tmp_path / "b.jpg").write_bytes(picture(2))
        (tmp_path / "b.txt").write_bytes(b"B")
        made = subprocess.run(
            ["tar", "-S", "--hole-detection=raw", *options, "-cf", "0.tar", "a.jpg", "a.txt", "b.jpg", "b.txt"], cwd=tmp_path, check=False
        )
        if made.returncode:
            pytest.skip("there is no GNU tar")
        found = everything(tmp_path / "0.tar")
        assert [outcome(one) for one in found] == [("a", ""), ("b", "")]
        assert isinstance(found[0], RawSample)
        assert found[0].image == content

    @pytest.mark.parametrize(
        ("ending", "compress"),
        [
            (".tar.gz", gzip.compress),
            (".tgz", gzip.compress),
            (".tar.bz2", bz2.compress),
            (".tar.xz", lzma.compress),
            (".tar.zst", lambda raw: pa.compress(raw, "zstd", asbytes=True)),
            (".tar", gzip.compress),  # whatever the name says
        ],
    )
    def test_compressed(self, tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
        raw = tar(tmp_path / "raw", sample(1) + sample(2)).read_bytes()
        path = tmp_path / f"0{ending}"
        path.write_bytes(compress(raw))
        assert [outcome(one) for one in everything(path)] == [("000001", ""), ("000002", "")]
        for keep in (0.3, 0.6, 0.9):
            path.write_bytes(compress(raw)[: int(len(compress(raw)) * keep)])
            assert [outcome(one) for one in everything(path)][-1][1] in ("TruncatedShard", "UnreadableShard")

    def test_joined_tars_are_not_cut_in_silence(self, tmp_path: Path) -> None:
        first, second = tar(tmp_path / "1.tar", sample(1) + sample(2)), tar(tmp_path / "2.tar", sample(3))
        (tmp_path / "0.tar").write_bytes(first.read_bytes() + second.read_bytes())
        assert [outcome(one) for one in everything(tmp_path / "0.tar")] == [("000001", ""), ("000002", ""), ("", "TruncatedShard")]

    def test_a_hole_of_zeros_is_no_end(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "0.tar", [member for n in range(6) for member in sample(n)])
        raw = bytearray(path.read_bytes())
        with tarfile.open(path) as file:
            start, end = file.getmember("000002.jpg").offset, file.getmember("000004.txt").offset_data
        raw[start:end] = bytes(end - start)
        path.write_bytes(raw)
        assert [outcome(one) for one in everything(path)] == [("000000", ""), ("000001", ""), ("", "TruncatedShard")]


class TestLimits:
    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
    def test_a_huge_header_is_not_read(self, tmp_path: Path, kind: bytes) -> None:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = kind, 1 << 30
        path = tar(tmp_path / "0.tar", sample(1) + sample(2))
        raw = path.read_bytes()
        with tarfile.open(path) as file:
            end = file.getmember("000002.jpg").offset
        with path.open("wb") as out:
            out.write(raw[:end] + info.tobuf(tarfile.GNU_FORMAT))
            out.truncate(1 << 30)
        tracemalloc.start()
        found = [outcome(one) for one in everything(path)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found[-1] == ("", "TruncatedShard")
        assert peak < 16 << 20

    @pytest.mark.parametrize("cut", [False, True])
    def test_a_huge_member_is_not_read(self, tmp_path: Path, cut: bool) -> None:
        info = tarfile.TarInfo("big.jpg")
        info.size = 3 << 30
        path = tmp_path / "0.tar"
        with path.open("wb") as out:
            out.write(info.tobuf(tarfile.GNU_FORMAT))
            out.seek(3 << 30, os.SEEK_CUR)
            out.write(tar(tmp_path / "1.tar", sample(1)).read_bytes())
        if cut:
            os.truncate(path, 2 << 30)
        tracemalloc.start()
        before = bytes_read()
        found = everything(path)
        after = bytes_read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [outcome(one) for one in found] == ([("", "TruncatedShard")] if cut else [("big", "TooLarge"), ("000001", "")])
        assert peak < 16 << 20
        assert after - before < 1 << 20

    @pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
    def test_what_follows_a_large_member_is_whole(self, tmp_path: Path, ending: str) -> None:
        for size in (LIMIT + 1, 2 * LIMIT + 511, 3 * LIMIT):
            path = tar(tmp_path / f"{size}{ending}", [*sample(1), ("big.jpg", bytes(size)), ("big.txt", b"B"), *sample(2)])
            without = tar(tmp_path / f"without-{size}{ending}", [*sample(1), *sample(2)])
            found = everything(path)
            assert outcome(found.pop(1)) == ("big", "TooLarge")
            assert found == everything(without)

    def test_a_huge_caption(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "0.tar", [("a.jpg", b"i"), ("a.txt", b"A" * 5000), *sample(1)])
        assert [outcome(one) for one in everything(path, limit=4000)] == [("a", "CaptionTooLong"), ("000001", "")]

    @pytest.mark.parametrize("name", ["a.{}.npy", "a.{}", "a.caption{}.txt"])
    def test_members_of_no_use_are_not_read(self, tmp_path: Path, name: str) -> None:
        path = tar(tmp_path / "0.tar", [*((name.format(n), bytes(LIMIT)) for n in range(30)), ("a.jpg", b"i"), ("a.txt", b"A"), *sample(1)])
        tracemalloc.start()
        found = everything(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [outcome(one) for one in found] == [("a", ""), ("000001", "")]
        assert peak < 3 * LIMIT

    def test_of_all_images_one_is_held_and_of_all_texts_as_much_as_one(self, tmp_path: Path) -> None:
        images = ("avif", "tiff", "tif", "bmp", "gif", "webp", "png", "jpeg", "jpg")
        texts = ("text", "captions", "alt_text", "synthetic", "recaption", "url", "json")
        path = tar(tmp_path / "0.tar", [(f"a.{one}", one.encode() * (LIMIT // 5)) for one in (*images, *texts)])
        tracemalloc.start()
        [found] = everything(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(found, RawSample)
        assert (found.image, outcome(found)) == (b"jpg" * (LIMIT // 5), ("a", "CaptionTooLong"))
        assert peak < 4 * LIMIT

    @pytest.mark.parametrize("order", [("png", "jpg"), ("jpg", "png")])
    def test_the_best_image_whatever_the_order(self, tmp_path: Path, order: tuple[str, ...]) -> None:
        path = tar(tmp_path / "0.tar", [*((f"a.{one}", one.encode()) for one in order), ("a.txt", b"A")])
        assert [one.image for one in everything(path) if isinstance(one, RawSample)] == [b"jpg"]

    def test_a_huge_json(self, tmp_path: Path) -> None:
        """It costs a sample that has its caption elsewhere no more than its meta, and is no missing caption."""
        document = json.dumps({"caption": "J", "more": "x" * 5000}).encode()
        path = tar(tmp_path / "0.tar", [("a.jpg", b"i"), ("a.json", document), ("b.jpg", b"i"), ("b.json", document), ("b.txt", b"B")])
        found = everything(path, limit=4000)
        assert [outcome(one) for one in found] == [("a", "TooLarge"), ("b", "")]
        assert [one.meta for one in found if isinstance(one, RawSample)] == [None, None]
        assert isinstance(found[0], RawSample)
        assert ".json has 5" in (found[0].problem or ("", ""))[1]

    @pytest.mark.parametrize("size", [b"-0000000001\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"99999999999\0", b"00000_00000\0"])
    def test_sizes_that_are_none(self, tmp_path: Path, size: bytes) -> None:
        path = tar(tmp_path / "0.tar", sample(1) + sample(2) + sample(3))
        raw = bytearray(path.read_bytes())
        with tarfile.open(path) as file:
            start = file.getmember("000002.jpg").offset
        raw[start + 124 : start + 136] = size
        raw[start + 148 : start + 156] = b" " * 8
        raw[start + 148 : start + 156] = b"%06o\0 " % sum(raw[start : start + 512])
        path.write_bytes(raw)
        found = [outcome(one) for one in everything(path)]
        assert all(reason in ("", "TruncatedShard", "NoImage", "TooLarge") for _, reason in found)
        assert found[-1][1] == "TruncatedShard" or ("000003", "") in found


class TestCaptions:
    def test_of_two_kinds(self, tmp_path: Path) -> None:
        meta = {"synthetic_caption": ["by a model", "by another"], "caption": "the web's, again"}
        path = tar(tmp_path / "0.tar", [("a.jpg", b"i"), ("a.txt", b"the web's"), ("a.json", json.dumps(meta).encode())])
        [found] = everything(path)
        assert isinstance(found, RawSample)
        assert [(one.text, one.kind) for one in found.captions] == [
            (b"the web's", "web"),
            (b"by a model", "synthetic"),
            (b"by another", "synthetic"),
        ]

    def test_mapped(self, tmp_path: Path) -> None:
        meta = {"alt": "alt", "long": "long", "page": "http://p", "rights": "mine"}
        path = tar(
            tmp_path / "0.tar",
            [("a.rgb.png", b"i"), ("a.jpg", b"no"), ("a.txt", b"no"), ("a.en.txt", b"en"), ("a.json", json.dumps(meta).encode())],
        )
        [found] = everything(path, image="rgb.png", captions=["en.txt", "alt"], synthetic=["long"], url="page", license="rights")
        assert isinstance(found, RawSample)
        assert (found.image, found.url, found.license) == (b"i", "http://p", "mine")
        assert [(one.text, one.kind) for one in found.captions] == [(b"en", "web"), (b"alt", "web"), (b"long", "synthetic")]

    def test_extensions_are_given_in_any_case(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "0.tar", [("a.Rgb.PNG", b"i"), ("a.en.txt", b"en"), ("a.VLM.txt", b"vlm")])
        [found] = everything(path, image="RGB.png", captions=["EN.TXT"], synthetic=["vlm.TXT"])
        assert isinstance(found, RawSample)
        assert (found.image, [one.text for one in found.captions]) == (b"i", [b"en", b"vlm"])

    @pytest.mark.parametrize("value", ["12", "NaN", "{}", "true", "[1]"])
    def test_of_a_wrong_type(self, tmp_path: Path, value: str) -> None:
        path = tar(tmp_path / "0.tar", [("a.jpg", b"i"), ("a.json", f'{{"caption": {value}}}'.encode()), *sample(1)])
        assert [outcome(one) for one in everything(path)] == [("a", "BadRow"), ("000001", "")]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9000), st.binary(min_size=1, max_size=40)), min_size=1, max_size=4), st.booleans())
def test_whatever_is_damaged_nothing_breaks(tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]], pax: bool) -> None:
    """Samples before the damage are as they were; the reader ends, and raises nothing."""
    path = archive(
        tmp_path_factory.mktemp("damage") / "0.tar",
        *(sample(n, prefix="ö" * 60 if pax else "") for n in range(4)),
        form=tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT,
    )
    good = everything(path)
    with tarfile.open(path) as file:
        starts = [member.offset_data for member in file if member.name.endswith(".jpg")]
    raw = bytearray(path.read_bytes())
    for offset, content in damage:
        raw[offset : offset + len(content)] = content
    path.write_bytes(raw)
    whole = sum(start <= min(offset for offset, _ in damage) for start in starts[1:])
    assert everything(path)[:whole] == good[:whole]
