"""What a column of the user's own asks for in each picture: a list of phrases, or one text that names several. Needs pyarrow alone."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from mtv_core.data.meta import find

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1  # raise it when the same value gives other phrases: detections of columns become stale
META = "meta"  # the samples' own JSON

_BETWEEN = re.compile(r"[\n,;]")


def column_of(name: str) -> tuple[str, str | None]:
    """The table's column behind a configured name, and the key inside it: `meta.tags` is `tags` of the JSON in `meta`.

    >>> column_of("tags"), column_of("meta.objects.names")
    (('tags', None), ('meta', 'objects.names'))
    """
    first, _, rest = name.partition(".")
    return (META, rest) if first == META and rest else (name, None)


def read(rows: pa.RecordBatch, name: str) -> list[list[str]]:
    """The phrases of each row: single spaces, each once, in their order; empty where the value is null or the key is missing.

    Raises:
        ValueError: there is no such column, or its values are neither text nor lists of text.
    """
    column, key = column_of(name)
    if column not in rows.schema.names:
        raise ValueError(f"the table has no column {column!r} for label.detection.phrases_column; it has {', '.join(rows.schema.names)}")
    values = rows.column(column).to_pylist()
    if key is not None:
        values = [find(_document(value), key) for value in values]
    return [_listed(value, name) for value in values]


def _listed(value: Any, name: str) -> list[str]:
    if isinstance(value, str):
        value = _BETWEEN.split(value)
    if value is None:
        return []
    if not isinstance(value, list) or not all(part is None or isinstance(part, str) for part in value):
        raise ValueError(
            f"label.detection.phrases_column {name!r} holds {str(value)[:80]!r}; phrases are a list of texts, or one text with a phrase a "
            "line or between commas"
        )
    return list(dict.fromkeys(phrase for part in value if (phrase := " ".join((part or "").split()))))


def _document(text: str | None) -> Any:
    """A sample's JSON. Ingest keeps it as received, so it may be broken: then it names nothing, as when there is none."""
    try:
        return json.loads(text or "null")
    except ValueError:
        return None
