"""Columns of tables as Python values. Nothing that a file says of itself is believed: a wild offset would take the process with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as types


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that is stored."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def is_bytes(kind: pa.DataType) -> bool:
    """Whether the values are bytes."""
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind))


def is_image(kind: pa.DataType) -> bool:
    """Whether the values are bytes, or Hugging Face's `Image`."""
    if types.is_struct(kind):
        return any(field.name == "bytes" and is_bytes(field.type) for field in kind)
    return is_bytes(kind)


def has_bytes(kind: pa.DataType) -> bool:
    """Whether the values are, or hold, bytes."""
    kind = plain_type(kind)
    if types.is_dictionary(kind):
        return has_bytes(kind.value_type)
    return is_bytes(kind) or any(has_bytes(kind.field(n).type) for n in range(kind.num_fields))


def cells(column: pa.Array, as_received: bool) -> Sequence[Any]:
    """The values of a column. Texts, and lists of them, stay bytes if `as_received`: nobody promises that they are UTF-8.

    Raises:
        pyarrow.ArrowInvalid: the column is damaged.
    """
    column = stored(column)
    if types.is_dictionary(column.type):
        # Only the indices are in this batch; `from_arrays` looks that they are in bounds.
        values = pa.array(cells(column.dictionary, True), _as_bytes(column.type.value_type) or column.type.value_type)
        column = pa.DictionaryArray.from_arrays(column.indices, values).dictionary_decode()
    raw = _as_bytes(column.type)
    if raw is None:
        return _others(column)
    column = column.cast(raw)
    column.validate(full=True)
    found: list[Any] = column.to_pylist()
    return found if as_received else [_decoded(value) for value in found]


def stored(column: pa.Array) -> pa.Array:
    """A column without its extension type, looked over as far as that costs nothing.

    Raises:
        pyarrow.ArrowInvalid: it is damaged.
    """
    column.validate()
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _others(column: pa.Array) -> list[Any]:
    """Values that are no texts; null for one that holds text that is no UTF-8, or a time that Python cannot say."""
    try:
        column.validate(full=True)
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        if len(column) == 1:
            return [None]
        return [_others(column.slice(row, 1))[0] for row in range(len(column))]


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _as_bytes(kind: pa.DataType) -> pa.DataType | None:
    """The type of texts, or of lists of texts, with bytes in their place; None for any other."""
    if is_bytes(kind):
        return kind
    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_string_view(kind):
        return pa.binary_view()
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _as_bytes(kind.value_type)
        return None if inner is None else pa.large_list(inner) if types.is_large_list(kind) else pa.list_(inner)
    return None
