"""Labels for people's own programs: rows of a table as PyArrow, pandas or torch.

    from mtv_core.reading import open_labels

    labels = open_labels("tables/mine", tag="mtv-3f0c66e2ab19")
    frame = labels.to_pandas()
    print(frame[["uid", "phrases", "scores"]], frame.depth[0].shape)

Without a tag it is the table as it stands when it is opened: what is written later is not seen. A label that a row does not have is None;
a detector that found nothing says so by an empty list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtv_core import settings
from mtv_core.data import depth as codec
from mtv_core.data.schema import LABELS, label_schema
from mtv_core.store import slices
from mtv_core.store.slice_config import SliceConfig
from mtv_core.store.table import Table
from mtv_core.store.view import View

if TYPE_CHECKING:
    import pandas as pd
    import torch

__all__ = ["LabelDataset", "Labels", "Sample", "decode_depth", "open_labels"]

_BASE = ("uid", "caption", "width", "height")
_TAKE = 1024  # rows of a slice that are fetched at once
_SCAN = 4096


def open_labels(
    table: str | Path,
    tag: str | None = None,
    *,
    version: int | None = None,
    columns: Sequence[str] | None = None,
    split: str | None = None,
    where: str | None = None,
    fraction: float = 1.0,
    limit: int | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Labels:
    """Rows and labels of exactly one version of a table.

    Args:
        table: folder or URI; as everywhere, a relative path lies in `MTV_HOME`, unless it is a table from here.
        tag: of these rows and labels; None: the table as it stands.
        version: instead of a tag.
        columns: which; None: uid, caption, width, height, and every label with its revision. `image` is read where it is named.
        split: 'train' or 'held_out'; None: both.
        where: SQL condition over the columns: "array_length(boxes) > 2 and depth is not null".
        fraction: share of the rows, by uid, as in `train.data`.
        limit: rows at most, those of the smallest uids.
        storage_options: of an object store.

    Raises:
        FileNotFoundError: there is no such table, tag or version.
        ValueError: there is no such column, the condition cannot be evaluated, or both a tag and a version were given.
    """
    if tag is not None and version is not None:
        raise ValueError("give a tag or a version, not both: a tag names a version")
    view = Table.at(_place(str(table)), tag, version, storage_options)
    part = SliceConfig(where=where, fraction=fraction, limit=limit)
    slices.check_where(part.where, view.schema)
    return Labels(view, _columns(view, columns), part, split)


def decode_depth(value: bytes | pa.Scalar | None) -> NDArray[np.float32] | None:
    """A stored depth label as inverse depth [H, W], float32, NaN where there is no value; None of none.

    Larger is nearer, and scale and shift are the picture's own: compare two maps only after aligning them.

    Raises:
        ValueError: these bytes are no depth label.
    """
    data = value.as_buffer() if isinstance(value, pa.BinaryScalar) else value
    return None if data is None else codec.decode(data)


class Labels:
    """Rows of one version, and some of their columns. Nothing is read before it is asked for. Made by `open_labels`."""

    def __init__(self, view: View, columns: Sequence[str], part: SliceConfig, split: str | None) -> None:
        self.view, self.columns, self.part, self.split = view, tuple(columns), part, split

    def __len__(self) -> int:
        """Number of rows."""
        return self.view.num_rows if self._all else len(self.indices())

    def __repr__(self) -> str:
        chosen = f"{self.part}{'' if self.split is None else f', split {self.split}'}"
        return f"Labels({self.view.uri!r}, version {self.view.version}, {chosen}; columns {', '.join(self.columns)})"

    @property
    def version(self) -> int:
        """Of the table: put it, or the tag, into your notes."""
        return self.view.version

    @property
    def revisions(self) -> dict[str, dict[str, int]]:
        """Expert → revision ('' for rows without labels) → rows, of the whole version."""
        return Table(self.view.uri, self.view.storage_options).label_counts(self.view.version)

    def indices(self) -> NDArray[np.int64]:
        """Positions of the rows, int64, ascending."""
        return self.view.indices(self.part, self.split)

    def batches(self, batch_size: int = _SCAN) -> Iterator[pa.RecordBatch]:
        """The rows piece by piece, in memory that does not grow with the table. `depth` is as stored: see `decode_depth`."""
        if self._all:
            yield from self.view.scan(self.columns, batch_size=batch_size)
            return
        indices = self.indices()
        for first in range(0, len(indices), min(batch_size, _TAKE)):
            yield from self.view.take(indices[first : first + min(batch_size, _TAKE)].tolist(), self.columns).to_batches()

    def to_arrow(self) -> pa.Table:
        """All of it. `depth` is as stored, in 12 bits, five times smaller than what `decode_depth` makes of it."""
        return pa.Table.from_batches(self.batches(), self._schema)

    def to_pandas(self) -> pd.DataFrame:
        """All of it, decoded: depth [H, W] float32, boxes [K, 4] float32 (xyxy, 0 … 1 of the image), phrases a list, scores [K]."""
        table = self.to_arrow()
        plain = table.select([name for name in self.columns if name not in _DECODED]).to_pandas()
        for name, decode in _DECODED.items():
            if name in self.columns:
                values = np.empty(table.num_rows, object)  # of arrays of any shape: pandas would try to stack them
                for row, value in enumerate(table[name]):
                    values[row] = decode(value)
                plain[name] = values
        return plain[list(self.columns)]

    def torch(self, transform: Callable[[Sample], Any] | None = None) -> LabelDataset:
        """A map-style `torch.utils.data.Dataset` of `Sample`s, or of what `transform` makes of one."""
        return LabelDataset(self.view, self.indices(), transform)

    @property
    def _all(self) -> bool:
        return self.part.whole and self.split is None

    @property
    def _schema(self) -> pa.Schema:
        return pa.schema([self.view.schema.field(name) for name in self.columns])


class Sample(NamedTuple):
    """One row, decoded. A label that the row does not have is None."""

    uid: str
    caption: str
    image: torch.Tensor
    """uint8 [3, H, W], RGB."""
    depth: torch.Tensor | None
    """float32 [h, w] inverse depth of the whole image, NaN where there is none; its longer side is `depth_size` at most."""
    boxes: torch.Tensor | None
    """float32 [K, 4], xyxy, 0 … 1 of the image."""
    phrases: list[str] | None
    """K phrases."""
    scores: torch.Tensor | None
    """float32 [K]."""


class LabelDataset:
    """Rows by number, for `torch.utils.data.DataLoader(data, batch_size=64, collate_fn=list)`; pictures differ in size.

    A batch is one read of the table. Worker processes need `multiprocessing_context="forkserver"` (or "spawn"): Lance does not survive a
    fork.
    """

    def __init__(self, view: View, indices: NDArray[np.int64], transform: Callable[[Sample], Any] | None = None) -> None:
        self.view, self.positions, self.transform = view, indices, transform
        self._process = os.getpid()
        names = set(view.schema.names)
        labels = [name for schema in LABELS.values() for name in schema.names if name in names]
        self._columns = ["uid", "image", "caption", "captions", *labels]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_process"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.positions)

    def __getitem__(self, number: int) -> Any:
        """One row. Slow for many: a `DataLoader` reads whole batches."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Rows in the order asked for; how a `DataLoader` asks for a batch.

        Raises:
            RuntimeError: in a process that was forked from one that used the table.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                'a forked process cannot read the table: give the DataLoader multiprocessing_context="forkserver", or num_workers=0'
            )
        # Sorted and each once: how Lance reads fast.
        wanted, places = np.unique(self.positions[np.asarray(numbers, np.int64)], return_inverse=True)
        rows = [_sample(row) for row in self.view.take(wanted.tolist(), self._columns).to_pylist()]
        return [rows[place] if self.transform is None else self.transform(rows[place]) for place in places]


