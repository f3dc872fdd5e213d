"""Parquet and Arrow files that are damaged, or hold other things than their columns promise."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tars import picture

from malformed.kinds import GOOD_SHARDS, Kind, beside_good, json_bytes, records, register, source, write

BAD: dict[str, Any] = {"image": picture(100), "caption": "a picture", "key": "bad"}
SCHEMA = pa.schema([("image", pa.binary()), ("caption", pa.string()), ("key", pa.string())])


def rows(*bad: dict[str, Any]) -> list[dict[str, Any]]:
    """A good row, the bad ones, two good rows."""
    first, *others = records()
    return [first, *bad, *others]


def table(values: Sequence[dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist(list(values), schema=schema)


def parquet(values: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(values, buffer, **options)
    return buffer.getvalue()


def stream(values: pa.Table) -> bytes:
    """An Arrow stream, a batch a row."""
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, values.schema) as writer:
        writer.write_table(values, max_chunksize=1)
    return buffer.getvalue()


GOOD_SHARDS["parquet"] = lambda: parquet(table(rows()))
GOOD_SHARDS["arrow"] = lambda: stream(table(rows()))


def as_parquet(name: str, *rejects: tuple[str, str], **fields: Any) -> Callable[[Callable[[], bytes]], None]:
    def wrap(content: Callable[[], bytes]) -> None:
        register(Kind(f"parquet-{name}", "parquet", lambda folder: write(folder / "bad.parquet", content()), rejects, **fields))

    return wrap


def as_arrow(name: str, *rejects: tuple[str, str], **fields: Any) -> Callable[[Callable[[], bytes]], None]:
    def wrap(content: Callable[[], bytes]) -> None:
        register(Kind(f"arrow-{name}", "arrow", lambda folder: write(folder / "bad.arrow", content()), rejects, **fields))

    return wrap


def bad_row(name: str, error: str | None, row: dict[str, Any], schema: pa.Schema = SCHEMA, **fields: Any) -> None:
    """A row among good ones. Error None: it is a row of the table too."""
    rejects = () if error is None else (("bad", error),)
    as_parquet(name, *rejects, kept=("bad",) if error is None else (), **fields)(lambda: parquet(table(rows({**BAD, **row}), schema)))


def useless(name: str, *rejects: tuple[str, str], form: str = "parquet") -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """A file of which nothing can be used, beside a good one."""
    return beside_good(f"{form}-{name}", form, f"bad.{form}", *rejects)


def captions_as(kind: pa.DataType, value: Any) -> pa.Table:
    """Rows whose captions are of a type that is none."""
    return pa.table({"image": [BAD["image"]], "caption": pa.array([value], kind), "key": ["bad"]})


def structs(values: list[Any], **more: Any) -> pa.Table:
    """Good rows and others, their images as Hugging Face has them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    first, *others = [{"bytes": row["image"], "path": None} for row in records()]
    return pa.table(
        {
            "image": pa.array([first, *values, *others], kind),
            "caption": [row["caption"] for row in rows(*[BAD] * len(values))],
            "key": [row["key"] for row in rows(*[{**BAD, "key": f"bad{n or ''}"} for n in range(len(values))])],
        }
    )


def lists(kind: pa.DataType, bad: Any) -> pa.Table:
    """Good rows and one other, with lists of captions."""
    values = [[row["caption"]] if row["key"] != "bad" else bad for row in rows(BAD)]
    strings = pa.array(values, pa.list_(pa.string()))
    return pa.table(
        {
            "image": [row["image"] for row in rows(BAD)],
            "caption": strings if kind == strings.type else pa.ListArray.from_arrays(strings.offsets, strings.values.cast(kind.value_type)),
            "key": [row["key"] for row in rows(BAD)],
        }
    )


def zeroed(content: bytes, column: int, at: int) -> bytes:
    """A hole in the page of the bad row, `at` bytes from its beginning."""
    start = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(1).column(column).data_page_offset + at
    return content[:start] + bytes(60) + content[start + 60 :]


