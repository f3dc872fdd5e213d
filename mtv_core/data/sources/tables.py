"""Tables of images and captions, batch by batch: which columns are what, and rows → samples. Parquet and Arrow share it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as types

from mtv_core.data.sources.base import RawSample, ShardRef
from mtv_core.data.sources.config import Columns
from mtv_core.data.sources.members import Members, UnsafePathError, Wanted
from mtv_core.data.sources.records import KEY, LICENSE, SYNTHETIC, URL, WEB, Seen, fields, meta_of

_IMAGE = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")


class MissingColumnsError(ValueError):
    """A table has no image or no caption, by the names that are usual or given."""


@dataclass(frozen=True)
class Layout:
    """Which columns are read."""

    image: str
    key: str | None
    used: frozenset[str]  # columns with a place of their own in the table
    rest: tuple[str, ...]  # what goes into `meta`
    columns: Columns

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        return sorted({self.image, *self.used, *self.rest})


def layout(schema: pa.Schema, columns: Columns) -> Layout:
    """Which columns of a table are what.

    Raises:
        MissingColumnsError: there is no image or no caption, or a column that was named; says which columns there are.
    """
    kinds = {field.name: _plain_type(field.type) for field in schema}
    named = [columns.image, columns.key, columns.url, columns.license, *(columns.captions or ()), *(columns.synthetic or ())]
    missing = [name for name in named if name is not None and name not in kinds]
    if missing:
        raise MissingColumnsError(f"there is no column {', '.join(missing)}; {_there_are(schema)}; correct the source's `columns`")
    image = _image(schema, kinds, columns)
    present = [name for name in kinds if name != image]
    web = columns.captions if columns.captions is not None else [name for name in WEB if name in present][:1]
    synthetic = columns.synthetic if columns.synthetic is not None else [name for name in SYNTHETIC if name in present]
    if not web and not synthetic:
        raise MissingColumnsError(
            f"there is no column with captions; {_there_are(schema)}; set the source's `columns: {{captions: [NAME]}}`"
        )
    key = columns.key or next((name for name in KEY if name in present), None)
    one_of = [
        columns.url or next((name for name in URL if name in present), None),
        columns.license or next((name for name in LICENSE if name in present), None),
    ]
    used = frozenset([*web, *synthetic, *(name for name in (key, *one_of) if name)])
    twice = sorted({name for name in (image, *used) if schema.names.count(name) > 1})
    if twice:
        raise MissingColumnsError(f"there are two columns {', '.join(twice)}; {_there_are(schema)}; write the table with one of each")
    rest = [name for name in present if name not in used and not has_bytes(kinds[name]) and schema.names.count(name) == 1]
    return Layout(image, key, used, tuple(rest), columns)


def _image(schema: pa.Schema, kinds: Mapping[str, pa.DataType], columns: Columns) -> str:
    if columns.image is not None:
        if not _is_image(kinds[columns.image]):
            raise MissingColumnsError(f"the column {columns.image} is {kinds[columns.image]}, not bytes or an Image; {_there_are(schema)}")
        return columns.image
    possible = [name for name, kind in kinds.items() if _is_image(kind)]
    declared = [name for name in _declared_images(schema) if name in possible]
    for found in (
        declared if len(declared) == 1 else [],
        [name for name in _IMAGE if name in possible],
        possible if len(possible) == 1 else [],
    ):
        if found:
            return found[0]
    if possible:
        raise MissingColumnsError(f"which of the columns {', '.join(possible)} is the image? Set the source's `columns: {{image: NAME}}`")
    listed = next((name for name in URL if name in kinds), None)
    advice = (
        f"it lists addresses ({listed}): download them first, as with img2dataset"
        if listed
        else "set the source's `columns: {image: NAME}`"
    )
    raise MissingColumnsError(f"there is no column with the bytes of an image; {_there_are(schema)}; {advice}")


def _declared_images(schema: pa.Schema) -> list[str]:
    """What Hugging Face's datasets wrote down of its columns."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Image"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _there_are(schema: pa.Schema) -> str:
    return f"the columns are {', '.join(f'{field.name}: {_short(field.type)}' for field in schema)}"


