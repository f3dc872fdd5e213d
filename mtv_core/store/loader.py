"""A tag → rows in training order, decoded. The only state of a training's input is how many samples it has seen.

Global batch b is samples b·G … (b+1)·G − 1 of the order, whatever the number of ranks; rank r has the r-th of its equal parts. An epoch's
tail goes into the next epoch's first batch, so no row is left out and no batch is short.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch
import torchvision  # noqa: F401 - registers torch.ops.image
from numpy.typing import NDArray
from PIL import Image

from mtv_core.data import depth as depth_codec
from mtv_core.store.loader_config import LoaderConfig
from mtv_core.store.order import Order
from mtv_core.store.slice_config import SliceConfig
from mtv_core.store.slices import Selection

Made = TypeVar("Made")
_COLUMNS = ("uid", "image", "captions")
_LABELS: dict[str, tuple[str, ...]] = {"depth": ("depth",), "detection": ("boxes", "phrases", "scores")}


class Rows(Protocol):
    """What of a `store.table.View` the loader uses: rows of one version, counted from 0 in the order of a scan."""

    def select(self, part: SliceConfig, split: str | None = None) -> Selection:
        """The rows of a slice."""
        ...

    def take(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows of some indices, in the order of the indices."""
        ...


@dataclass(frozen=True)
class Row:
    """One sample, decoded. A label that the row does not have is None; "no box found" is an empty array."""

    uid: str
    epoch: int
    image: torch.Tensor
    """uint8 [3, H, W]."""
    captions: tuple[str, ...]
    depth: NDArray[np.float32] | None = None
    """[h, w] inverse depth, of the whole image; NaN where there is none."""
    boxes: NDArray[np.float32] | None = None
    """[K, 4] xyxy, 0 … 1 of the image."""
    phrases: tuple[str, ...] = ()
    scores: NDArray[np.float32] | None = None
    """[K]."""

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""
        return self.image.nbytes + (0 if self.depth is None else self.depth.nbytes)


def train_rows(view: Rows, part: SliceConfig | None = None) -> Selection:
    """The rows that are trained on: those of the slice whose split is 'train'."""
    return view.select(part or SliceConfig(), "train")


def check_enough(rows: Selection, global_batch: int, part: SliceConfig | None = None) -> None:
    """Refuse to train on less than one batch.

    Raises:
        ValueError: with what the slice left, step by step.
    """
    if len(rows.indices) >= global_batch:
        return
    few = f"{len(rows.indices)} rows to train on, fewer than one global batch ({global_batch})"
    if part is None or part.whole:
        raise ValueError(f"the table has {few}; ingest more, or lower train.global_batch")
    raise ValueError(f"train.data ({part}) leaves {few}: {rows}; widen it, or lower train.global_batch")


