"""A view: the rows and labels of exactly one version. What training and galleries read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtv_core.store import slices
from mtv_core.store.dataset import open_dataset, scanner_options
from mtv_core.store.slice_config import SliceConfig

if TYPE_CHECKING:
    from lance import LanceDataset


class View:
    """Rows as of one version, for as long as the table lives if a tag names it.

    Pickles as (uri, version): another process opens its own handle. Never share one over a fork: Lance crashes or hangs there.
    """

    def __init__(self, uri: str, version: int, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self.version = version
        self.storage_options = dict(storage_options or {})
        self._opened: LanceDataset | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    @property
    def dataset(self) -> LanceDataset:
        """The Lance dataset, opened at first use. For the store's own modules."""
        if self._opened is None:
            self._opened = open_dataset(f"{self.uri}/samples.lance", self.version, self.storage_options)
            if self._opened is None:
                raise FileNotFoundError(
                    f"the table {self.uri} has no version {self.version} any more; run the pipeline again to make a new one"
                )
        return self._opened

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.count()

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self.dataset.schema

    def count(self, condition: str | None = None) -> int:
        """Number of rows, or of those that meet an SQL condition."""
        return int(self.dataset.count_rows(condition))

    def select(self, part: SliceConfig, split: str | None = None) -> slices.Selection:
        """The rows of a slice, with the number that each of its steps left. See `slices.select`."""
        return slices.select(self, part, split)

    def indices(self, part: SliceConfig, split: str | None = None) -> NDArray[np.int64]:
        """Positions of the rows of a slice, ascending, int64."""
        return self.select(part, split).indices

    def take(self, indices: Sequence[int] | pa.Array, columns: Sequence[str]) -> pa.Table:
        """Rows by position, in the order asked for. Fastest with some hundred sorted positions at once."""
        return self.dataset.take(indices if isinstance(indices, pa.Array) else list(indices), columns=list(columns))

    def scan(
        self,
        columns: Sequence[str] | None = None,
        condition: str | None = None,
        with_row_ids: bool = False,
        batch_size: int | None = None,
        with_row_address: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """All rows, or those that meet a condition, in order of position.

        `_rowid` is stable over labelling and compaction; `_rowaddr` says where in this version a row lies.
        """
        options = scanner_options(
            columns, filter=condition, with_row_id=with_row_ids, with_row_address=with_row_address, batch_size=batch_size
        )
        yield from self.dataset.scanner(**options).to_batches()
