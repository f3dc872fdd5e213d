"""Reading ahead gives what reading gives, holds no more than it may, and ends when it is left."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtv_core.data.ahead import Ahead
from mtv_core.data.sources import RawSample
from mtv_core.data.sources.base import RawCaption
from mtv_core.ingest_shard import weight
from mtv_core.report import Reject


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


@pytest.mark.parametrize(("size", "num_read"), [(10, 6), (15, 4), (29, 4), (30, 2), (500, 2)])  # half of them are in use, half wait
def test_what_waits_is_bounded(size: int, num_read: int) -> None:
    read = []

    def items() -> Iterator[int]:
        for i in range(50):
            read.append(i)
            yield i

    with Ahead(items(), lambda _: size, limit=30) as ahead:
        first = next(ahead)
        deadline = time.monotonic() + 10
        while len(read) < num_read and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(read) == num_read
        assert [first, *ahead] == list(range(50))


@pytest.mark.parametrize("kind", ["meta", "document", "captions", "many captions", "refusals"])
def test_all_of_a_sample_counts_as_memory(kind: str) -> None:
    """Within a factor of two of what Python itself says, for whatever a sample may be large by."""
    words = [f"a word {number}" for number in range(20_000)]
    document = {word: word for word in words}
    meta = json.dumps(document).encode()
    made: dict[str, Callable[[], list[RawSample | Reject]]] = {
        "meta": lambda: [RawSample("k", b"i", meta=bytes([*meta]))],
        "document": lambda: [RawSample("k", b"i", meta=bytes([*meta]), document=json.loads(meta))],
        "captions": lambda: [RawSample("k", b"i", [RawCaption(bytes(1 << 20))])],
        "many captions": lambda: [RawSample("k", b"i", [RawCaption(word.encode()) for word in words])],
        "refusals": lambda: [
            Reject(shard="s", key=word, location=f"s#{word}", stage="ingest", error="NoImage", message=f"the sample {word!r} has no image")
            for word in words
        ],
    }
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = made[kind]()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken / 2 < sum(map(weight, found)) < 2 * taken


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
