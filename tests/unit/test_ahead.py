"""Reading ahead gives what reading gives, holds no more than it may, and ends when it is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtv_core.data.ahead import Ahead


@given(st.lists(st.integers(0, 50), max_size=300), st.integers(1, 100))
def test_the_same_items_in_the_same_order(sizes: list[int], limit: int) -> None:
    with Ahead(enumerate(sizes), lambda item: item[1], limit) as items:
        assert list(items) == list(enumerate(sizes))


def _broken(after: int) -> Iterator[int]:
    yield from range(after)
    raise OSError("the store is gone")


@pytest.mark.parametrize("after", [0, 1, 63, 64, 65, 200])
def test_an_error_comes_after_the_items_before_it(after: int) -> None:
    seen = []
    with Ahead(_broken(after), lambda _: 1) as items:
        seen += islice(items, after)
        with pytest.raises(OSError, match="the store is gone"):
            next(items)
    assert seen == list(range(after))


def test_what_waits_is_bounded() -> None:
    taken = threading.Semaphore(0)
    read = []

    def items() -> Iterator[int]:
        for i in range(50):
            read.append(i)
            yield i
            taken.release()

    with Ahead(items(), lambda _: 10, limit=30) as ahead:
        first = next(ahead)
        for _ in range(6):  # 30 bytes wait, 30 are ready to be handed over
            assert taken.acquire(timeout=10)
        time.sleep(0.1)
        assert len(read) <= 10
        assert [first, *ahead] == list(range(50))


def test_an_item_larger_than_the_limit() -> None:
    with Ahead(iter([5, 500, 5]), lambda size: size, limit=10) as items:
        assert list(items) == [5, 500, 5]


def test_leaving_early_ends_the_thread_and_closes_the_reader() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.append(threading.current_thread().name)

    with Ahead(items(), lambda _: 1, limit=10) as ahead:
        assert next(ahead) == 0
    assert closed == ["read-ahead"]
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]


def test_it_works_while_the_caller_does() -> None:
    step = 0.02

    def items() -> Iterator[int]:
        for i in range(10):
            time.sleep(step)
            yield i

    began = time.perf_counter()
    for _ in items():
        time.sleep(step)
    apart = time.perf_counter() - began
    began = time.perf_counter()
    with Ahead(items(), lambda _: 1, limit=1) as ahead:
        for _ in ahead:
            time.sleep(step)
    together = time.perf_counter() - began
    assert together < 0.8 * apart
