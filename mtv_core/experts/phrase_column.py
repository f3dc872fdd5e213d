"""What a column of the user's own asks for in each picture: a list of phrases, or one text that names several. Needs pyarrow alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtv_core.data.meta import find

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1  # raise it when the same value gives other phrases: detections of columns become stale
META = "meta"  # the samples' own JSON

_SETTING = "label.detection.phrases_column"
_EXPECTED = "phrases are a list of texts, or one text with a phrase a line or between commas"
_BETWEEN = re.compile(r"[\n,;]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class BadPhrases:
    """A row whose value names no phrases, and why: it is the data's fault, and that row's alone."""

    message: str


def column_of(name: str) -> tuple[str, str | None]:
    """The table's column behind a configured name, and the key inside it: `meta.tags` is `tags` of the JSON in `meta`.

    >>> column_of("tags"), column_of("meta.objects.names")
    (('tags', None), ('meta', 'objects.names'))
    """
    first, _, rest = name.partition(".")
    return (META, rest) if first == META and rest else (name, None)


def read(rows: pa.RecordBatch, name: str) -> list[list[str] | BadPhrases]:
    """The phrases of each row: single spaces, each once, in their order; empty where the value is null or the key is missing.

    Raises:
        ValueError: there is no such column, or it is of a type that is neither text nor lists of text.
    """
    column, key = column_of(name)
    if column not in rows.schema.names:
        raise ValueError(f"the table has no column {column!r} for {_SETTING}; it has {', '.join(rows.schema.names)}")
    values = rows.column(column)
    if not _texts(values.type):
        raise ValueError(f"the column {column!r} for {_SETTING} is of type {values.type}; {_EXPECTED}")
    found = values.to_pylist()
    if key is not None:
        found = [find(_document(value), key) for value in found]
    return [_listed(value, name) for value in found]


def _texts(kind: pa.DataType) -> bool:
    """Whether values of a type are text or lists of text."""
    import pyarrow.types as types

    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    value = kind.value_type if lists else kind
    return types.is_string(value) or types.is_large_string(value) or types.is_string_view(value) or types.is_null(value)


def _listed(value: Any, name: str) -> list[str] | BadPhrases:
    parts = _BETWEEN.split(value) if isinstance(value, str) else [] if value is None else value
    if not isinstance(parts, list) or not all(part is None or isinstance(part, str) for part in parts):
        return BadPhrases(f"{_SETTING} {name!r} holds {repr(value)[:80]}; {_EXPECTED}")
    phrases = list(dict.fromkeys(phrase for part in parts if (phrase := " ".join((part or "").split()))))
    if _SURROGATE.search("".join(phrases)):  # JSON can name half a character, which no text can hold
        return BadPhrases(f"{_SETTING} {name!r} holds {ascii(value)[:80]}, which is no valid Unicode")
    return phrases


def _document(text: str | None) -> Any:
    """A sample's JSON. Ingest keeps it as received, so it may be broken: then it names nothing, as when there is none."""
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):  # the latter: brackets in brackets, thousands of them
        return None