def _sample(values: dict[str, Any]) -> Sample:
    import torch

    from mtv_core.store.loader import decode

    row = decode(values)
    return Sample(
        uid=row.uid,
        caption=values["caption"],
        image=row.image,
        depth=None if row.depth is None else torch.from_numpy(row.depth),
        boxes=None if row.boxes is None else torch.from_numpy(row.boxes),
        phrases=None if row.boxes is None else list(row.phrases),
        scores=None if row.scores is None else torch.from_numpy(row.scores),
    )


def _boxes(value: pa.Scalar) -> NDArray[np.float32] | None:
    return None if not value.is_valid else value.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)


def _phrases(value: pa.Scalar) -> list[str] | None:
    found: list[str] | None = value.as_py()
    return found


def _scores(value: pa.Scalar) -> NDArray[np.float32] | None:
    return None if not value.is_valid else value.values.to_numpy(zero_copy_only=False)


_DECODED: dict[str, Callable[[pa.Scalar], object]] = {"depth": decode_depth, "boxes": _boxes, "phrases": _phrases, "scores": _scores}


def _place(table: str) -> str:
    if settings.is_local(table) and (Path(table.removeprefix("file://")) / "samples.lance").is_dir():
        return str(Path(table.removeprefix("file://")).absolute())
    return settings.resolve(table)


def _columns(view: View, wanted: Sequence[str] | None) -> list[str]:
    there = view.schema.names
    if wanted is None:
        labels = [name for expert in LABELS for name in label_schema(expert).names]
        return [name for name in (*_BASE, *labels) if name in there]
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(f"the table has no column {missing[0]!r}; its columns are {', '.join(there)}")
    return list(dict.fromkeys(wanted))
