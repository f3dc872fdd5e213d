"""`rejects.lance`: every refusal is a row with its reason, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from mtv_core.data.schema import REJECTS
from mtv_core.report import Reject
from mtv_core.store.dataset import append_rows, open_dataset, quoted

_IDENTITY = ("shard", "key", "stage", "revision")
_ROWS_PER_FILE = 1_000_000


class RejectLog:
    """The refusals of a table. Appending is idempotent on (shard, key, stage, revision), so a step that is run again adds nothing."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.storage_options = dict(storage_options or {})

    def append(self, rejects: Sequence[Reject]) -> int:
        """Add those that are not there; returns how many were added. One committer at a time a stage."""
        unique = {tuple(getattr(reject, name) for name in _IDENTITY): reject for reject in reversed(rejects)}
        if unique:
            stages = sorted({reject.stage for reject in rejects})
            shards = sorted({reject.shard for reject in rejects})
            condition = f"stage in ({quoted(stages)})"
            if len(shards) <= 1000:  # a longer list costs more to evaluate than it saves
                condition += f" and shard in ({quoted(shards)})"
            known = self._read(list(_IDENTITY), condition)
            for identity in zip(*(known[name].to_pylist() for name in _IDENTITY), strict=True):
                unique.pop(identity, None)
        if not unique:
            return 0
        rows = [unique[identity].model_dump(mode="json") for identity in sorted(unique)]
        append_rows(pa.Table.from_pylist(rows, schema=REJECTS), self.uri, _ROWS_PER_FILE, self.storage_options)
        return len(rows)

    def remove(self, shard_uris: Sequence[str], stage: str) -> None:
        """Take back the refusals of shards (key empty) that could not be read, now that they were."""
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is None or not shard_uris:
            return
        condition = f"stage = '{stage}' and key = '' and reject_class <> 'data' and location in ({quoted(shard_uris)})"
        if dataset.count_rows(condition):
            dataset.delete(condition)

    def read(self) -> pa.Table:
        """All of them."""
        return self._read(None, None)

    def counts(self, stage: str | None = None) -> dict[str, int]:
        """Reason → number, of one stage or of all, most frequent first."""
        rows = self._read(["error"], f"stage = '{stage}'" if stage else None)
        return dict(Counter(rows["error"].to_pylist()).most_common())

    def _read(self, columns: list[str] | None, condition: str | None) -> pa.Table:
        dataset = open_dataset(self.uri, storage_options=self.storage_options)
        if dataset is None:
            schema = REJECTS if columns is None else pa.schema([REJECTS.field(name) for name in columns])
            return schema.empty_table()
        return dataset.to_table(columns=columns, filter=condition)
