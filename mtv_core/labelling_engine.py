"""Rows with pictures → labels: decoded ahead, asked of an expert in batches, several batches on their way.

On a CPU each of the threads takes a batch from bytes to labels, with one core for itself: two batches on two cores beat one batch on two,
whose small operations wait for each other. On a GPU threads decode ahead, others prepare batches and read results, and the device computes
one batch after the other without waiting for them (`experts.base.launching`). The caller, meanwhile, reads rows and writes labels.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import io
import os
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from mtv_core.data.schema import LABELS
from mtv_core.experts.answer import check
from mtv_core.experts.base import Expert
from mtv_core.experts.phrase_column import BadPhrases
from mtv_core.labelling_failures import BatchSize, ExpertUnavailableError, Failure, Kind, kind_of, sick
from mtv_core.report import RejectClass

RETRY_SECONDS = (0.5, 2.0, 8.0)  # waits before a batch is tried again that met a transient error
_PARTS = 2  # parts of a fragment on their way, so that the end of one leaves nothing idle
_FREE_TO_KEEP = 1 << 30  # bytes


@dataclass(frozen=True)
class Labelled:
    """Labels of some rows in their order, null where the expert failed, and why; what its filters counted."""

    labels: pa.RecordBatch
    failures: dict[int, Failure]
    counts: Counter[str]


@dataclass
class _Chunk:
    """Rows of one batch."""

    rows: pa.RecordBatch
    phrases: Sequence[Sequence[str] | BadPhrases] | None
    done: Future[Labelled] = field(default_factory=Future)
    decoded: Future[dict[int, Image.Image | Failure]] | None = None


class Engine:
    """An expert at work in this process, on parts of a fragment.

    Args:
        expert: it may be called from several threads.
        size: of its batches; kept over fragments by the caller.
        threads: on a CPU, batches at the same time, each on one core.
    """

    def __init__(self, expert: Expert, size: BatchSize, threads: int = 1) -> None:
        self._expert, self._size = expert, size
        device = getattr(expert, "device", None)
        self._cuda = device is not None and device.type == "cuda"
        cores = os.cpu_count() or 1
        self._threads = max(2, min(6, cores // 2)) if self._cuda else threads
        self._decoders = ThreadPoolExecutor(max(2, min(8, cores // 2)), "decode") if self._cuda else None
        self._workers = ThreadPoolExecutor(self._threads, "expert", initializer=torch.set_num_threads, initargs=(1,))
        self._waiting: deque[_Chunk] = deque()  # to be decoded
        self._left = threading.Event()
        self._outage = False  # a batch met transient errors to the end, and none went well since
        warnings.filterwarnings("ignore", module=r"PIL\.")  # a large picture or odd EXIF is no matter: ingest decided what is stored
        if not self._cuda:
            keep_freed_memory()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        for pool in (self._decoders, self._workers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def label(self, parts: Iterable[pa.RecordBatch]) -> Iterator[Labelled]:
        """Labels of every row of each part, part by part; the next ones are read and worked on meanwhile.

        Raises:
            ExpertUnavailableError: the rows do not have the phrases that the expert is configured to take.
            OSError: the machine fails under the expert (`SickMachineError`: its device), or a part cannot be read.
        """
        flying: deque[tuple[list[_Chunk], NDArray[np.int64]]] = deque()
        for part in parts:
            order = _by_shape(part)
            flying.append((self._submit(part if _sorted(order) else part.take(pa.array(order))), order))
            if len(flying) >= _PARTS:
                yield self._joined(*flying.popleft())
        while flying:
            yield self._joined(*flying.popleft())

    def _submit(self, part: pa.RecordBatch) -> list[_Chunk]:
        try:
            phrases = self._expert.phrases_in(part)
        except ValueError as error:
            raise ExpertUnavailableError(str(error)) from None
        step = self._size.now
        firsts = range(0, part.num_rows, step)
        chunks = [_Chunk(part.slice(first, step), None if phrases is None else phrases[first : first + step]) for first in firsts]
        self._waiting.extend(chunks)
        for _ in range(min(len(chunks), 2 * self._threads)):
            self._decode_ahead()
        for chunk in chunks:
            self._workers.submit(self._run, chunk)
        return chunks

    def _joined(self, chunks: Sequence[_Chunk], order: NDArray[np.int64]) -> Labelled:
        """Wait for the chunks of a part, and put its rows back: row i of the chunks is row order[i] of the part."""
        schema = LABELS[self._expert.name]
        failures: dict[int, Failure] = {}
        counts: Counter[str] = Counter()
        labels: list[pa.RecordBatch] = []
        first = 0
        for chunk in chunks:
            done = chunk.done.result()
            labels.append(done.labels)
            failures |= {int(order[first + i]): failure for i, failure in done.failures.items()}
            counts.update(done.counts)
            first += chunk.rows.num_rows
        together = pa.Table.from_batches(labels, schema)
        if not _sorted(order):
            together = together.combine_chunks().take(pa.array(np.argsort(order)))
        return Labelled(_one(together, schema), failures, counts)

    # In the threads

    def _decode_ahead(self) -> None:
        """On a GPU: begin to decode one chunk more."""
        if self._decoders is None:
            return
        try:
            chunk = self._waiting.popleft()
        except IndexError:
            return
        chunk.decoded = self._decoders.submit(_decode_all, chunk.rows)

    def _run(self, chunk: _Chunk) -> None:
        if self._left.is_set():
            return
        self._decode_ahead()
        try:
            chunk.done.set_result(self._label(chunk))
        except BaseException as error:  # raised again in the caller's thread
            chunk.done.set_exception(error)

    def _label(self, chunk: _Chunk) -> Labelled:
        decoded = _decode_all(chunk.rows) if chunk.decoded is None else chunk.decoded.result()
        named = chunk.phrases or ()
        asked = [() if isinstance(one, BadPhrases) else one for one in named]
        failures = {i: failure for i, failure in decoded.items() if isinstance(failure, Failure)}
        failures |= {i: Failure("BadPhrases", one.message, RejectClass.DATA) for i, one in enumerate(named) if isinstance(one, BadPhrases)}
        images = {i: image for i, image in decoded.items() if isinstance(image, Image.Image) and i not in failures}
        captions = chunk.rows.column("caption").to_pylist()
        counts: Counter[str] = Counter()
        schema = LABELS[self._expert.name]
        pieces: list[pa.RecordBatch] = []
        taken: list[int | None] = [None] * chunk.rows.num_rows
        num_labels = 0
        waiting = [list(images)] if images else []
        while waiting:
            positions = waiting.pop()
            if len(positions) > self._size.now:  # memory ran out elsewhere since the chunk was cut
                waiting += _halves(positions)
                continue
            phrases = None if chunk.phrases is None else [asked[i] for i in positions]
            outcome = self._ask([images[i] for i in positions], [captions[i] for i in positions], phrases)
            if outcome is None:
                waiting += _halves(positions)
            elif isinstance(outcome, Failure):
                failures |= dict.fromkeys(positions, outcome)
            else:
                counts.update(self._expert.counts)
                pieces.append(outcome)
                for i in positions:
                    taken[i] = num_labels
                    num_labels += 1
        labels = pa.Table.from_batches(pieces, schema)
        if taken != list(range(chunk.rows.num_rows)):
            labels = labels.combine_chunks().take(pa.array(taken, pa.int64()))
        return Labelled(_one(labels, schema), failures, counts)

    def _ask(
        self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Sequence[Sequence[str]] | None
    ) -> pa.RecordBatch | Failure | None:
        """The expert's labels of a batch, why all of its rows have none, or None if its halves have to be tried."""
        for wait in (None,) if self._outage else (*RETRY_SECONDS, None):
            try:
                batch = self._expert(images, captions, phrases)
                check(self._expert.name, batch, images, phrases)
            except Exception as error:
                kind = kind_of(error)
                if kind is Kind.MACHINE:
                    raise sick(error) from error
                if kind is Kind.TRANSIENT:
                    if wait is None or self._left.wait(wait):
                        self._outage = True
                        return Failure.of(error, RejectClass.TRANSIENT)
                    continue
                if kind is Kind.MEMORY:
                    self._size.failed(len(images))
                if len(images) == 1:
                    return Failure.of(error, RejectClass.TRANSIENT if kind is Kind.MEMORY else RejectClass.BUG)
                failed = kind
            else:
                self._size.worked(len(images))
                self._outage = False
                return batch
            break
        if failed is Kind.MEMORY:  # out here: the exception held on to the tensors of the frames it came through
            gc.collect()
            if self._cuda:
                torch.cuda.empty_cache()
        return None


