"""Rows to look at: which, why, and their pictures and labels, read one group at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mtv_core.data.schema import LABELS
from mtv_core.label_report_sample import label_columns
from mtv_core.store.view import View

CHANGE = "largest-change"
TITLES = {
    "random": ("Chosen by chance", "the rows of smallest uid, which is a hash: always the same ones, so two reports can be compared"),
    "lowest-score": ("Lowest score", "rows with boxes of which not even the best one is sure"),
    "most-boxes": ("Most boxes", "crowds, or one thing found many times"),
    "none": ("No box found", "rows that the detector looked at and left empty, chosen by chance"),
    f"{CHANGE}-depth": (
        "Largest change of depth",
        "rows of the sample whose depth changed most since the version before, apart from scale and shift, which are each map's own",
    ),
    f"{CHANGE}-detection": (
        "Largest change of boxes",
        "rows of the sample whose boxes changed most since the version before: other places, other phrases, more of them or fewer",
    ),
}
_BATCH = 1 << 16
_NAMED = 4  # rows that a message names


@dataclass(frozen=True)
class Row:
    """A row with its picture and labels."""

    values: Mapping[str, Any]  # uid, image, caption, width, height, and labels with revisions
    before: Mapping[str, Any] | None = None  # labels that it had then
    note: str = ""  # why it is shown


@dataclass(frozen=True)
class Shown:
    """A group of rows to look at. Holds no picture: `rows` reads them."""

    name: str  # kebab-case; names files
    title: str
    meaning: str
    view: View
    experts: tuple[str, ...]  # whose labels are shown
    positions: Sequence[int]
    notes: Sequence[str] = ()
    before: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def rows(self, count: int | None = None) -> list[Row]:
        """The first rows, in their order."""
        positions = list(self.positions[:count])
        if not positions:
            return []
        found = self.view.take(positions, columns(self.view, self.experts)).to_pylist()
        return [Row(values, self.before[i] if self.before else None, self.notes[i] if self.notes else "") for i, values in enumerate(found)]


def columns(view: View, experts: Sequence[str]) -> list[str]:
    """What is read of a row that is shown."""
    return ["uid", "image", "caption", "width", "height", *label_columns(experts)]


def experts_of(view: View, wanted: Sequence[str] | None = None) -> list[str]:
    """Experts that a version has columns for; of those that are wanted."""
    return [name for name in LABELS if f"{name}_rev" in view.schema.names and (wanted is None or name in wanted)]


def find(view: View, names: Sequence[str]) -> list[int]:
    """Positions of rows by uid, or by the beginning of one, in the order asked for.

    Raises:
        ValueError: no row begins so, or several do, or it cannot be the beginning of a uid.
    """
    wanted = [name.strip().lower() for name in names]
    for name in wanted:
        if not name or len(name) > 32 or set(name) - set("0123456789abcdef"):
            raise ValueError(f"{name!r} is no uid: 32 hex digits, or the first few of them")
    found: dict[str, dict[str, int]] = {name: {} for name in wanted}
    first = 0
    for batch in view.scan(["uid"], batch_size=_BATCH):  # the uids of all rows: a filter would tell addresses, not positions
        for name, rows in found.items():
            matches = np.flatnonzero(pc.starts_with(batch["uid"], name).to_numpy(zero_copy_only=False))[: _NAMED - len(rows)]
            rows |= {batch["uid"][int(i)].as_py(): first + int(i) for i in matches}
        first += batch.num_rows
    for name, rows in found.items():
        if not rows:
            raise ValueError(f"version {view.version} of the table has no row {name}; `mtv show` and `mtv data show` name some that it has")
        if len(rows) > 1:
            raise ValueError(
                f"{name} may be any of {', '.join(sorted(rows)[: _NAMED - 1])}{', …' if len(rows) == _NAMED else ''}: say more of it"
            )
    return list(dict.fromkeys(position for rows in found.values() for position in rows.values()))
