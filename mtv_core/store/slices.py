"""Slices of a view: which rows a `SliceConfig` means.

The condition is evaluated by Lance, by itself; the split, the fraction and the limit are decided here. So nothing that a condition says can
let a held-out row in.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtv_core.data.schema import LABELS, SAMPLES, label_schema
from mtv_core.store.slice_config import UID_BITS, SliceConfig

if TYPE_CHECKING:
    from mtv_core.store.view import View

_UID_BYTES = UID_BITS // 8
_HALF = UID_BITS // 2
_QUOTED = re.compile(r"'(?:[^']|'')*'|`[^`]*`")
# They answer differently each time, or by how the table is laid out: ranks and runs would not agree on the rows.
_UNSTABLE = re.compile(r"(?i)\b(random|uuid|now|today|current_date|current_time|current_timestamp|_row\w+)\b")
_PRUNE = 1 << 20  # rows beyond the limit that are kept before the largest uids are dropped


@dataclass(frozen=True)
class Selection:
    """The rows of a slice, and how many each of its steps left."""

    indices: NDArray[np.int64]
    """Positions, ascending."""
    counts: dict[str, int]
    """rows, split, where, fraction, limit, in this order, of the steps that were taken."""

    def __str__(self) -> str:
        """For people: "1000 rows, 990 of the split, 40 after where, 4 after fraction"."""
        words = {"rows": "rows", "split": "of the split"}
        return ", ".join(f"{count} {words.get(step, f'after {step}')}" for step, count in self.counts.items())


def known_schema(schema: pa.Schema | None = None) -> pa.Schema:
    """The columns of a table that is labelled; those of a table as it is, with the labels it will get."""
    fields = {field.name: field for field in [*SAMPLES, *(field for expert in LABELS for field in label_schema(expert)), *(schema or ())]}
    return pa.schema(list(fields.values()))


def check_where(where: str | None, schema: pa.Schema) -> None:
    """Refuse a condition that could not be evaluated. Reads nothing: asks Lance about an empty table of this schema.

    Raises:
        ValueError: it is no SQL condition over these columns, or it does not say the same each time.
    """
    if where is None:
        return
    plain = _QUOTED.sub("''", where)
    found = _UNSTABLE.search(plain)
    if found:
        raise _bad(
            where, f"{found[0]} says something else each time or in each layout of the table, and a slice has to stay the same", schema
        )
    if '"' in plain:
        raise _bad(where, "a name stands bare or in `backticks`, a text in 'single quotes'", schema)
    depth = 0
    for bracket in re.findall(r"[()]", plain):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            break
    if depth:
        raise _bad(where, "its brackets do not match", schema)
    try:
        lance.write_dataset(schema.empty_table(), "memory://condition").count_rows(wrapped(where))
    except (ValueError, OSError) as error:
        raise _bad(where, _reason(error), schema) from None


def wrapped(where: str) -> str:
    """The condition as Lance takes it. In brackets, since Lance ignores what follows a whole expression."""
    return f"({where}\n)"


def select(view: View, part: SliceConfig, split: str | None = None) -> Selection:
    """The rows of a slice.

    The slow truth: of all rows in order of uid, keep those of the split, those that meet the condition, those whose uid is below the
    fraction's share of 2¹²⁸, and of these the first `limit`; give their positions in ascending order.

    Args:
        view: rows of one version.
        part: which of them.
        split: only rows of this one; None: of all.

    Raises:
        ValueError: the condition cannot be evaluated.
    """
    check_where(part.where, view.schema)
    meets = _meets(view, part.where) if part.where is not None else None
    bound, limit = part.uid_bound, part.limit
    by_uid = bound < 2**UID_BITS or limit is not None
    counts = dict.fromkeys(("rows", "split", "where", "fraction"), 0)
    kept: list[NDArray[np.int64]] = []
    keys: list[NDArray[np.uint64]] = []  # [n, 2], of the rows in `kept`
    held, highest = 0, np.uint64(2**_HALF - 1)  # rows in `kept`; upper half of a uid above which none is among the smallest
    for batch in view.scan(columns=[*(["uid"] if by_uid else []), "split"], batch_size=1 << 16):
        start = counts["rows"]
        counts["rows"] += batch.num_rows
        rows = np.arange(start, counts["rows"])
        if split is not None:
            rows = rows[np.asarray(pa.compute.equal(batch.column("split"), split))]
        counts["split"] += len(rows)
        if meets is not None:
            rows = rows[meets[rows]]
        counts["where"] += len(rows)
        if by_uid:
            key = _keys(batch.column("uid"))[rows - start]
            inside = _below(key, bound)
            rows, key = rows[inside], key[inside]
        counts["fraction"] += len(rows)
        if limit is not None:
            low = key[:, 0] <= highest
            rows, key = rows[low], key[low]
            keys.append(key)
        kept.append(rows)
        held += len(rows)
        if limit is not None and held > limit + _PRUNE:
            rows, key = np.concatenate(kept), np.concatenate(keys)
            highest = np.partition(key[:, 0], limit - 1)[limit - 1]
            low = key[:, 0] <= highest
            kept, keys, held = [rows[low]], [key[low]], int(low.sum())
    indices = np.concatenate(kept) if kept else np.empty(0, np.int64)
    if limit is not None and keys:
        key = np.concatenate(keys)
        indices = np.sort(indices[np.lexsort((key[:, 1], key[:, 0]))[:limit]])
    taken = {"split": split is not None, "where": part.where is not None, "fraction": bound < 2**UID_BITS}
    said = {step: count for step, count in counts.items() if taken.get(step, True)}
    return Selection(indices, said if limit is None else {**said, "limit": len(indices)})


def _meets(view: View, where: str) -> NDArray[np.bool_]:
    """Of every row, in order of position, whether it meets the condition; what is unknown (null) does not."""
    # With a filter Lance tells addresses, not positions. Both ascend together: a version lists its fragments by their ids.
    try:
        found = _addresses(view, wrapped(where))
    except (ValueError, OSError) as error:  # it fails on a row: division by zero, a text that is no number
        raise _bad(where, _reason(error), view.schema) from None
    everything = _addresses(view)
    assert (everything[1:] > everything[:-1]).all()
    meets = np.zeros(len(everything), bool)
    meets[np.searchsorted(everything, found)] = True
    return meets


def _addresses(view: View, condition: str | None = None) -> NDArray[np.uint64]:
    parts = [
        batch.column("_rowaddr").to_numpy()
        for batch in view.scan(columns=[], condition=condition, with_row_address=True, batch_size=1 << 16)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _keys(uids: pa.StringArray) -> NDArray[np.uint64]:
    """uids as numbers, [n, 2]: the upper and the lower half."""
    texts = uids.cast(pa.binary()).cast(pa.binary(2 * _UID_BYTES))
    digits = texts.buffers()[1].slice(texts.offset * 2 * _UID_BYTES, len(texts) * 2 * _UID_BYTES)
    return np.frombuffer(binascii.unhexlify(digits), ">u8").astype(np.uint64).reshape(-1, 2)


def _below(keys: NDArray[np.uint64], bound: int) -> NDArray[np.bool_]:
    if bound >= 2**UID_BITS:
        return np.ones(len(keys), bool)
    high, low = np.uint64(bound >> _HALF), np.uint64(bound % 2**_HALF)
    return (keys[:, 0] < high) | ((keys[:, 0] == high) & (keys[:, 1] < low))


def _bad(where: str, reason: str, schema: pa.Schema) -> ValueError:
    return ValueError(
        f"the condition {where!r} cannot be used: {reason}{'' if reason.endswith('?') else '.'} "
        f"It is SQL over the columns {', '.join(schema.names)}, for example: width >= 256 and source = 'cc12m'"
    )


def _reason(error: Exception) -> str:
    """What Lance says, without the places in its source."""
    text = re.sub(r",\s*/\S+\.rs:\d+(:\d+)?", "", " ".join(str(error).split()))
    text = re.sub(r"Error (parsing|tokenizing) statement: SELECT 1 FROM t WHERE .*\((sql parser error: )?(?=Expected|Unterm)", "", text)
    text = re.sub(r"(Invalid user input|Schema error|External error|Query Execution error|LanceError\(\w+\)): ", "", text)
    return re.sub(r"\s*Valid fields are.*|\s*Hint:.*|\s*No function matches.*", "", text).rstrip(". ")
