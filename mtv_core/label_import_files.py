"""Labels of people's own, as they lie in files: what `label_import` takes, read and checked row by row.

Boxes, one row a sample (Parquet, JSON lines) or one row a box (those, and CSV):

    {"uid": "…32 hex…", "boxes": [[0.1, 0.2, 0.5, 0.9]], "phrases": ["red cube"], "scores": [0.9]}
    uid,phrase,x1,y1,x2,y2,score

Depth: a folder of `<uid>.npy`, `.npz` (first array), `.png` (16 bit), `.tif` or `.pfm`; one `.npz` with an array a uid; or Parquet with the
columns `uid` and `depth`, as `mtv data export` writes it or as lists of lists.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field

from mtv_core.data import depth as codec

_FLAT = ("x1", "y1", "x2", "y2")
_BOX = ("uid", "phrase", *_FLAT)  # columns of one row a box; score is a further one
_EDGE = 1e-3  # of the image: how far a box may stand out before it is refused, not clipped
_NESTED = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("boxes", pa.list_(pa.list_(pa.float64()))),
        pa.field("phrases", pa.list_(pa.string())),
        pa.field("scores", pa.list_(pa.float64())),
    ]
)
_EMPTY = {"", "na", "n/a", "nan", "null", "none"}  # a cell of a CSV without a number, in lower case
_MAPS = {".npy", ".npz", ".png", ".tif", ".tiff", ".pfm"}


class BadLabelError(ValueError):
    """A label that cannot be taken. `reason` is its short name in `mtv failures`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ReadOptions(BaseModel, frozen=True, extra="forbid"):
    """How the numbers of a file are meant. Part of the revision of the labels."""

    units: Literal["fraction", "pixels"] = Field("fraction", description="of boxes: 0 … 1 of the image, or px of the stored image")
    values: Literal["disparity", "depth"] | None = Field(
        None, description="of depth maps: inverse depth (larger is nearer), or depth (larger is farther), which is stored as 1 / depth"
    )
    scale: float = Field(1.0, gt=0, description="depth maps are divided by it: 1000 for a PNG of millimetres")
    depth_size: int = Field(256, ge=16, description="longer side of the stored map, px")


class LabelFile(Protocol):
    """The labels of a file, by position."""

    uids: list[str]
    problems: list[tuple[str, str, str]]  # (key, reason, message) of what is no label of any uid

    def label(self, position: int, width: int, height: int) -> dict[str, object]:
        """The columns of one label, for an image of a size in px.

        Raises:
            BadLabelError: it cannot be taken.
        """
        ...


def content(path: Path) -> str:
    """sha256 of a file, or over the names and contents of a folder's depth maps, hex."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for one in _maps(path):
        total.update(f"{one.name}\0{content(one)}\n".encode())
    return total.hexdigest()


def expert_of(path: Path) -> str:
    """Which expert's labels a file holds.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it can be neither.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.is_dir() or path.suffix == ".npz":
        return "depth"
    if path.suffix == ".parquet":
        names = _parquet_names(path)
        return "depth" if "depth" in names and not {"boxes", "x1"} & set(names) else "detection"
    if path.suffix in (".jsonl", ".csv"):
        return "detection"
    raise ValueError(f"{path} is no file of labels: give .parquet, .jsonl or .csv with boxes; a folder, .npz or .parquet with depth maps")


def open_file(path: Path, expert: str, options: ReadOptions) -> LabelFile:
    """Open a file of labels.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it lacks a column, or is no file of such labels.
    """
    expert_of(path)  # that it is there, and of a known kind
    return Boxes(path, options) if expert == "detection" else Depths(path, options)


# Boxes


