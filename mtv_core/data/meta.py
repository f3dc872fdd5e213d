"""Samples' own JSON, the column `meta`."""

from __future__ import annotations

from typing import Any


def find(document: Any, key: str) -> Any:
    """What stands under a key, where dots go into objects: `a.b` is `{"a": {"b": …}}`. None if there is nothing."""
    if not isinstance(document, dict):
        return None
    if key in document:  # a name may have dots of its own
        return document[key]
    first, _, rest = key.partition(".")
    return find(document.get(first), rest) if rest else None