def _by_shape(part: pa.RecordBatch) -> NDArray[np.int64]:
    """Rows in the order in which they are worked on: of like shape together, since a model takes pictures of one size as one batch."""
    if not {"width", "height"} <= set(part.schema.names):
        return np.arange(part.num_rows)
    aspect = part.column("width").to_numpy() / part.column("height").to_numpy()
    return np.argsort(aspect, kind="stable")


def _sorted(order: NDArray[np.int64]) -> bool:
    return bool((np.diff(order) > 0).all())


def _halves(positions: list[int]) -> list[list[int]]:
    """The second half first, as from a stack."""
    middle = len(positions) // 2
    return [positions[middle:], positions[:middle]]


def _one(labels: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    batches = labels.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema)


def _decode_all(rows: pa.RecordBatch) -> dict[int, Image.Image | Failure]:
    found: dict[int, Image.Image | Failure] = {}
    for i, data in enumerate(rows.column("image")):
        try:
            found[i] = _decode(data.as_buffer())
        except MemoryError as error:
            found[i] = Failure.of(error, RejectClass.TRANSIENT)
        except Exception as error:
            found[i] = Failure("UnreadableImage", f"the stored image cannot be read: {error}", RejectClass.DATA)
    return found


def _decode(data: pa.Buffer) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to 1 GiB, and hand it out again.

    It gives large blocks back to the system at once, and a model's intermediate results are large blocks: a fifth of the time of the blocks
    depth expert went into making the same pages again for every layer. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # M_… of malloc.h
    mallopt(trim_threshold, _FREE_TO_KEEP)
    mallopt(mmap_threshold, _FREE_TO_KEEP)
    mallopt(arena_max, 1)  # the other threads' arenas are made of blocks of 64 MB, and larger ones always come from the system