class Boxes:
    """Boxes with phrases, in memory."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.options = options
        self.problems: list[tuple[str, str, str]] = []
        self.spoilt: set[str] = set()  # uids of which a row cannot be read
        self.rows = self._read(path)
        self.uids = self.rows["uid"].to_pylist()

    def label(self, position: int, width: int, height: int) -> dict[str, object]:
        """See `LabelFile`. The slow truth: corners in order and inside the image, a phrase and a score (1 where none is given) each."""
        row = {name: column[position].as_py() for name, column in zip(self.rows.column_names, self.rows.columns, strict=True)}
        boxes, phrases, scores = row["boxes"], row["phrases"], row["scores"]
        if boxes is None or phrases is None:
            raise BadLabelError("BadBoxes", "no list of boxes, or no list of phrases; an empty list says that there is nothing")
        scores = [1.0] * len(boxes) if scores is None else scores
        if not len(boxes) == len(phrases) == len(scores):
            raise BadLabelError("BadBoxes", f"{len(boxes)} boxes, {len(phrases)} phrases and {len(scores)} scores")
        phrases = [" ".join((phrase or "").split()) for phrase in phrases]
        if not all(phrases):
            raise BadLabelError("BadBoxes", f"box {phrases.index('')} has no phrase")
        if not all(score is not None and 0 <= score <= 1 for score in scores):
            raise BadLabelError("BadBoxes", "a score is missing or not in 0 … 1")
        if any(box is None or len(box) != 4 or None in box for box in boxes):
            raise BadLabelError("BadBoxes", "a box is not four numbers x1, y1, x2, y2")
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)
        if self.options.units == "pixels":
            corners = corners / (width, height, width, height)
        self._check(corners, boxes)
        return {"boxes": np.clip(corners, 0, 1).astype(np.float32).tolist(), "phrases": phrases, "scores": scores}

    def _check(self, corners: NDArray[np.float64], boxes: list[list[float]]) -> None:
        outside = ~np.isfinite(corners).all(1) | (corners < -_EDGE).any(1) | (corners > 1 + _EDGE).any(1)
        if outside.any():
            pixels = self.options.units == "fraction" and (corners > 2).any()
            hint = "; boxes in px of the stored image need --units pixels" if pixels else ""
            raise BadLabelError("BadBoxes", f"box {boxes[int(outside.argmax())]} is not inside the image{hint}")
        inside = np.clip(corners, 0, 1).astype(np.float32)
        empty = (inside[:, 2] <= inside[:, 0]) | (inside[:, 3] <= inside[:, 1])
        if empty.any():
            raise BadLabelError("BadBoxes", f"box {boxes[int(empty.argmax())]} has no area: x1 < x2 and y1 < y2")

    def _read(self, path: Path) -> pa.Table:
        if path.suffix == ".csv":
            return self._grouped(self._cells(path))
        if path.suffix == ".jsonl":
            return self._lines(path)
        names = _parquet_names(path)
        if "boxes" not in names:
            _need(names, _BOX, path)
            rows = pq.read_table(path, columns=[*_BOX, *(["score"] if "score" in names else [])]).to_pylist()
            return self._grouped((f"row {number}", row) for number, row in enumerate(rows, 1))
        _need(names, ("uid", "boxes", "phrases"), path)
        table = pq.read_table(path, columns=[name for name in _NESTED.names if name in names])
        if "scores" not in names:
            table = table.append_column("scores", pa.nulls(table.num_rows, _NESTED.field("scores").type))
        try:
            return table.select(_NESTED.names).cast(_NESTED)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"{path}: boxes are lists of four numbers, phrases lists of texts, scores lists of numbers ({error})"
            ) from None

    def _lines(self, path: Path) -> pa.Table:
        nested: list[dict[str, Any]] = []
        flat: list[tuple[str, dict[str, Any]]] = []
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise TypeError("a line is one object: {…}")
                    if "boxes" in row:
                        one = {name: row.get(name) for name in _NESTED.names}
                        pa.RecordBatch.from_pylist([one], schema=_NESTED)
                        nested.append(one)
                    else:
                        flat.append((f"line {number}", row))
                except (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
                    self._bad(f"line {number}", error)
        return pa.concat_tables([pa.Table.from_pylist(nested, schema=_NESTED), self._grouped(flat)])

    def _cells(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of a CSV with their lines; those that have no number where one belongs, or too few cells, are problems."""
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file)
            names = next(reader, [])
            _need(names, _BOX, path)
            while True:
                row: dict[str, Any] = {}
                try:
                    cells = next(reader, None)
                    if cells is None:
                        return
                    if not cells:
                        continue
                    row = dict(zip(names, cells, strict=False))
                    if len(cells) != len(names):
                        raise ValueError(f"{len(cells)} cells, and {len(names)} columns")
                    numbers = {name: _parsed(name, row[name]) for name in (*_FLAT, "score") if name in row}
                except (ValueError, csv.Error) as error:
                    self._bad(f"line {reader.line_num}", error, row.get("uid"))
                    continue
                yield f"line {reader.line_num}", row | numbers

    def _grouped(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> pa.Table:
        """One row a sample of one row a box; a row without corners says that nothing is there.

        A uid with a row that cannot be read is left out as a whole: a part of its boxes would say that the others are not there.
        """
        found: dict[str, dict[str, list[Any]]] = {}
        for where, row in rows:
            try:
                uid, phrase, score, corners = _box(row)
            except (ValueError, TypeError, OverflowError) as error:
                self._bad(where, error, row.get("uid"))
                continue
            labels = found.setdefault(uid, {"boxes": [], "phrases": [], "scores": []})
            if any(corner is not None for corner in corners):
                labels["boxes"].append(corners)
                labels["phrases"].append(phrase)
                labels["scores"].append(score)
        return pa.Table.from_pylist([{"uid": uid, **row} for uid, row in found.items() if uid not in self.spoilt], schema=_NESTED)

    def _bad(self, where: str, error: Exception, uid: object = None) -> None:
        """A row that cannot be read."""
        said = str(error) if type(error) in (ValueError, TypeError) else f"{type(error).__name__}: {error}"
        if isinstance(uid, str):
            self.spoilt.add(normal(uid))
            said += f"; no box of the uid {normal(uid)} is taken"
        self.problems.append((where, "BadRow", said))


def _parsed(name: str, cell: str) -> float | None:
    """A cell of a CSV as a number; None: there is none."""
    text = cell.strip()
    if text.lower() in _EMPTY:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, no number") from None


def _box(row: Mapping[str, Any]) -> tuple[str, str | None, float | None, list[float | None]]:
    """uid, phrase, score (1 where there is no such column) and corners of one row a box.

    Raises:
        ValueError, TypeError, OverflowError: it lacks a column, or a value is of another kind.
    """
    missing = [name for name in _BOX if name not in row]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    uid, phrase = row["uid"], row["phrase"]
    for name, value in (("uid", uid), ("phrase", phrase)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}, no text")
    score, *corners = (_number(name, row.get(name, 1.0)) for name in ("score", *_FLAT))
    return normal(uid or ""), phrase, score, corners


def _number(name: str, value: Any) -> float | None:
    if isinstance(value, (bool, str, bytes, list, dict)):
        raise TypeError(f"{name} is {value!r}, no number")
    return None if value is None else float(value)


# Depth


class Depths:
    """Depth maps, read when they are asked for."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.options, self.path = options, path
        self.problems: list[tuple[str, str, str]] = []
        self._table: pa.Table | None = None
        self._files: list[Path] = []
        if path.is_dir():
            self._files = _maps(path)
            self.uids = [one.stem for one in self._files]
        elif path.suffix == ".npz":
            try:
                with zipfile.ZipFile(path) as archive:
                    self.uids = [name.removesuffix(".npy") for name in archive.namelist()]
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path} is no .npz: {error}") from None
        elif path.suffix == ".parquet":
            _need(_parquet_names(path), ("uid", "depth"), path)
            self._table = pq.read_table(path, columns=["uid", "depth"])
            self.uids = self._table["uid"].cast(pa.string()).to_pylist()
        else:
            raise ValueError(f"depth maps lie in a folder, an .npz or a .parquet, not in {path.name}")
        stored = self._table is not None and pa.types.is_binary(self._table.schema.field("depth").type)
        if options.values is None and not stored:
            raise ValueError("say what the maps hold: --values depth (larger is farther) or --values disparity (larger is nearer)")
        self._stored = stored

    def label(self, position: int, width: int, height: int) -> dict[str, object]:
        """See `LabelFile`. What is not finite, or not positive where it is depth, is "no value"."""
        try:
            depth = self._map(position)
        except BadLabelError:
            raise
        except Exception as error:  # of NumPy, PIL, zipfile and the codec
            raise BadLabelError("BadDepth", f"the map cannot be read: {type(error).__name__}: {error}") from None
        if depth.ndim != 2 or depth.size == 0:
            raise BadLabelError("BadDepth", f"a depth map has the shape [H, W], not {list(depth.shape)}")
        wanted = depth.shape[0] * width / height
        if abs(depth.shape[1] - wanted) > max(1.0, 0.02 * wanted) + 0.5:
            raise BadLabelError(
                "BadDepth", f"a map of {depth.shape[1]} × {depth.shape[0]} is not of the whole image, which has {width} × {height} px"
            )
        if not np.isfinite(depth).any():
            raise BadLabelError("BadDepth", "the map has no value")
        size = codec.stored_size(width, height, self.options.depth_size)
        return {"depth": codec.encode(_shrunk(depth, *size))}

    def _map(self, position: int) -> NDArray[np.float32]:
        if self._table is not None:
            value = self._table["depth"][position]
            if not value.is_valid:
                raise BadLabelError("BadDepth", "no map")
            if self._stored:
                return codec.decode(value.as_py())
            return self._meant(np.asarray(value.as_py(), np.float32), integers=False)
        if not self._files:
            with np.load(self.path, allow_pickle=False) as arrays:
                found = arrays[self.uids[position]]
            return self._meant(found, integers=False)
        file = self._files[position]
        if file.suffix == ".png":
            with Image.open(file) as image:
                if image.mode not in ("I", "I;16", "L"):
                    raise BadLabelError("BadDepth", f"a PNG of depth has one channel of whole numbers, not {image.mode}")
                return self._meant(np.asarray(image), integers=True)
        if file.suffix in (".tif", ".tiff"):
            with Image.open(file) as image:
                return self._meant(np.asarray(image), integers=image.mode != "F")
        if file.suffix == ".pfm":
            return self._meant(_pfm(file.read_bytes()), integers=False)
        loaded = np.load(file, allow_pickle=False)
        return self._meant(loaded[loaded.files[0]] if file.suffix == ".npz" else loaded, integers=False)

    def _meant(self, values: NDArray[Any], integers: bool) -> NDArray[np.float32]:
        """As inverse depth. In whole numbers 0 is "no value", as in KITTI and NYU."""
        if values.dtype.kind not in "fiu":
            raise BadLabelError("BadDepth", f"a map of {values.dtype} holds no numbers")
        depth = values.astype(np.float32) / np.float32(self.options.scale)
        if integers:
            depth[values == 0] = np.nan
        if self.options.values == "depth":
            with np.errstate(divide="ignore", invalid="ignore"):
                depth = np.where(depth > 0, 1 / depth, np.float32(np.nan)).astype(np.float32)
        return depth


def _shrunk(depth: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """A map in at most this size: averages of the values there are, none where most of them are missing."""
    if depth.shape[0] <= height or depth.shape[1] <= width:
        return depth
    import torch

    def resized(values: NDArray[np.float32]) -> NDArray[np.float32]:
        found = torch.nn.functional.interpolate(
            torch.from_numpy(values)[None, None], size=(height, width), mode="bilinear", align_corners=False, antialias=True
        )
        return found[0, 0].numpy()

    known = np.isfinite(depth)
    share = resized(known.astype(np.float32))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(share >= 0.5, resized(np.where(known, depth, np.float32(0))) / share, np.float32(np.nan)).astype(np.float32)


def _pfm(data: bytes) -> NDArray[np.float32]:
    """A portable float map of one channel: 'Pf', width and height, scale (negative: little endian), rows from the bottom up."""
    header = re.match(rb"Pf\s+(\d+)\s+(\d+)\s+(-?[\d.eE+-]+)\s", data)
    if header is None:
        raise ValueError("no PFM of one channel")
    width, height, order = int(header[1]), int(header[2]), "<" if float(header[3]) < 0 else ">"
    return np.frombuffer(data, f"{order}f4", width * height, header.end()).reshape(height, width)[::-1].astype(np.float32)


def _maps(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_file() and one.suffix in _MAPS)


def _parquet_names(path: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    return names


def _need(there: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(there)}")


def normal(uid: str) -> str:
    """A uid as the table has it, in lower case; also of one that is none."""
    return uid.strip().lower()


def positions(uids: Sequence[str]) -> tuple[NDArray[np.bytes_], NDArray[np.int64], Iterator[tuple[int, str]]]:
    """uids sorted, the position of each in the file, and those that are left out: (position, reason)."""
    known = {i: normal(uid) for i, uid in enumerate(uids) if uid is not None and re.fullmatch(r"[0-9a-f]{32}", normal(uid))}
    keys = np.array(list(known.values()), "S32")
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], np.asarray(list(known), np.int64)[order]
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    bad = sorted({*range(len(uids))} - {*known})
    left = [*((i, "UnknownUid") for i in bad), *((int(i), "DuplicateUid") for i in places[~first])]
    return keys[first], places[first], iter(left)
