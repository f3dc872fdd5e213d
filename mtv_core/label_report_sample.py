"""What a report has to read labels for: measured on a sample of rows, those of smallest uid, some at a time."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from mtv_core.data.depth import decode
from mtv_core.data.schema import LABELS
from mtv_core.experts import phrase_column, phrases
from mtv_core.experts.config import DetectionExpertConfig
from mtv_core.experts.phrase_column import BadPhrases
from mtv_core.label_checks import Checker
from mtv_core.label_report_change import change
from mtv_core.label_report_facts import Change, PhraseFacts
from mtv_core.store.view import View

BINS = 24  # of sizes and depth ranges, 0 … 1
MOST = 40  # phrases that are named
CHANGED = 0.01  # from which a label is another one: below it is rounding
_CHUNK = 200  # rows whose labels are in memory at once

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What the detector was asked for in each picture, as it was configured."""

    columns: tuple[str, ...]  # that it follows from
    of: Callable[[pa.RecordBatch], Sequence[Sequence[str]]]


def asked_by(config: DetectionExpertConfig) -> Asked:
    """As the expert itself finds it out: a vocabulary, a column, or the caption."""
    if config.vocabulary is not None:
        vocabulary = config.vocabulary
        return Asked((), lambda rows: [vocabulary] * rows.num_rows)
    limit = config.max_phrases
    if (column := config.phrases_column) is not None:
        return Asked((phrase_column.column_of(column)[0],), lambda rows: _read(rows, column, limit))
    return Asked(("caption",), lambda rows: [phrases.extract(caption, limit) for caption in rows["caption"].to_pylist()])


def _read(rows: pa.RecordBatch, column: str, limit: int) -> list[list[str]]:
    """What the user's column asks for; a row that names no phrases was not looked at."""
    return [[] if isinstance(row, BadPhrases) else row[:limit] for row in phrase_column.read(rows, column)]


def label_columns(experts: Sequence[str]) -> list[str]:
    """The columns that experts write, with their revisions."""
    return [column for name in experts for column in (*LABELS[name].names, f"{name}_rev")]


