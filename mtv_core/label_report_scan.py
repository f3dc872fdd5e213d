"""One pass over the small columns of a table: how many boxes with which scores, and which rows are worth looking at.

Only uids, scores and revisions are read, batch by batch: no picture, no depth map, no box. What is kept does not grow with the table, so
it is the same work a row for a thousand rows and for a hundred million. The slow truth, for `most-boxes`:

    sorted(rows, key=lambda row: (-len(row["scores"] or ()), row["uid"]))[:SHOWN]
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtv_core.store.view import View

SHOWN = 24  # rows of a slice
SAMPLE = 2000  # rows of which labels are read: a share of 10 % is known to ± 1.3 points
SCORE_BINS = 40  # of 0 … 1
MOST_BOXES = 24  # numbers of boxes that are told apart; more are counted as this many
SLICES = ("random", "lowest-score", "most-boxes", "none")

_BATCH = 1 << 16
_Order = list[tuple[str, str]]
# Which rows come first. A uid is a hash: the smallest are rows chosen by chance, and always the same ones.
_ORDERS: dict[str, _Order] = {
    "sample": [("uid", "ascending")],
    "lowest-score": [("best", "ascending"), ("uid", "ascending")],
    "most-boxes": [("boxes", "descending"), ("uid", "ascending")],
    "none": [("uid", "ascending")],
}


@dataclass
class Overview:
    """What one pass over a version found."""

    rows: int = 0
    missing: int = 0  # rows without a detection label: not labelled yet, or refused by the expert
    without: int = 0  # of these, rows that have the revision that was asked about: refused for good
    scores: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_BINS, np.int64))  # boxes by score
    boxes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(MOST_BOXES + 1, np.int64))  # rows by their number of boxes
    num_boxes: int = 0
    score_sum: float = 0.0
    slices: dict[str, list[int]] = field(default_factory=dict)  # slice → positions of its rows, the first one first
    sample: list[int] = field(default_factory=list)  # positions of the rows of smallest uid, in order of uid
    uids: list[str] = field(default_factory=list)  # of them

    @property
    def last_uid(self) -> str:
        """The largest uid of the sample: its rows are those up to it."""
        return self.uids[-1] if self.uids else ""

    @property
    def with_boxes(self) -> int:
        """Rows with a box at least."""
        return int(self.boxes[1:].sum())

    @property
    def mean_score(self) -> float | None:
        """Of all boxes; None without any."""
        return self.score_sum / self.num_boxes if self.num_boxes else None


def scan(view: View, shown: int = SHOWN, sample: int = SAMPLE, revision: str | None = None) -> Overview:
    """Count the boxes of a version, and choose the rows of its slices.

    Args:
        view: the version.
        shown: rows a slice.
        sample: rows of the sample.
        revision: of the detector; rows that have it and no label are counted.
    """
    found = Overview()
    detected = "scores" in view.schema.names
    columns = ["uid", *(["scores"] if detected else []), *(["detection_rev"] if detected and revision is not None else [])]
    kept: dict[str, pa.Table] = {}
    for batch in view.scan(columns, batch_size=_BATCH):
        facts = _facts(batch, found.rows)
        groups = {"sample": facts}
        if detected:
            _count(batch["scores"], found)
            if revision is not None:
                empty = batch["detection_rev"].filter(pc.is_null(batch["scores"]))
                found.without += pc.sum(pc.equal(empty, revision)).as_py() or 0
            groups |= {
                "lowest-score": facts.filter(pc.greater(facts["boxes"], 0)),
                "most-boxes": facts.filter(pc.greater(facts["boxes"], 0)),
                "none": facts.filter(pc.equal(facts["boxes"], 0)),
            }
        for name, rows in groups.items():
            kept[name] = _first(name, kept.get(name), rows, sample if name == "sample" else shown)
        found.rows += batch.num_rows
    if "sample" in kept:
        chosen = kept.pop("sample")
        found.sample = chosen["position"].to_pylist()
        found.uids = chosen["uid"].to_pylist()
        found.slices["random"] = found.sample[:shown]
    found.slices |= {name: rows["position"].to_pylist() for name, rows in kept.items() if rows.num_rows}
    return found


def _facts(batch: pa.RecordBatch, first: int) -> pa.Table:
    """uid, position, number of boxes (null: no label) and best score (NaN: no box) of every row."""
    position = pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))
    columns = {"uid": batch["uid"], "position": position}
    if "scores" in batch.schema.names:
        scores = batch["scores"]
        lengths = pc.list_value_length(scores)
        numbers = lengths.fill_null(0).to_numpy(zero_copy_only=False)
        best = np.full(batch.num_rows, np.nan, np.float32)
        if numbers.any():
            # Rows without a box take no room in `flatten`, so the others begin one after the other.
            starts = np.cumsum(numbers) - numbers
            best[numbers > 0] = np.maximum.reduceat(scores.flatten().to_numpy(zero_copy_only=False), starts[numbers > 0])
        columns |= {"boxes": lengths, "best": pa.array(best)}
    return pa.table(columns)


def _first(name: str, kept: pa.Table | None, rows: pa.Table, count: int) -> pa.Table:
    """The first `count` rows in the order of a group, of those that are kept and new ones."""
    order = _ORDERS[name]
    if kept is not None:
        if kept.num_rows == count:
            if not count:
                return kept
            # Nearly all rows of a large table end here: sorting is for those that may come before the last one that is kept.
            column, direction = order[0]
            better = pc.less_equal if direction == "ascending" else pc.greater_equal
            rows = rows.filter(better(rows[column], kept[column][-1]))
        rows = pa.concat_tables([kept, rows])
    return rows.take(pc.select_k_unstable(rows, min(count, rows.num_rows), sort_keys=order)) if rows.num_rows else rows


def _count(scores: pa.ListArray, found: Overview) -> None:
    found.missing += scores.null_count
    lengths = pc.list_value_length(scores).drop_null().to_numpy(zero_copy_only=False)
    found.boxes += np.bincount(np.minimum(lengths, MOST_BOXES), minlength=MOST_BOXES + 1)
    values = scores.flatten().to_numpy(zero_copy_only=False)
    found.scores += np.bincount(np.clip((values * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1), minlength=SCORE_BINS)
    found.num_boxes += len(values)
    found.score_sum += float(values.sum(dtype=np.float64))
