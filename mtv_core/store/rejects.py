"""`rejects.lance`: every refusal is a row with its reason, once. They are counted, selected, exported, and retried.

A table may have millions of refusals, so nothing here makes a Python object of each but what is given or asked for as such.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtv_core.data.schema import REJECTS
from mtv_core.faults import fault_point
from mtv_core.reasons import SETTLED
from mtv_core.report import Reject
from mtv_core.store.dataset import append_rows, explain, open_dataset, quoted

_ROWS_PER_FILE = 1_000_000
_LONGEST_LIST = 1000  # of literals in a filter; a longer one costs more to evaluate than it saves
_DELETE_ROWS = 100_000  # in one commit, 0.3 s


@dataclass(frozen=True)
class Selection:
    """Which refusals; what is empty does not narrow them."""

    stage: str | None = None
    reasons: Sequence[str] = ()  # Reject.error
    classes: Sequence[str] = ()  # transient, data, bug
    shards: Sequence[str] = ()  # ids
    location: str | None = None  # how the location begins; * stands for anything
    attempt: int | None = None  # at least so many times refused
    samples: bool | None = None  # True: only of samples, False: only of shards

    def condition(self) -> str | None:
        """As an SQL filter; None for all."""
        parts = [f"stage = {quoted([self.stage])}"] if self.stage is not None else []
        for column, values in (("error", self.reasons), ("reject_class", self.classes), ("shard", self.shards)):
            parts += [f"{column} in ({quoted(values)})"] if values else []
        if self.location:
            escaped = self.location.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
            parts.append(f"location like {quoted([escaped + '%'])}")
        parts += [f"attempt >= {self.attempt}"] if self.attempt is not None else []
        parts += [f"key {'<>' if self.samples else '='} ''"] if self.samples is not None else []
        return " and ".join(parts) or None


ALL = Selection()


@dataclass(frozen=True)
class RejectGroup:
    """The refusals of one stage for one reason."""

    stage: str
    error: str
    reject_class: str
    rows: int
    examples: list[dict[str, Any]] = field(default_factory=list)  # some of them, with all columns


class RejectLog:
    """The refusals of a table. Appending is idempotent on (shard, key, stage, revision), so a step that is run again adds nothing."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options or {})

    def exists(self) -> bool:
        """Whether anything was ever refused."""
        return open_dataset(self.uri, storage_options=self.storage_options) is not None

    def append(self, rejects: Sequence[Reject]) -> int:
        """Add those that are not there; returns how many were added. One committer at a time a stage."""
        return self.append_table(pa.Table.from_pylist([reject.model_dump(mode="json") for reject in rejects], schema=REJECTS))

    def append_table(self, rejects: pa.Table) -> int:
        """`append` for rows of the schema REJECTS, of which one of each (shard, key, stage, revision) is added."""
        added = 0
        for stage in pc.unique(rejects["stage"]).to_pylist():
            rows = _first_of_each(rejects.filter(pc.equal(rejects["stage"], stage)), ["shard", "key", "revision"])
            known = self._matching(stage, rows, ["shard", "key", "revision"])
            added += self._write(_without(rows, known, ["shard", "key", "revision"]))
        return added

    def replace(self, tried: Mapping[str, Collection[str]], stage: str, rejects: pa.Table) -> int:
        """What a retry came to: samples that are refused again have their attempt raised, the others are rows now and refused no more.

        A kill between the two commits of this leaves old and new refusals side by side; the same call again then removes the old ones.

        Args:
            tried: shard id → keys that were tried again.
            stage: whose refusals.
            rejects: refusals of the retry, of the schema REJECTS. Of samples and shards that were not tried, those that are news are added.

        Returns:
            how many are refused again.
        """
        pairs = [(shard, key) for shard, keys in tried.items() for key in keys]
        wanted = pa.table({name: pa.array([pair[i] for pair in pairs], pa.string()) for i, name in enumerate(("shard", "key"))})
        rejects = _first_of_each(rejects, ["shard", "key"])
        again = pc.is_in(_joined(rejects), value_set=_joined(wanted))
        others, rejects = rejects.filter(pc.invert(again)), rejects.filter(again)
        known = self._matching(stage, wanted, ["shard", "key", "revision", "attempt"])
        # While a retry is unfinished there are rows of two attempts: the lower is the one it repeats.
        lowest = known.group_by(["shard", "key"], use_threads=False).aggregate([("attempt", "min")])
        before = lowest["attempt_min"].take(pc.index_in(_joined(rejects), value_set=_joined(lowest)))
        attempt = pc.add(pc.fill_null(before, 0), 1).cast(pa.int32())
        rows = rejects.set_column(rejects.schema.get_field_index("attempt"), REJECTS.field("attempt"), attempt)
        self._write(_without(rows, known, ["shard", "key", "revision", "attempt"]))
        self._write(_without(others, self._matching(stage, others, ["shard", "key"]), ["shard", "key"]))
        fault_point("rejects.replaced")
        now = attempt.take(pc.index_in(_joined(known), value_set=_joined(rejects)))  # null: refused no more
        self._delete(known.filter(pc.fill_null(pc.less(known["attempt"], now), True))["_rowid"])
        return rejects.num_rows

    def samples_to_retry(
        self, stage: str, reasons: Collection[str] | None = None, keys: Collection[str] | None = None
    ) -> dict[str, frozenset[str]]:
        """Shard id → keys of refused samples that are worth trying again.

        Args:
            stage: whose refusals.
            reasons: names of errors; None: all but those that trying again does not change, such as duplicates.
            keys: of samples; None: all.
        """
        if reasons is not None and not reasons:
            return {}
        found: dict[str, list[str]] = {}
        for batch in self.select(Selection(stage=stage, reasons=sorted(reasons or ())), ["shard", "key", "error"]):
            kept = pc.not_equal(batch["key"], "")
            if reasons is None:
                kept = pc.and_(kept, pc.invert(pc.is_in(batch["error"], value_set=pa.array(sorted(SETTLED)))))
            if keys is not None:
                kept = pc.and_(kept, pc.is_in(batch["key"], value_set=pa.array(sorted(keys), pa.string())))
            rows = batch.filter(kept)
            for shard, key in zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True):
                found.setdefault(shard, []).append(key)
        return {shard: frozenset(names) for shard, names in found.items()}

    def _write(self, rows: pa.Table) -> int:
        if rows.num_rows:
            rows = rows.select(REJECTS.names).cast(REJECTS).sort_by([(name, "ascending") for name in ("shard", "key", "stage", "revision")])
            append_rows(rows, self.uri, _ROWS_PER_FILE, self.storage_options)
        return int(rows.num_rows)

    def resolve(self, keys: pa.Table | Iterable[tuple[str, str]], stage: str) -> int:
        """Take back what was refused and is a row now; returns how many refusals that were.

        Args:
            keys: (shard id, key) of samples, as a table with the columns `shard` and `key` or one by one.
            stage: whose refusals.
        """
        if not isinstance(keys, pa.Table):
            pairs = list(keys)
            keys = pa.table({name: pa.array([pair[i] for pair in pairs], pa.string()) for i, name in enumerate(("shard", "key"))})
        return self._delete(self._matching(stage, keys, ["shard", "key"])["_rowid"])

    def remove(self, shard_uris: Sequence[str], stage: str) -> None:
        """Take back the refusals of shards (key empty) that could not be read, now that they were."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is None or not shard_uris:
            return
        condition = f"stage = {quoted([stage])} and key = '' and reject_class <> 'data'"
        if len(shard_uris) <= _LONGEST_LIST:
            condition += f" and location in ({quoted(shard_uris)})"
        rows = dataset.to_table(columns=["location"], filter=condition, with_row_id=True)
        self._delete(rows.filter(pc.is_in(rows["location"], value_set=pa.array(shard_uris, pa.string())))["_rowid"])

    def forget_shards(self, shards: Sequence[str], stage: str) -> None:
        """Take back all refusals of shards, by their ids: another content has taken their place."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is None or not shards:
            return
        selection = Selection(stage=stage, shards=shards if len(shards) <= _LONGEST_LIST else ())
        rows = dataset.to_table(columns=["shard"], filter=selection.condition(), with_row_id=True)
        self._delete(rows.filter(pc.is_in(rows["shard"], value_set=pa.array(shards, pa.string())))["_rowid"])

    def read(self) -> pa.Table:
        """All of them."""
        batches = list(self.select())
        return pa.Table.from_batches(batches, REJECTS) if batches else REJECTS.empty_table()

    def select(self, selection: Selection = ALL, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Those that are asked for, batch by batch, in the order they were written."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is not None:
            yield from dataset.scanner(columns=list(columns or REJECTS.names), filter=selection.condition()).to_batches()

    def count(self, selection: Selection = ALL) -> int:
        """How many there are."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        return 0 if dataset is None else int(dataset.count_rows(selection.condition()))

    def counts(self, stage: str | None = None) -> dict[str, int]:
        """Reason → number, of one stage or of all, most frequent first."""
        found: dict[str, int] = {}
        for group in self.groups(Selection(stage=stage), examples=0):
            found[group.error] = found.get(group.error, 0) + group.rows
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

    def groups(self, selection: Selection = ALL, examples: int = 1) -> list[RejectGroup]:
        """By stage and reason, the largest first within a stage. Examples are the first ones written."""
        counts: dict[tuple[str, str, str], int] = {}
        for batch in self.select(selection, ["stage", "error", "reject_class"]):
            rows = pa.Table.from_batches([batch]).group_by(batch.schema.names, use_threads=False).aggregate([([], "count_all")])
            for *group, number in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                counts[cast(tuple[str, str, str], tuple(group))] = counts.get(cast(tuple[str, str, str], tuple(group)), 0) + number
        return [
            RejectGroup(stage, error, kind, number, self._examples(selection, stage, error, kind, examples))
            for (stage, error, kind), number in sorted(counts.items(), key=lambda pair: (pair[0][0], -pair[1], pair[0]))
        ]

    def _examples(self, selection: Selection, stage: str, error: str, kind: str, number: int) -> list[dict[str, Any]]:
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is None or not number:
            return []
        condition = f"stage = {quoted([stage])} and error = {quoted([error])} and reject_class = {quoted([kind])}"
        if narrower := selection.condition():
            condition += f" and {narrower}"
        found: list[dict[str, Any]] = dataset.to_table(columns=REJECTS.names, filter=condition, limit=number).to_pylist()
        return found

    def _matching(self, stage: str, identities: pa.Table, columns: list[str]) -> pa.Table:
        """Refusals of a stage of the given (shard, key), with their `_rowid`."""
        schema = pa.schema([*(REJECTS.field(name) for name in columns), pa.field("_rowid", pa.uint64())])
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is None or not identities.num_rows:
            return schema.empty_table()
        shards = pc.unique(identities["shard"]).to_pylist()
        selection = Selection(stage=stage, shards=shards if len(shards) <= _LONGEST_LIST else ())
        wanted = _joined(identities)
        found = [schema.empty_table()]
        for batch in dataset.scanner(columns=columns, filter=selection.condition(), with_row_id=True).to_batches():
            rows = pa.Table.from_batches([batch]).select(schema.names)
            found.append(rows.filter(pc.is_in(_joined(rows), value_set=wanted)).cast(schema))
        return pa.concat_tables(found)

    def _delete(self, row_ids: pa.ChunkedArray) -> int:
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        ids = np.sort(row_ids.to_numpy())
        for first in range(0, len(ids), _DELETE_ROWS):
            assert dataset is not None
            listed = ",".join(map(str, ids[first : first + _DELETE_ROWS].tolist()))
            try:
                dataset.delete(f"_rowid in ({listed})")
            except OSError as error:
                raise explain(error, self.uri) from error
        return len(ids)


def _joined(rows: pa.Table, names: Sequence[str] = ("shard", "key")) -> pa.Array:
    """Some columns as one string, which is the fastest thing to look up."""
    joined = pc.binary_join_element_wise(*(rows[name].cast(pa.string()) for name in names), "\0")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _first_of_each(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """The first row of each different value of some columns."""
    _, first = np.unique(_joined(rows, names).dictionary_encode().indices.to_numpy(), return_index=True)
    return rows.take(pa.array(np.sort(first)))


def _without(rows: pa.Table, known: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows that are not known, by the values of some columns."""
    return rows.filter(pc.invert(pc.is_in(_joined(rows, names), value_set=_joined(known, names))))
