"""Parquet and Arrow: whatever the columns are called and made of, however large, and where they are damaged."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import contents, saved_dataset, saved_dataset_dict, table
from tars import picture

from mtv_core.data.sources import RawSample, SourceConfig, expand, read
from mtv_core.data.sources.config import Columns
from mtv_core.report import Reject

LIMIT = 1 << 20


def everything(path: Path | str, limit: int = LIMIT, **columns: object) -> list[RawSample | Reject]:
    found = expand(SourceConfig(uri=str(path), columns=Columns(**columns)))  # type: ignore[arg-type]
    return [one for shard in found for one in read(shard, limit)]


def samples(path: Path | str, limit: int = LIMIT, **columns: object) -> list[RawSample]:
    found = everything(path, limit, **columns)
    assert all(isinstance(one, RawSample) for one in found), found
    return [one for one in found if isinstance(one, RawSample)]


def refusal(path: Path | str, **columns: object) -> Reject:
    [found] = everything(path, **columns)
    assert isinstance(found, Reject)
    assert found.key == ""
    return found


def texts(one: RawSample, kind: str = "web") -> list[bytes]:
    return [caption.text for caption in one.captions if caption.kind == kind]


def put(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def arrow(path: Path, data: pa.Table, rows: int = 5, end: bool = True) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=rows)
    if not end:
        path.write_bytes(path.read_bytes()[:-8])
    return path


class TestColumns:
    @pytest.mark.parametrize(
        "kind",
        [
            pa.binary(),
            pa.large_binary(),
            pa.binary_view(),
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            pa.struct({"bytes": pa.large_binary()}),
        ],
    )
    def test_kinds_of_images(self, tmp_path: Path, kind: pa.DataType) -> None:
        cells = [picture(1), None, picture(2)]
        value = [None if cell is None else {"bytes": cell} for cell in cells] if pa.types.is_struct(kind) else cells
        path = arrow(tmp_path / "a.arrow", pa.table({"image": pa.array(value, kind), "text": ["a", "b", "c"]}))
        assert [one.image for one in samples(path)] == cells

    @pytest.mark.parametrize(
        "kind",
        [
            pa.string(),
            pa.large_string(),
            pa.string_view(),
            pa.binary(),
            pa.dictionary(pa.int8(), pa.string()),
            pa.list_(pa.string()),
            pa.large_list(pa.large_string()),
        ],
    )
    def test_kinds_of_captions(self, tmp_path: Path, kind: pa.DataType) -> None:
        several = "list" in str(kind)
        data = pa.array([["ä", None, "b"], None, []] if several else ["ä", None, ""], kind)
        path = arrow(tmp_path / "a.arrow", pa.table({"image": [b"1", b"2", b"3"], "text": data}))
        assert [texts(one) for one in samples(path)] == [["ä".encode(), b"b"] if several else ["ä".encode()], [], [] if several else [b""]]
        assert [one.problem for one in samples(path)] == [None] * 3

    @pytest.mark.parametrize(
        "column",
        [pa.array([float("nan")]), pa.array([1]), pa.array([{"raw": "a"}]), pa.array([[1.0]]), pa.array([True])],
    )
    def test_captions_of_a_wrong_type_are_bad_rows(self, tmp_path: Path, column: pa.Array) -> None:
        [one] = samples(put(tmp_path / "a.parquet", image=[picture(1)], caption=column))
        assert one.problem is not None
        assert one.problem[0] == "BadRow"

    def test_nan_as_pandas_writes_it(self, tmp_path: Path) -> None:
        found = samples(put(tmp_path / "a.parquet", image=[picture(1), picture(2)], caption=pa.array([None, None], pa.float64())))
        assert [(one.captions, one.problem) for one in found] == [([], None)] * 2

    def test_text_that_is_not_utf8_costs_its_row_only(self, tmp_path: Path) -> None:
        bad = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.string())
        data = pa.table({"image": [b"1", b"2", b"3"], "caption": bad, "other": bad})
        for path in (arrow(tmp_path / "a.arrow", data), put(tmp_path / "a.parquet", **{n: data[n] for n in data.column_names})):
            found = samples(path)
            assert [texts(one) for one in found] == [[b"good"], [b"\xff\xfe"], [b"fine"]]
            assert [json.loads(one.meta or b"")["other"] for one in found] == ["good", "\ufffd\ufffd", "fine"]

    def test_mapped(self, tmp_path: Path) -> None:
        data = {
            "a": [picture(1)],
            "image": [b"thumbnail"],
            "b": ["B"],
            "c": [["C", "D"]],
            "caption": ["no"],
            "id": [7],
            "u": ["http://x"],
            "l": ["mine"],
        }
        path = put(tmp_path / "a.parquet", **data)
        [one] = samples(path, image="a", captions=["b"], synthetic=["c"], key="id", url="u", license="l")
        assert (one.image, one.key, one.url, one.license) == (picture(1), "7", "http://x", "mine")
        assert (texts(one), texts(one, "synthetic")) == ([b"B"], [b"C", b"D"])
        assert json.loads(one.meta or b"") == {"caption": "no"}

    def test_the_rest_is_json(self, tmp_path: Path) -> None:
        data = pa.table(
            {
                "image": [b"i"],
                "caption": ["c"],
                "nan": [float("nan")],
                "nested": [{"list": [1, None], "time": pa.scalar(1, pa.timestamp("ns"))}],
                "when": pa.array([1], pa.timestamp("ns")),
                "raw": [b"bytes"],
                "deep": [[{"bytes": b"x"}]],
            }
        )
        [one] = samples(put(tmp_path / "a.parquet", **{n: data[n] for n in data.column_names}))
        meta = json.loads(one.meta or b"")
        assert meta["nan"] is None
        assert meta["nested"]["list"] == [1, None]
        assert meta.keys() == {"nan", "nested", "when"}

    @pytest.mark.parametrize(("named", "reason"), [(None, None), ("key", "DuplicateKey")])
    def test_keys(self, tmp_path: Path, named: str | None, reason: str | None) -> None:
        """What only looks like a key, and may be a category, costs no row."""
        keys = ["a", None, "a", "", "a", "a#4", "a"]
        found = samples(put(tmp_path / "a.parquet", image=[b"%d" % n for n in range(7)], caption=["c"] * 7, key=keys), key=named)
        assert [(one.key, one.problem and one.problem[0]) for one in found] == [
            ("a", None),
            ("000000001", None),
            ("a#2", reason),
            ("000000003", None),
            ("a#3", reason),
            ("a#4", None),
            ("a#5", reason),
        ]
        assert [one.image for one in found] == [b"%d" % n for n in range(7)]

    def test_the_image_that_the_library_declares(self, tmp_path: Path) -> None:
        features = {"info": {"features": {"right": {"_type": "Image"}, "image": {"_type": "Value"}}}}
        data = pa.table({"image": [b"wrong"], "right": [{"bytes": b"right"}], "text": ["t"]})
        path = arrow(tmp_path / "a.arrow", data.replace_schema_metadata({"huggingface": json.dumps(features)}))
        assert [one.image for one in samples(path)] == [b"right"]

    @pytest.mark.parametrize(
        ("columns", "mapped", "message"),
        [
            ({"url": ["http://x"], "caption": ["c"]}, {}, "url: string, caption: string; it lists addresses"),
            ({"image": ["a.jpg"], "caption": ["c"]}, {}, "no column with the bytes of an image"),
            ({"image": [b"i"], "label": [1]}, {}, "no column with captions; the columns are image: binary, label: int64"),
            ({"image": [b"i"], "caption": ["c"]}, {"captions": ["text"]}, "no column text"),
            ({"image": [b"i"], "caption": ["c"]}, {"image": "caption"}, "the column caption is string"),
            ({"one": [b"i"], "two": [b"i"], "caption": ["c"]}, {}, "which of the columns one, two is the image"),
        ],
    )
    def test_missing_columns(self, tmp_path: Path, columns: dict[str, object], mapped: dict[str, object], message: str) -> None:
        for path in (put(tmp_path / "a.parquet", **columns), arrow(tmp_path / "a.arrow", pa.table(columns))):
            found = refusal(path, **mapped)
            assert found.error == "MissingColumns"
            assert message in found.message

    def test_two_columns_of_a_name(self, tmp_path: Path) -> None:
        data = pa.Table.from_arrays([pa.array([b"i"]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"])
        assert "two columns caption" in refusal(arrow(tmp_path / "a.arrow", data)).message

    def test_too_large(self, tmp_path: Path) -> None:
        found = samples(put(tmp_path / "a.parquet", image=[b"x" * 900, b"y"], caption=["a", "b"]), limit=500)
        assert [(one.image, one.too_large) for one in found] == [(None, 900), (b"y", 0)]


class TestPaths:
    """Images of which only the path is in the table."""

    def table(self, *paths: str | None) -> pa.Table:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.table({"image": pa.array([{"bytes": None, "path": path} for path in paths], kind), "text": ["t"] * len(paths)})

    def test_beside_the_table(self, tmp_path: Path) -> None:
        (tmp_path / "in" / "images").mkdir(parents=True)
        (tmp_path / "in" / "images" / "a.jpg").write_bytes(picture(1))
        (tmp_path / "secret.jpg").write_bytes(picture(2))
        (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
        paths = ["images/a.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "gone.jpg", "x" * 3000, "images", "a\0b", None]
        path = arrow(tmp_path / "in" / "a.arrow", self.table(*paths))
        found = samples(path)
        assert found[0].image == picture(1)
        assert [one.image for one in found[1:]] == [None] * 8
        assert [one.problem and one.problem[0] for one in found] == [None, *["BadRow"] * 7, None]


class TestDamage:
    def test_a_page_costs_its_row_group_and_no_other(self, tmp_path: Path) -> None:
        many = contents(40)
        path = tmp_path / "a.parquet"
        pq.write_table(table(many), path, row_group_size=10, compression="zstd", write_page_checksum=True)
        column = pq.ParquetFile(path).metadata.row_group(1).column(0)
        raw = bytearray(path.read_bytes())
        middle = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2
        raw[middle : middle + 50] = bytes(50)
        path.write_bytes(raw)
        found = everything(path)
        good = [one.image for one in found if isinstance(one, RawSample)]
        assert good == [one.image for one in many[:10] + many[20:]]
        assert [(one.error, "10 of 40 rows" in one.message) for one in found if isinstance(one, Reject)] == [("TruncatedShard", True)]

    @pytest.mark.parametrize("keep", [0, 1, 3, 100, 0.5, -1, -4, -200])
    def test_a_file_without_its_end(self, tmp_path: Path, keep: float) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(table(contents(10)), path)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * keep)] if isinstance(keep, float) else raw[:keep])
        assert refusal(path).error == "UnreadableShard"

    @pytest.mark.parametrize("ending", ["parquet", "arrow"])
    @pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1", b"<html>", b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 100, bytes(1000)])
    def test_another_thing_under_its_name(self, tmp_path: Path, ending: str, content: bytes) -> None:
        path = tmp_path / f"a.{ending}"
        path.write_bytes(content)
        assert refusal(path).error == "UnreadableShard"

    def test_arrow_cut_anywhere(self, tmp_path: Path) -> None:
        many = contents(12)
        path = arrow(tmp_path / "a.arrow", table(many), rows=3)
        raw = path.read_bytes()
        whole = samples(path)
        assert len(whole) == 12
        for size in range(0, len(raw) - 1, 37):
            path.write_bytes(raw[:size])
            found = everything(path)
            assert isinstance(found[-1], Reject)
            assert found[-1].error in ("TruncatedShard", "UnreadableShard")
            assert [one.image for one in found[:-1] if isinstance(one, RawSample)] == [one.image for one in whole[: len(found) - 1]]
        path.write_bytes(raw[:-8])  # all rows, but nobody knows that
        assert [isinstance(one, Reject) for one in everything(path)] == [False] * 12 + [True]

    def test_wild_offsets_are_noticed_before_they_are_followed(self, tmp_path: Path) -> None:
        """Read as they are, they end the process."""
        many = contents(150)
        path = arrow(tmp_path / "a.arrow", table(many), rows=150)
        lengths = [len(one.image) for one in many]
        offsets = struct.pack("<4i", *(sum(lengths[:n]) for n in range(100, 104)))
        raw = path.read_bytes()
        assert raw.count(offsets) == 1
        path.write_bytes(raw.replace(offsets, struct.pack("<4i", 1 << 30, -(1 << 30), 7, 1 << 29)))
        found = everything(path)
        good = [one.image for one in found if isinstance(one, RawSample)]
        assert good == [one.image for one in many[:64] + many[128:]]
        assert [one.error for one in found if isinstance(one, Reject)] == ["TruncatedShard"]

    def test_arrow_files_with_an_index(self, tmp_path: Path) -> None:
        data = table(contents(5))
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, data.schema) as writer:
            writer.write_table(data, max_chunksize=2)
        assert len(samples(tmp_path / "a.arrow")) == 5

    def test_empty_tables(self, tmp_path: Path) -> None:
        data = table(contents(3)).slice(0, 0)
        pq.write_table(data, tmp_path / "a.parquet")
        assert everything(tmp_path / "a.parquet") == everything(arrow(tmp_path / "a.arrow", data)) == []

    @settings(max_examples=100, deadline=None)
    @given(
        st.sampled_from(["parquet", "arrow"]),
        st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=30)), min_size=1, max_size=3),
    )
    def test_whatever_is_damaged_nothing_breaks(
        self, tmp_path_factory: pytest.TempPathFactory, ending: str, damage: list[tuple[float, bytes]]
    ) -> None:
        path = tmp_path_factory.mktemp("damage") / f"a.{ending}"
        data = table(contents(12))
        if ending == "arrow":
            arrow(path, data)
        else:
            pq.write_table(data, path, row_group_size=5)
        raw = bytearray(path.read_bytes())
        for place, content in damage:
            raw[int(place * len(raw)) : int(place * len(raw)) + len(content)] = content
        path.write_bytes(raw[: path.stat().st_size])
        found = everything(path)
        assert sum(isinstance(one, RawSample) for one in found) <= 12
        assert all(one.error in ("UnreadableShard", "TruncatedShard", "MissingColumns") for one in found if isinstance(one, Reject))


class TestSavedDatasets:
    def test_only_what_state_lists(self, tmp_path: Path) -> None:
        folder = Path(saved_dataset(tmp_path / "in", contents(9)))
        arrow(folder / "cache-0123.arrow", table(contents(3)))
        assert len(samples(folder)) == 9

    def test_a_missing_file_is_said(self, tmp_path: Path) -> None:
        folder = Path(saved_dataset(tmp_path / "in", contents(9)))
        next(folder.glob("*.arrow")).unlink()
        with pytest.raises(ValueError, match=r"lacks data-00000-of-00003\.arrow"):
            everything(folder)

    def test_a_missing_split_is_said(self, tmp_path: Path) -> None:
        folder = Path(saved_dataset_dict(tmp_path / "in", contents(4)))
        (folder / "test" / "state.json").unlink()
        with pytest.raises(ValueError, match="lacks the split test"):
            everything(folder)

    def test_an_index_of_rows_is_refused(self, tmp_path: Path) -> None:
        folder = Path(saved_dataset(tmp_path / "in", contents(4)))
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, "_indices_files": [{"filename": "indices.arrow"}]}))
        with pytest.raises(ValueError, match="flatten_indices"):
            everything(folder)

    def test_shuffled_before_it_was_saved(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        folder = Path(saved_dataset(tmp_path / "first", contents(9)))
        loaded = datasets.load_from_disk(str(folder)).shuffle(seed=1).select(range(5))
        loaded.save_to_disk(str(tmp_path / "second"))
        assert [texts(one)[0].decode() for one in samples(tmp_path / "second")] == loaded["text"][:]


_PEAK = """
import resource, sys
from mtv_core.data.sources import SourceConfig, expand, read
def used():
    # Not `ru_maxrss`: a child starts with its parent's.
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
small = expand(SourceConfig(uri=sys.argv[1]))
list(read(small[0], 1 << 20))
before, rows = used(), 0
for shard in expand(SourceConfig(uri=sys.argv[2])):
    for sample in read(shard, 1 << 20):
        rows += sample.image is not None
print(rows, used() - before)
"""


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_memory_does_not_depend_on_the_size_of_a_group(tmp_path: Path, ending: str) -> None:
    """One row group, one record batch, of 500 MB."""
    size, rows = 100_000, 5000
    noise = picture(1) * (size // len(picture(1)) + 1)
    small = tmp_path / f"small.{ending}"
    large = tmp_path / f"large.{ending}"
    data = pa.table({"image": pa.array([noise[:100]] * 3), "caption": ["c"] * 3})
    images = pa.array([noise[:size]] * rows, pa.large_binary())
    more = pa.table({"image": images, "caption": [f"caption {n}" for n in range(rows)]})
    if ending == "parquet":
        pq.write_table(data, small)
        pq.write_table(more, large, row_group_size=rows, use_dictionary=False, compression="none", write_batch_size=32)
        assert pq.ParquetFile(large).metadata.num_row_groups == 1
    else:
        arrow(small, data)
        arrow(large, more, rows=rows)
    done = subprocess.run([sys.executable, "-c", _PEAK, str(small), str(large)], capture_output=True, text=True, check=True)
    read_rows, peak = map(int, done.stdout.split())
    assert read_rows == rows
    assert peak < 150, f"{peak} MiB"