def _short(kind: pa.DataType) -> str:
    return str(kind) if len(str(kind)) < 60 else f"{str(kind)[:57]}…"


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_image(kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def has_bytes(kind: pa.DataType) -> bool:
    """Whether a column is, or holds, bytes."""
    kind = _plain_type(kind)
    if types.is_dictionary(kind):
        return has_bytes(kind.value_type)
    return _is_bytes(kind) or any(has_bytes(kind.field(n).type) for n in range(kind.num_fields))


class Rows:
    """Batches → samples, of one shard."""

    def __init__(self, shard: ShardRef, found: Layout, max_bytes: int, beside: Members) -> None:
        self.shard, self.layout, self.max_bytes, self.beside = shard, found, max_bytes, beside
        self.seen = Seen()

    def samples(self, batch: pa.RecordBatch, first: int) -> Iterator[RawSample]:
        """The samples of a batch whose first row is row `first` of the shard."""
        columns = {name: cells(batch.column(name), name in self.layout.used) for name in (*sorted(self.layout.used), *self.layout.rest)}
        image = batch.column(self.layout.image)
        if isinstance(image, pa.ExtensionArray):
            image = image.storage
        for row in range(batch.num_rows):
            yield self._sample(image[row], {name: column[row] for name, column in columns.items()}, first + row)

    def _sample(self, cell: Any, found: Mapping[str, Any], number: int) -> RawSample:
        key = _text(found.get(self.layout.key)) if self.layout.key else None
        name, again = self.seen.name(key or f"{number:09d}")
        if again:
            return RawSample(name, None, problem=("DuplicateKey", f"the key {key!r} came before in this table; give every row its own"))
        said = fields(found, self.layout.columns)
        image, too_large, problem = self._image(cell)
        return RawSample(
            key=name,
            image=image,
            captions=said.captions,
            meta=meta_of({column: found[column] for column in self.layout.rest}),
            url=said.url,
            license=said.license,
            too_large=too_large,
            problem=problem or said.problem,
        )

    def _image(self, cell: Any) -> tuple[bytes | None, int, tuple[str, str] | None]:
        """Bytes, or how many there are if too many, or what is wrong."""
        if isinstance(cell, pa.StructScalar):
            if not cell.is_valid:
                return None, 0, None
            path = _text(cell["path"].as_py()) if "path" in cell else None
            if not cell["bytes"].is_valid:
                return self._beside(path) if path else (None, 0, None)
            cell = cell["bytes"]
        if not cell.is_valid:
            return None, 0, None
        size = cell.as_buffer().size
        return (None, size, None) if size > self.max_bytes else (cell.as_py(), 0, None)

    def _beside(self, path: str) -> tuple[bytes | None, int, tuple[str, str] | None]:
        advice = "write the table with the bytes of the images in it"
        try:
            content = self.beside.read(Wanted(path, self.max_bytes))
        except UnsafePathError as error:
            return None, 0, ("BadRow", f"the row has no bytes, only a path: {error}; or {advice}")
        except FileNotFoundError:
            return None, 0, ("BadRow", f"the row has no bytes, only the path {path!r}, which is not beside the table; {advice}")
        return (None, len(content), None) if len(content) > self.max_bytes else (content, 0, None)


def _text(value: Any) -> str | None:
    if value is None or value == b"":
        return None
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def cells(column: pa.Array, as_received: bool) -> Sequence[Any]:
    """A column as Python values. Texts stay bytes if `as_received`: nobody promises that they are UTF-8."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    raw = _as_bytes(column.type)
    if raw is not None and as_received:
        return column.cast(raw).to_pylist()
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # not UTF-8, or a time that Python cannot say
        return [_value(cell) for cell in column]


def _as_bytes(kind: pa.DataType) -> pa.DataType | None:
    if _is_text(kind):
        return pa.large_binary() if types.is_large_string(kind) else pa.binary_view() if types.is_string_view(kind) else pa.binary()
    if types.is_list(kind) and _is_text(kind.value_type):
        return pa.list_(_as_bytes(kind.value_type))
    if types.is_large_list(kind) and _is_text(kind.value_type):
        return pa.large_list(_as_bytes(kind.value_type))
    return None


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return cell.as_buffer().to_pybytes().decode(errors="replace") if hasattr(cell, "as_buffer") else None
    except (ValueError, OverflowError):
        return None
