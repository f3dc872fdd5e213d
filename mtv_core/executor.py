"""How a stage spreads its work: a small protocol, so that the core need not know Dask."""

from __future__ import annotations

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