class Sample:
    """Checks, phrases and shapes of the sample's labels.

    Args:
        asked: what the detector was asked for; None: nobody knows, or there is no detector.
    """

    def __init__(self, asked: Asked | None = None) -> None:
        self.asked = asked
        self.checker = Checker()
        self.boxes_of: Counter[str] = Counter()
        self.found_in: Counter[str] = Counter()
        self.score_of: defaultdict[str, float] = defaultdict(float)
        self.areas = np.zeros(BINS, np.int64)
        self.relief = np.zeros(BINS, np.int64)
        self.present: Counter[str] = Counter()  # expert → rows with a label

    def read(self, view: View, positions: Sequence[int], experts: Sequence[str]) -> None:
        """Look at the rows at these positions."""
        extra = self.asked.columns if self.asked is not None else ()
        columns = list(dict.fromkeys(["uid", *label_columns(experts), *extra]))
        for first in range(0, len(positions), _CHUNK):
            rows = view.take(positions[first : first + _CHUNK], columns).combine_chunks()
            for batch in rows.to_batches():
                asked = self.asked.of(batch) if self.asked is not None else [None] * batch.num_rows
                for row, phrases_of in zip(batch.to_pylist(), asked, strict=True):
                    self.add(row, phrases_of)

    def add(self, row: Row, asked: Sequence[str] | None = None) -> None:
        """Look at one row, for which the detector was asked for some phrases."""
        self.checker.add(row, asked)
        if row.get("depth") is not None:
            self.present["depth"] += 1
            self.relief[_bins([relief(decode(row["depth"]))])] += 1
        if row.get("boxes") is None:
            return
        self.present["detection"] += 1
        boxes = np.asarray(row["boxes"], np.float32).reshape(-1, 4)
        sides = np.sqrt(np.clip((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 0, 1))
        self.areas += np.bincount(_bins(sides), minlength=BINS)
        self.found_in.update(set(row["phrases"]))
        for phrase, score in zip(row["phrases"], row["scores"], strict=True):
            self.boxes_of[phrase] += 1
            self.score_of[phrase] += score

    def most_found(self) -> list[PhraseFacts]:
        """The phrases with the most boxes."""
        return [self._facts(phrase) for phrase in sorted(self.boxes_of, key=lambda phrase: (-self.boxes_of[phrase], phrase))[:MOST]]

    def never_found(self) -> list[PhraseFacts]:
        """The phrases that were looked for most and have no box at all."""
        asked = self.checker.times_asked
        never = sorted((phrase for phrase in asked if not self.boxes_of[phrase]), key=lambda phrase: (-asked[phrase], phrase))
        return [self._facts(phrase) for phrase in never[:MOST]]

    def _facts(self, phrase: str) -> PhraseFacts:
        boxes = self.boxes_of[phrase]
        return PhraseFacts(
            phrase=phrase,
            boxes=boxes,
            score=round(self.score_of[phrase] / boxes, 4) if boxes else None,
            asked=self.checker.times_asked[phrase] if self.asked is not None else None,
            found=self.found_in[phrase],
        )


def relief(depth: NDArray[np.floating]) -> float:
    """How far near and far are apart in a map of inverse depth [H, W]: its middle 90 % as a share of its largest value."""
    known = depth[np.isfinite(depth)]
    if not known.size:
        return 0.0
    low, high = np.percentile(known, (5, 95))
    return float((high - low) / max(abs(float(known.max())), abs(float(known.min())), 1e-9))


def _bins(values: ArrayLike) -> NDArray[np.int64]:
    return np.clip((np.asarray(values, np.float64) * BINS).astype(np.int64), 0, BINS - 1)


# What changed


@dataclass
class Changes:
    """How much one expert's labels of the sample changed since a version before, and the rows where they did most."""

    expert: str
    amounts: list[float] = field(default_factory=list)
    largest: list[tuple[float, str, Row]] = field(default_factory=list)  # a heap of (amount, uid, row as it was before)

    def add(self, uid: str, old: Row, new: Row, shown: int) -> None:
        """A row, if its label was written anew: one of the same revision is the same."""
        if old[f"{self.expert}_rev"] == new[f"{self.expert}_rev"]:
            return
        amount = change(self.expert, old, new)
        if math.isnan(amount):
            return
        self.amounts.append(amount)
        if amount >= CHANGED and shown:
            # Of equal amounts the smaller uid stays: as a number, negative, it is the larger.
            entry = (amount, _reversed(uid), old)
            if len(self.largest) < shown:
                heapq.heappush(self.largest, entry)
            elif entry[:2] > self.largest[0][:2]:
                heapq.heapreplace(self.largest, entry)

    def ranked(self) -> list[tuple[float, Row]]:
        """(amount, row as it was before), the largest change first."""
        return [(amount, old) for amount, _, old in sorted(self.largest, key=lambda entry: entry[:2], reverse=True)]

    def result(self) -> Change:
        """The numbers."""
        amounts = np.asarray(self.amounts)
        return Change(
            rows=len(amounts),
            changed=int((amounts >= CHANGED).sum()),
            mean=round(float(amounts.mean()), 4),
            highest=round(float(np.percentile(amounts, 95)), 4),
            amounts=np.bincount(_bins(amounts), minlength=BINS).tolist(),
        )


def _reversed(uid: str) -> str:
    """A string that orders the other way round: uids are hex digits."""
    return uid.translate(_REVERSE)


_REVERSE = str.maketrans("0123456789abcdef", "fedcba9876543210")


def changes(
    view: View, previous: View, uids: Sequence[str], positions: Sequence[int], experts: Sequence[str], shown: int
) -> dict[str, Changes]:
    """Compare the labels of the sample with those of an earlier version; experts that wrote nothing anew are left out.

    A uid is a hash, and the sample is all rows up to one: their old labels are found by comparing uids alone, wherever they lay then.

    Args:
        view: the version that is looked at.
        previous: the one before.
        uids: of the sample, ascending.
        positions: of its rows in `view`.
        experts: whose labels.
        shown: rows to keep.
    """
    experts = [name for name in experts if f"{name}_rev" in previous.schema.names]
    place = dict(zip(uids, positions, strict=True))
    found = {name: Changes(name) for name in experts}
    columns = ["uid", *label_columns(experts)]
    for old in _chunks(previous, columns, uids[-1]) if uids and experts else ():
        old = [row for row in old if row["uid"] in place]  # others are gone by now
        if old:
            new = view.take([place[row["uid"]] for row in old], columns).to_pylist()
            for before, now in zip(old, new, strict=True):
                for one in found.values():
                    one.add(now["uid"], before, now, shown)
    return {name: one for name, one in found.items() if one.amounts}


def _chunks(view: View, columns: Sequence[str], last_uid: str) -> Iterator[list[dict[str, Any]]]:
    for batch in view.scan(columns, condition=f"uid <= '{last_uid}'", batch_size=_CHUNK):
        if batch.num_rows:
            yield batch.to_pylist()