class Loader(Generic[Made]):
    """Batches of one rank, made ahead by a thread.

    A thread, because forking is no option once Lance was used, and sending decoded pictures between processes costs a quarter.

    Args:
        view: the rows of a tag.
        make: rows of this rank's part of a batch → what the model takes; runs in the thread.
        global_batch: samples of a batch, over all ranks.
        seed: of the order.
        experts: whose labels to read.
        config: speed and memory.
        part: which of the training rows; None: all.
        rank: which part is ours.
        ranks: number of parts; divides `global_batch`.

    Raises:
        ValueError: fewer training rows than one global batch, or `global_batch` is not a multiple of `ranks`.
    """

    def __init__(
        self,
        view: Rows,
        make: Callable[[list[Row]], Made],
        *,
        global_batch: int,
        seed: int,
        experts: Sequence[str] = (),
        config: LoaderConfig | None = None,
        part: SliceConfig | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if global_batch % ranks:
            raise ValueError(f"the global batch ({global_batch}) must be a multiple of the number of ranks ({ranks})")
        self.view, self.make, self.config = view, make, config or LoaderConfig()
        self.selection = train_rows(view, part)
        self.rows = self.selection.indices
        check_enough(self.selection, global_batch, part)
        self.order = Order(len(self.rows), seed)
        self.global_batch, self.rank, self.share = global_batch, rank, global_batch // ranks
        self.columns = [*_COLUMNS, *(column for expert in experts for column in _LABELS[expert])]
        self._cache: dict[int, Row] = {}
        self._cache_left = self.config.cache_mb * 2**20

    def batches(self, first: int = 0, stop: int | None = None) -> Generator[Made]:
        """Batches first … stop − 1 of the run, for ever without a stop.

        Closing the iterator ends its thread; an error in the thread is raised here.
        """
        made: queue.Queue[Any] = queue.Queue(self.config.prefetch)
        closed = threading.Event()

        def put(item: Any) -> bool:
            while not closed.is_set():
                try:
                    made.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def work() -> None:
            try:
                with ThreadPoolExecutor(self.config.decode_threads, "mtv-decode") as pool:
                    for rows in self._read(first, stop, pool):
                        if not put((self.make(rows), None)):
                            return
                put((None, StopIteration()))
            except BaseException as error:
                put((None, error))

        thread = threading.Thread(target=work, name="mtv-loader", daemon=True)
        thread.start()
        try:
            while True:
                item, error = made.get()
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                yield item
        finally:
            closed.set()
            thread.join()

    def _read(self, first: int, stop: int | None, pool: ThreadPoolExecutor) -> Iterator[list[Row]]:
        """This rank's rows, batch by batch; several batches are fetched at once, since a take of few rows is slow."""
        step = max(1, self.config.take_rows // self.share)
        while stop is None or first < stop:
            last = first + step if stop is None else min(first + step, stop)
            parts = [
                self.order(b * self.global_batch + self.rank * self.share, b * self.global_batch + (self.rank + 1) * self.share)
                for b in range(first, last)
            ]
            epochs = np.concatenate([part[0] for part in parts])
            rows = iter(self._fetch(self.rows[np.concatenate([part[1] for part in parts])], epochs, pool))
            for _ in range(first, last):
                yield list(islice(rows, self.share))
            first = last

    def _fetch(self, indices: NDArray[np.int64], epochs: NDArray[np.int64], pool: ThreadPoolExecutor) -> list[Row]:
        """Rows of table indices, which may repeat (a batch over the end of an epoch), in that order."""
        found = {int(index): self._cache[int(index)] for index in indices if int(index) in self._cache}
        missing = sorted({int(index) for index in indices} - found.keys())
        if missing:
            table = self.view.take(missing, self.columns)
            assert table.num_rows == len(missing)
            for index, row in zip(missing, pool.map(decode, table.to_pylist()), strict=True):
                found[index] = row
                if row.nbytes <= self._cache_left:
                    self._cache_left -= row.nbytes
                    self._cache[index] = row
        return [replace(found[int(index)], epoch=int(epoch)) for index, epoch in zip(indices, epochs, strict=True)]


def _jpeg(data: bytes) -> torch.Tensor:
    """uint8 [3, H, W] RGB.

    torchvision's operator, which is 2–3 times as fast as PIL and gives the same bytes. Its Python wrapper warns since torchvision 0.29 that
    it will go; where it is gone, PIL decodes.
    """
    if hasattr(torch.ops.image, "decode_jpeg"):
        # A copy, since torch wants to own what it could write to. 3 is RGB.
        decoded: torch.Tensor = torch.ops.image.decode_jpeg(torch.from_numpy(np.frombuffer(data, np.uint8).copy()), 3, False)
        return decoded
    with Image.open(io.BytesIO(data)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def decode(values: dict[str, Any]) -> Row:
    """One row of the table, as `to_pylist` gives it.

    Raises:
        ValueError: the picture is not the JPEG that ingest put there.
    """
    try:
        image = _jpeg(values["image"])
    except (RuntimeError, OSError) as error:
        raise ValueError(f"the picture of row {values['uid']} cannot be decoded: its table is damaged; ingest it anew ({error})") from None
    depth = depth_codec.decode(values["depth"]) if values.get("depth") is not None else None
    has_boxes = values.get("boxes") is not None
    return Row(
        uid=values["uid"],
        epoch=0,
        image=image,
        captions=tuple(caption["text"] for caption in values["captions"]),
        depth=depth,
        boxes=np.asarray(values["boxes"], np.float32).reshape(-1, 4) if has_boxes else None,
        phrases=tuple(values["phrases"]) if has_boxes else (),
        scores=np.asarray(values["scores"], np.float32) if has_boxes else None,
    )