# Rows
bad_row("image-null", "NoImage", {"image": None})
bad_row("image-of-no-bytes", "EmptyImage", {"image": b""})
bad_row("image-of-text", "UnsupportedImage", {"image": b"https://example.org/1.jpg"})
bad_row("image-cut", "BrokenImage", {"image": picture(101, (64, 48))[:700]})
bad_row("image-too-large", "TooLarge", {"image": bytes(50_001)}, config={"max_bytes": 50_000})
bad_row("caption-null", "NoCaption", {"caption": None})
bad_row("caption-empty", "NoCaption", {"caption": ""})
bad_row("caption-huge", "CaptionTooLong", {"caption": "word " * 100_000})
as_parquet("keys-twice", kept=("bad", "bad#2"))(  # nobody said that this column is a key
    lambda: parquet(table(rows(BAD, {**BAD, "image": picture(102)})))
)
as_parquet("key-null", kept=("000000001",))(lambda: parquet(table(rows({**BAD, "key": None}))))
as_parquet("struct-null", ("bad", "NoImage"))(lambda: parquet(structs([None])))
as_parquet("struct-without-bytes", ("bad", "BadRow"))(lambda: parquet(structs([{"bytes": None, "path": "images/1.jpg"}])))
as_parquet("struct-of-nothing", ("bad", "NoImage"))(lambda: parquet(structs([{"bytes": None, "path": None}])))
as_parquet("struct-path-traversal", ("bad", "BadRow"), ("bad1", "BadRow"))(
    lambda: parquet(structs([{"bytes": None, "path": "../../../../etc/passwd"}, {"bytes": None, "path": "/etc/passwd"}]))
)
as_parquet("caption-not-utf-8", ("bad", "CaptionNotUtf8"))(
    lambda: parquet(
        table(rows(BAD)).set_column(1, "caption", pa.array([b"picture 1", b"caf\xe9", b"picture 2", b"picture 3"]).view(pa.string()))
    )
)
as_parquet("list-empty", ("bad", "NoCaption"))(lambda: parquet(lists(pa.list_(pa.string()), [])))
as_parquet("list-null", ("bad", "NoCaption"))(lambda: parquet(lists(pa.list_(pa.string()), None)))
as_parquet("list-of-nulls", ("bad", "NoCaption"))(lambda: parquet(lists(pa.list_(pa.string()), [None, None])))
as_parquet("list-with-nulls", kept=("bad",))(lambda: parquet(lists(pa.list_(pa.string()), [None, "a picture", None])))
as_parquet("list-of-dictionaries", kept=("bad",))(
    lambda: parquet(lists(pa.list_(pa.dictionary(pa.int32(), pa.string())), ["a picture", "a picture", "another"]))
)
as_parquet("other-columns-of-all-kinds", kept=("bad",))(
    lambda: parquet(
        table(rows(BAD))
        .append_column("when", pa.array([0, 2**62, -(2**62), None], pa.timestamp("us")))
        .append_column("score", pa.array([float("nan"), float("inf"), -0.0, None]))
        .append_column("tags", pa.array([[("a", 1)], [], None, [("b", 2)]], pa.map_(pa.string(), pa.int8())))
        .append_column("price", pa.array([None] * 4, pa.decimal256(70, 3)))
        .append_column("blob", pa.array([b"\xff"] * 4))
        .append_column("latin", pa.array([b"caf\xe9"] * 4).view(pa.string()))
        .append_column("nothing", pa.nulls(4))
    )
)
as_parquet("huggingface-metadata-broken", kept=("bad",))(
    lambda: parquet(table(rows(BAD)).replace_schema_metadata({b"huggingface": b"{not json"}))
)

# Columns
useless("captions-of-nan", ("bad", "BadRow"))(lambda: parquet(captions_as(pa.float64(), float("nan"))))
useless("captions-of-integers", ("bad", "BadRow"))(lambda: parquet(captions_as(pa.int64(), 17)))
useless("captions-of-structs", ("bad", "BadRow"))(lambda: parquet(captions_as(pa.struct([("en", pa.string())]), {"en": "a dog"})))
useless("captions-of-nulls", ("bad", "NoCaption"))(lambda: parquet(captions_as(pa.null(), None)))
useless("without-captions", ("", "MissingColumns"))(lambda: parquet(table(rows()).drop_columns(["caption"])))
useless("without-images", ("", "MissingColumns"))(lambda: parquet(table(rows()).drop_columns(["image"])))
useless("of-addresses", ("", "MissingColumns"))(lambda: parquet(pa.table({"url": ["http://a.org/1.jpg"], "caption": ["a dog"]})))
useless("images-of-strings", ("", "MissingColumns"))(lambda: parquet(pa.table({"image": ["images/1.jpg"], "caption": ["a dog"]})))
useless("without-columns", ("", "MissingColumns"))(lambda: parquet(pa.table({})))
useless("columns-twice", ("", "MissingColumns"))(
    lambda: parquet(pa.table([pa.array([picture(103)]), pa.array(["a"]), pa.array(["b"])], names=["image", "caption", "caption"]))
)
useless("without-rows", ("", "EmptyShard"))(lambda: parquet(table([])))

