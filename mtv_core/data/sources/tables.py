"""Tables of images and captions, batch by batch: which columns are what, and rows → samples. Parquet and Arrow share it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from mtv_core.data.sources.base import RawSample, ShardRef
from mtv_core.data.sources.cells import cells, has_bytes, is_image, plain_type, stored
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
    kinds = {field.name: plain_type(field.type) for field in schema}
    named = [columns.image, columns.key, columns.url, columns.license, *(columns.captions or ()), *(columns.synthetic or ())]
    missing = [name for name in named if name is not None and name not in kinds]
    if missing:
        raise MissingColumnsError(f"there is no column {', '.join(missing)}; {_there_are(schema)}; correct the source's `columns`")
    image = _image(schema, kinds, columns)
    present = [name for name in kinds if name != image]
    web = columns.captions if columns.captions is not None else [name for name in WEB if name in present][:1]
    synthetic = columns.synthetic if columns.synthetic is not None else [name for name in SYNTHETIC if name in present]
    if not web and not synthetic and columns.captions is None:  # an empty list is the wish to have none
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
        if not is_image(kinds[columns.image]):
            raise MissingColumnsError(f"the column {columns.image} is {kinds[columns.image]}, not bytes or an Image; {_there_are(schema)}")
        return columns.image
    possible = [name for name, kind in kinds.items() if is_image(kind)]
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


class Checked(NamedTuple):
    """Some rows that are what they say."""

    image: pa.Array  # of bytes
    paths: Sequence[Any]  # of images that are elsewhere
    columns: dict[str, Sequence[Any]]


class Rows:
    """Batches → samples, of one shard."""

    def __init__(self, shard: ShardRef, found: Layout, max_bytes: int, beside: Members) -> None:
        self.shard, self.layout, self.max_bytes, self.beside = shard, found, max_bytes, beside
        self.seen = Seen()

    def checked(self, batch: pa.RecordBatch) -> Checked:
        """A batch of a few rows as values, except the images.

        Raises:
            pyarrow.ArrowInvalid: it is damaged.
        """
        names = (*sorted(self.layout.used), *self.layout.rest)
        columns = {name: cells(batch.column(name), name in self.layout.used) for name in names}
        image = stored(batch.column(self.layout.image))
        paths: Sequence[Any] = [None] * batch.num_rows
        if isinstance(image, pa.StructArray):
            if any(field.name == "path" for field in image.type):
                paths = [
                    path if there else None
                    for path, there in zip(cells(image.field("path"), True), image.is_valid().to_pylist(), strict=True)
                ]
            image = pa.StructArray.from_arrays([image.field("bytes")], ["bytes"], mask=image.is_null()).flatten()[0]
        image.validate(full=True)
        return Checked(image, paths, columns)

    def samples(self, checked: Checked, first: int) -> Iterator[RawSample]:
        """The samples of a batch whose first row is row `first` of the shard."""
        for row in range(len(checked.image)):
            found = {name: column[row] for name, column in checked.columns.items()}
            yield self._sample(checked.image[row], checked.paths[row], found, first + row)

    def _sample(self, cell: Any, path: Any, found: Mapping[str, Any], number: int) -> RawSample:
        key = _text(found.get(self.layout.key)) if self.layout.key else None
        name, again = self.seen.name(key or f"{number:09d}")
        said = fields(found, self.layout.columns)
        image, too_large, problem = self._image(cell, path)
        if again and self.layout.columns.key is not None:  # what only looks like a key may be a category: then each gets a number
            problem = ("DuplicateKey", f"the key {key!r} came before in this table; give every row its own, or set no `columns.key`")
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

    def _image(self, cell: Any, path: Any) -> tuple[bytes | None, int, tuple[str, str] | None]:
        """Bytes, or how many there are if too many, or what is wrong."""
        if not cell.is_valid:
            name = _text(path)
            return self._beside(name) if name else (None, 0, None)
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
