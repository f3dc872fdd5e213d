"""How a stage spreads its work: a small protocol, so that the core need not know Dask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: its result, or the exception that stopped it.

    `killed` means that the worker process died of the item again and again (out of memory, segfault): trying it once more is no use.
    """

    item: Item
    result: Result | None = None
    error: Exception | None = None
    killed: bool = False


class Executor(Protocol):
    """Runs a picklable function over items, here or on a cluster.

    Finished work may run again (a worker lost before its result was fetched), so functions write to deterministic places and leave
    publishing to the caller. Outcomes come as they finish, in any order, exactly one an item; the executor retries transient losses itself.
    """

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        resources: Mapping[str, float] | None = None,
    ) -> Iterator[Outcome[Item, Result]]:
        """Yield one outcome an item as it finishes."""
        ...


class SerialExecutor:
    """The slow truth: one item after the other, in this process."""

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        resources: Mapping[str, float] | None = None,
    ) -> Iterator[Outcome[Item, Result]]:
        """Yield one outcome an item, in order."""
        for item in items:
            try:
                result = function(item)
            except Exception as error:
                yield Outcome(item, error=error)
            else:
                yield Outcome(item, result=result)


class Progress(Protocol):
    """Told how far a stage is; the flow shows it, a test ignores it."""

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Report that `done` of `total` pieces are finished."""
        ...


def silent(done: int, total: int, message: str = "") -> None:
    """Ignore progress."""


class Rate:
    """How fast work goes and when it will be done, for people: "1234 samples/s, 56 MB/s, ETA 3 min".

    Pieces are what progress counts (shards, fragments, rows); rows and bytes are what is told of the speed, where they are given. The first
    update is where counting begins, so that work found done costs nothing. Speeds are means in which what happened `memory` seconds ago
    weighs 1/e of what happens now.
    """

    def __init__(self, unit: str = "samples", memory: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.unit, self._memory, self._clock = unit, memory, clock
        self._last: tuple[float, float, float, float] | None = None  # time, pieces, rows, bytes
        self._speed = [0.0, 0.0, 0.0]  # a second, of pieces, rows and bytes
        self._weight = 0.0  # of what was seen; the rest of the mean is the zero it began with
        self._left = 0.0  # pieces

    def update(self, done: int, total: int, *, rows: int | None = None, num_bytes: int | None = None) -> Rate:
        """So far: pieces done of all, and the rows and bytes of the work done. Returns itself, to be written into a message."""
        now = (self._clock(), float(done), float(done if rows is None else rows), float(num_bytes or 0))
        self._left = max(0, total - done)
        if self._last is None:
            self._last = now
            return self
        passed = now[0] - self._last[0]
        if passed < 0.2:  # several at once: wait, a speed over no time is noise
            return self
        share = 1 - math.exp(-passed / self._memory)
        for i in range(3):
            self._speed[i] += share * ((now[i + 1] - self._last[i + 1]) / passed - self._speed[i])
        self._weight += share * (1 - self._weight)
        self._last = now
        return self

    def _mean(self, which: int) -> float:
        return max(0.0, self._speed[which] / self._weight) if self._weight else 0.0

    @property
    def rows(self) -> float:
        """Rows a second; of pieces, where no rows are told."""
        return self._mean(1)

    @property
    def num_bytes(self) -> float:
        """Bytes a second."""
        return self._mean(2)

    @property
    def eta(self) -> float | None:
        """Seconds until all is done at this speed; None as long as nothing was done."""
        if not self._left:
            return 0.0
        return self._left / self._mean(0) if self._mean(0) > 0 else None

    def __str__(self) -> str:
        """What is known; nothing at the start."""
        said = [f"{amount(self.rows)} {self.unit}/s"] if self.rows else []
        said += (
            [f"{self.num_bytes / 1e6:.3g} MB/s" if self.num_bytes < 1e9 else f"{self.num_bytes / 1e9:.3g} GB/s"] if self.num_bytes else []
        )
        said += [f"ETA {duration(self.eta)}"] if self.eta and self._weight else []
        return ", ".join(said)


def amount(number: float) -> str:
    """A number to three digits, large ones whole: 0.123, 12.3, 12345."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """A time as one says it: 0.3 s, 48 s, 3 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


class Timed:
    """A progress that says how fast it goes and when it will end, after what it is told. For stages whose pieces are what people count."""

    def __init__(self, progress: Progress, unit: str) -> None:
        self._progress, self._unit = progress, unit
        self._rate: tuple[int, Rate] | None = None  # of work with this total; another total is other work

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Tell it on, with the speed."""
        if self._rate is None or self._rate[0] != total:
            self._rate = (total, Rate(self._unit))
        said = str(self._rate[1].update(done, total)) if done < total else ""
        self._progress(done, total, " · ".join(part for part in (message, said) if part))