# Damage
PAGES: dict[str, Any] = {"row_group_size": 1, "use_dictionary": False, "write_statistics": False}  # a page for each value
WHOLE = parquet(table(rows(BAD)), compression="zstd", **PAGES)
as_parquet("damaged-page", ("", "TruncatedShard"))(lambda: zeroed(WHOLE, 0, 0))
as_parquet("damaged-page-with-a-checksum", ("", "TruncatedShard"))(
    lambda: zeroed(
        parquet(table(rows({**BAD, "caption": "a picture of a dog " * 50})), compression="none", write_page_checksum=True, **PAGES), 1, 40
    )
)
useless("cut", ("", "UnreadableShard"))(lambda: WHOLE[: len(WHOLE) // 2])
useless("cut-in-the-footer", ("", "UnreadableShard"))(lambda: WHOLE[:-20])
useless("footer-damaged", ("", "UnreadableShard"))(lambda: WHOLE[:-200] + bytes(150) + WHOLE[-50:])
useless("footer-of-gigabytes", ("", "UnreadableShard"))(lambda: WHOLE[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
useless("footer-of-zero", ("", "UnreadableShard"))(lambda: WHOLE[:-8] + struct.pack("<I", 0) + b"PAR1")
useless("wrong-magic", ("", "UnreadableShard"))(lambda: WHOLE[:-4] + b"PAR2")
useless("encrypted", ("", "UnreadableShard"))(lambda: b"PARE" + WHOLE[4:-4] + b"PARE")
useless("zero-bytes", ("", "UnreadableShard"))(lambda: b"")
useless("eight-bytes", ("", "UnreadableShard"))(lambda: b"PAR1PAR1")
useless("of-csv", ("", "UnreadableShard"))(lambda: b"url,caption\nhttp://a.org/1.jpg,a dog\n" * 10)
useless("of-arrow", ("", "UnreadableShard"))(lambda: stream(table(rows(BAD))))

# Arrow
ARROW = stream(table(rows(BAD)))
as_arrow("row", ("bad", "NoCaption"))(lambda: stream(table(rows({**BAD, "caption": None}))))
as_arrow("cut-in-the-last-batch", ("", "TruncatedShard"), kept=("bad",), good=(1, 2))(lambda: ARROW[:-300])
as_arrow("cut-before-the-end-mark", ("", "TruncatedShard"), kept=("bad",))(lambda: ARROW[:-8])
as_arrow("batch-of-gigabytes", ("", "TruncatedShard"), kept=("bad",))(lambda: ARROW[:-8] + struct.pack("<iI", -1, 0x7FFFFFF0) + bytes(64))
useless("without-captions", ("", "MissingColumns"), form="arrow")(lambda: stream(table(rows()).drop_columns(["caption"])))
useless("without-rows", ("", "EmptyShard"), form="arrow")(lambda: stream(table([])))
useless("zero-bytes", ("", "UnreadableShard"), form="arrow")(lambda: b"")
useless("cut-in-the-schema", ("", "UnreadableShard"), form="arrow")(lambda: ARROW[:60])
useless("of-text", ("", "UnreadableShard"), form="arrow")(lambda: b"this is no table " * 20)
useless("file-without-its-end", ("", "UnreadableShard"), form="arrow")(lambda: b"ARROW1\0\0" + ARROW)


def saved(folder: Path, state: bytes, *names: str) -> Path:
    """A dataset as `save_to_disk` writes it."""
    for name in names:
        write(folder / name, stream(table(rows())))
    write(folder / "dataset_info.json", b"{}")
    write(folder / "state.json", state)
    return folder


@source("arrow-file-missing", "arrow", good=(), refusal=(ValueError, "lacks data-00001.arrow, which its state.json lists"))
def _missing(folder: Path) -> Path:
    return saved(folder, json_bytes({"_data_files": [{"filename": f"data-0000{n}.arrow"} for n in (0, 1)]}), "data-00000.arrow")


@source("arrow-state-broken", "arrow", good=(), refusal=(ValueError, "state.json is no JSON"))
def _broken(folder: Path) -> Path:
    return saved(folder, b'{"_data_files": [', "data-00000.arrow")


@source("arrow-state-leads-out", "arrow", good=(), refusal=(ValueError, "lacks"))
def _outside(folder: Path) -> Path:
    write(folder / "outside.arrow", stream(table([BAD])))
    return saved(folder / "in", json.dumps({"_data_files": [{"filename": "../outside.arrow"}]}).encode(), "data-00000.arrow")


@source("arrow-cache-beside", "arrow")
def _cache(folder: Path) -> Path:
    write(folder / "cache-1234.arrow", stream(table([BAD])))
    return saved(folder, json_bytes({"_data_files": [{"filename": "data-00000.arrow"}]}), "data-00000.arrow")
