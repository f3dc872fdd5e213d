"""`rejects.lance`: every refusal is a row with its reason, once. They are counted, selected, exported, and retried.

Nothing here makes a Python object a row but `append`, whose rows are objects already: a table may have millions of refusals.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mtv_core.data.files import Files
from mtv_core.data.schema import REJECTS
from mtv_core.faults import fault_point
from mtv_core.report import Reject
from mtv_core.store.dataset import append_rows, explain, open_dataset, quoted

ExportFormat = Literal["jsonl", "csv", "parquet"]

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

    def condition(self) -> str | None:
        """As an SQL filter; None for all."""
        parts = [f"stage = {quoted([self.stage])}"] if self.stage is not None else []
        for column, values in (("error", self.reasons), ("reject_class", self.classes), ("shard", self.shards)):
            parts += [f"{column} in ({quoted(values)})"] if values else []
        if self.location:
            escaped = self.location.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
            parts.append(f"location like {quoted([escaped + '%'])}")
        parts += [f"attempt >= {self.attempt}"] if self.attempt is not None else []
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

    def append(self, rejects: Sequence[Reject], *, again: bool = False) -> int:
        """Add those that are not there; returns how many were added. One committer at a time a stage.

        Args:
            rejects: refusals.
            again: they come from a retry. Each takes the place of what was said of the same (shard, key, stage), with its attempt raised
                by one. A kill between the two commits leaves both rows; the same call again then removes the old one.
        """
        added = 0
        for stage in sorted({reject.stage for reject in rejects}):
            added += self._append(stage, {(r.shard, r.key, r.revision): r for r in reversed(rejects) if r.stage == stage}, again)
        return added

    def _append(self, stage: str, rejects: dict[tuple[str, str, str], Reject], again: bool) -> int:
        identities = pa.table({name: pa.array([one[i] for one in rejects], pa.string()) for i, name in enumerate(("shard", "key"))})
        known = self._matching(stage, identities, ["shard", "key", "revision", "attempt"])
        said = set(zip(*(known[name].to_pylist() for name in ("shard", "key", "revision", "attempt")), strict=True))
        said_once = {identity[:3] for identity in said}
        # While a retry is unfinished there are rows of two attempts: the lower is the one it repeats.
        before: dict[tuple[str, str], int] = {}
        for shard, key, _, attempt in said:
            before[shard, key] = min(attempt, before.get((shard, key), attempt))
        rows: list[dict[str, Any]] = []
        for (shard, key, revision), reject in sorted(rejects.items()):
            attempt = before.get((shard, key), 0) + 1 if again else reject.attempt
            if (shard, key, revision, attempt) not in said if again else (shard, key, revision) not in said_once:
                rows.append(reject.model_dump(mode="json") | {"attempt": attempt})
        if rows:
            append_rows(pa.Table.from_pylist(rows, schema=REJECTS), self.uri, _ROWS_PER_FILE, self.storage_options)
        if again:
            fault_point("rejects.raised")
            lowest = [before[pair] for pair in zip(known["shard"].to_pylist(), known["key"].to_pylist(), strict=True)]
            old = pc.less_equal(known["attempt"], pa.array(lowest, pa.int32()))
            self._delete(known.filter(old)["_rowid"])
        return len(rows)

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

    def export(
        self,
        target: str,
        selection: Selection = ALL,
        export_format: ExportFormat | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> int:
        """Write them to a file that appears when it is whole; returns how many.

        Args:
            target: a path, or a URI that fsspec knows. `.gz` at the end compresses JSON lines and CSV.
            selection: which.
            export_format: default: by the ending of `target`.
            storage_options: of the target; default: the table's.

        Raises:
            ValueError: the format cannot be told from the ending.
        """
        zipped = target.endswith(".gz")
        ending = target.removesuffix(".gz").rsplit(".", 1)[-1].lower()
        kind = export_format or ("jsonl" if ending == "ndjson" else ending)
        if kind not in get_args(ExportFormat):
            raise ValueError(f"cannot tell the format of {target!r}: name it .jsonl, .csv or .parquet")
        folder, _, name = target.rpartition("/")
        files = Files(
            folder or ("/" if target.startswith("/") else "."), self.storage_options if storage_options is None else storage_options
        )
        rows = 0
        try:
            with contextlib.ExitStack() as stack:
                sink: Any = stack.enter_context(files.create(name))
                if zipped and kind != "parquet":
                    sink = stack.enter_context(gzip.GzipFile(fileobj=sink, mode="wb", mtime=0))
                writer = stack.enter_context(_WRITERS[kind](sink))
                for batch in self.select(selection):
                    writer.write_batch(batch)
                    rows += batch.num_rows
        except OSError as error:
            raise explain(error, target) from error
        return rows

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


def _joined(rows: pa.Table) -> pa.Array:
    """Shard and key as one string, which is the fastest thing to look up."""
    joined = pc.binary_join_element_wise(rows["shard"], rows["key"], "\0")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


class _JsonLines:
    """Batches as lines of JSON."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Write one line a row."""
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist()).encode())


_WRITERS: dict[str, Callable[[Any], Any]] = {
    "jsonl": _JsonLines,
    "csv": lambda file: pyarrow.csv.CSVWriter(file, REJECTS),
    "parquet": lambda file: pq.ParquetWriter(file, REJECTS),
}
