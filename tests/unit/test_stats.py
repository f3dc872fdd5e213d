"""Sums of statistics are exact whatever the order; quantiles and shares are as close as they say; rates and budgets do what they say."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.budget import BudgetExceededError, FailureBudget
from mtv_core.data import stats
from mtv_core.data.schema import SAMPLES
from mtv_core.data.stats import CHEAP, Histogram, IngestStats, SampleStats, StatsBuilder, Tally
from mtv_core.executor import Progress, Rate, Timed, amount, duration
from mtv_core.report import Reject, RejectClass

TEXT = st.text("abc é中", min_size=1, max_size=12).filter(lambda text: text.strip() == text)
CAPTION = st.fixed_dictionaries({"text": TEXT, "kind": st.sampled_from(["web", "synthetic"])})
URLS = [
    None, "", "not a url", "http://a.example/x.jpg", "HTTPS://user:pw@www.B.example:8080/y?z=http://c.example", "ftp://x", "s3://bucket/key",
]  # fmt: skip


ROW = st.fixed_dictionaries(
    {
        "uid": st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}"),
        "image": st.binary(min_size=1, max_size=9),
        "width": st.integers(1, 10_000),
        "height": st.integers(1, 10_000),
        "captions": st.lists(CAPTION, min_size=1, max_size=3),
        "url": st.sampled_from(URLS),
        "license": st.sampled_from([None, "CC0-1.0", "CC-BY-4.0"]),
        "source": st.sampled_from(["one", "two"]),
        "split": st.sampled_from(["train", "held_out"]),
    }
)
OPENED = SimpleNamespace(width=640, height=480, format="JPEG")


def refusal(error: str, key: str = "k", kind: RejectClass = RejectClass.DATA) -> Reject:
    return Reject(shard="s", key=key, stage="ingest", error=error, message="m", reject_class=kind)


def built(rows: list[dict[str, Any]], refused: tuple[str, ...] = ()) -> IngestStats:
    builder = StatsBuilder()
    for row in rows:
        builder.received(len(row["image"]) + 3)
        builder.kept(row, OPENED, passthrough=row["width"] % 2 == 0)
    for error in refused:
        builder.received(1)
        builder.refused(refusal(error))
    builder.spent("decode", 0.1 * len(rows))
    return builder.build()


SHARD = st.builds(built, st.lists(ROW, max_size=8), st.lists(st.sampled_from(["NoCaption", "BrokenImage", "Odd"]), max_size=3).map(tuple))


class TestSums:
    @settings(max_examples=60, deadline=None)
    @given(SHARD, SHARD, SHARD)
    def test_any_order_gives_the_same(self, a: IngestStats, b: IngestStats, c: IngestStats) -> None:
        assert a + b == b + a
        assert (a + b) + c == a + (b + c)
        assert a + IngestStats() == a
        assert IngestStats.model_validate_json((a + b + c).model_dump_json()) == a + b + c

    @settings(max_examples=30, deadline=None)
    @given(st.lists(ROW, min_size=1, max_size=12), st.integers(0, 12))
    def test_the_sum_of_parts_is_the_whole(self, rows: list[dict[str, Any]], cut: int) -> None:
        whole = built(rows)
        parts = built(rows[:cut]) + built(rows[cut:])
        assert parts.model_copy(update={"shards": 1, "nanoseconds": whole.nanoseconds}) == whole

    @settings(max_examples=40, deadline=None)
    @given(st.lists(ROW, min_size=1, max_size=20))
    def test_against_a_plain_loop(self, rows: list[dict[str, Any]]) -> None:
        found = built(rows).kept
        assert found.rows == len(rows)
        assert found.width.total == sum(row["width"] for row in rows)
        assert (found.height.low, found.height.high) == (min(row["height"] for row in rows), max(row["height"] for row in rows))
        for kind in ("web", "synthetic"):
            texts = [caption["text"] for row in rows for caption in row["captions"] if caption["kind"] == kind]
            have = sum(any(caption["kind"] == kind for caption in row["captions"]) for row in rows)
            if not texts:
                assert kind not in found.captions
                continue
            assert (found.captions[kind].total, found.captions[kind].count) == (len(texts), have)
            assert (found.characters[kind].total, found.characters[kind].high) == (sum(map(len, texts)), max(map(len, texts)))
            assert found.words[kind].total == sum(text.count(" ") + 1 for text in texts)
        hosts = [host for row in rows if (host := host_of(row["url"])) is not None]
        assert found.domains.counts == {host: hosts.count(host) for host in hosts}
        assert found.licenses.total == sum(row["license"] is not None for row in rows)
        assert found.splits == {split: n for split in ("train", "held_out") if (n := sum(row["split"] == split for row in rows))}

    @settings(max_examples=20, deadline=None)
    @given(st.lists(ROW, min_size=1, max_size=20))
    def test_a_worker_and_the_table_say_the_same(self, rows: list[dict[str, Any]]) -> None:
        schema = pa.schema([SAMPLES.field(name) for name in CHEAP])
        assert SampleStats.of(pa.Table.from_pylist(rows, schema)) == built(rows).kept
        assert SampleStats.of(pa.Table.from_pylist([*rows, *rows], schema).slice(len(rows))) == built(rows).kept

    def test_many_samples_are_counted_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [
            {"uid": f"{i:032x}", "image": b"x" * (i + 1), "width": i + 1, "height": 7, "captions": [{"text": "a b", "kind": "web"}],
             "url": None, "license": None, "source": "s", "split": "train"}
            for i in range(100)
        ]  # fmt: skip
        whole = built(rows)
        monkeypatch.setattr(stats, "_FLUSH", 7)
        assert built(rows) == whole
        assert whole.image_bytes.total == whole.bytes_written == 5050
        assert (whole.passthrough, whole.reencoded, whole.formats) == (50, 50, {"JPEG": 100})

    def test_every_sample_is_accounted_for(self) -> None:
        builder = StatsBuilder()
        for error, kind in (("NoCaption", RejectClass.DATA), ("TooSmall", RejectClass.DATA), ("Watermark", RejectClass.DATA),
                            ("KeyError", RejectClass.BUG)):  # fmt: skip
            builder.received(5)
            builder.refused(refusal(error, kind=kind))
        builder.refused(refusal("TruncatedShard", key=""))
        found = builder.build()
        assert found.received == found.kept.rows + sum(found.refused.values()) == 4
        assert found.failed == {"NoCaption": 1, "KeyError": 1}, "limits and filters are no failures"
        assert found.failed_shards == {"TruncatedShard": 1}

    def test_it_costs_little(self) -> None:
        row = {"uid": "0" * 32, "image": b"x" * 1000, "width": 3, "height": 7, "captions": [{"text": "a b", "kind": "web"}],
               "url": "http://a.example/b", "license": "CC0", "source": "s", "split": "train"}  # fmt: skip
        built([row] * 100)
        spent = []
        for _ in range(3):
            began = time.process_time()
            built([row] * 4096)
            spent.append((time.process_time() - began) / 4096)
        assert min(spent) < 40e-6, "8 µs when measured alone"


def host_of(url: str | None) -> str | None:
    match = re.match(r"[a-z][a-z0-9+.\-]*://(?:[^/?#@]*@)?([^/?#:@]+)", (url or "").lower())
    return match[1].removeprefix("www.") if match else None


class TestHistogram:
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=50), st.floats(0, 1))
    def test_quantiles_are_close(self, values: list[float], q: float) -> None:
        found = Histogram.of(np.array(values)).quantile(q)
        exact = np.quantile(values, q, method="inverted_cdf")
        assert found is not None
        assert exact / 1.0221 <= found <= exact

    def test_frequent_values_are_exact(self) -> None:
        assert Histogram.of(np.array([1, 256, 640, 768])).quantile(0.75) == 640
        assert Histogram.of(np.array([0.5, 1.0, 1.0])).quantile(0.5) == 1.0

    def test_of_nothing(self) -> None:
        empty = Histogram.of(np.array([]))
        assert (empty.count, empty.mean, empty.quantile(0.5)) == (0, None, None)
        assert empty + Histogram.of(np.array([3])) == Histogram.of(np.array([3]))


def tally(numbers: np.ndarray, values: list[str | None]) -> Tally:
    return Tally.of(pa.array([f"{number:032x}" for number in numbers.tolist()], pa.string()), pa.array(values, pa.string()))


class TestTally:
    def test_many_values_are_estimated_from_a_uniform_sample(self) -> None:
        rng = np.random.default_rng(0)
        uids = [rng.bytes(16).hex() for _ in range(20_000)]
        values = ["big.example" if i % 5 == 0 else f"h{i}.example" for i in range(20_000)]
        parts = [Tally.of(pa.array(uids[i::4]), pa.array(values[i::4])) for i in range(4)]
        found = sum(parts, start=Tally())
        assert not found.exact
        assert found.total == 20_000
        [(name, share)] = found.top(1)
        assert name == "big.example"
        assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / stats.SAMPLE) ** 0.5)
        assert found == Tally.of(pa.array(uids), pa.array(values)) == sum(reversed(parts), start=Tally())
        assert len(found.model_dump_json()) < 40_000

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.lists(st.tuples(st.integers(0, 200), st.sampled_from("abcdefgh")), max_size=30), min_size=3, max_size=3))
    def test_order_does_not_matter_beyond_the_limits(self, parts: list[list[tuple[int, str]]]) -> None:
        before = stats.DISTINCT, stats.SAMPLE
        stats.DISTINCT, stats.SAMPLE = 4, 5
        try:
            a, b, c = (tally(np.array([number for number, _ in part], np.int64), [value for _, value in part]) for part in parts)
            assert (a + b) + c == a + (b + c) == (c + a) + b
            everything = [pair for part in parts for pair in part]
            assert a + b + c == tally(np.array([number for number, _ in everything], np.int64), [value for _, value in everything])
        finally:
            stats.DISTINCT, stats.SAMPLE = before


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestRate:
    def test_what_was_done_before_is_no_speed(self) -> None:
        clock = Clock()
        rate = Rate(clock=clock)
        assert str(rate.update(900, 1000, rows=900_000)) == ""
        for second in range(1, 11):
            clock.now = 100.0 + second
            rate.update(900 + second, 1000, rows=900_000 + 1234 * second, num_bytes=56_000_000 * second)
        assert rate.rows == pytest.approx(1234)
        assert rate.eta == pytest.approx(90)
        assert str(rate) == "1234 samples/s, 56 MB/s, ETA 90 s"

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(0.3, 100), min_size=1, max_size=30))
    def test_a_steady_speed_is_found_however_often_one_looks(self, waits: list[float]) -> None:
        clock = Clock()
        rate = Rate("rows", clock=clock)
        rate.update(0, 10**9)
        for wait in waits:
            clock.now += wait
            rate.update(round((clock.now - 100) * 1000), 10**9)
        assert rate.rows == pytest.approx(1000, rel=0.01)

    def test_it_follows_a_change(self) -> None:
        clock = Clock()
        rate = Rate(clock=clock, memory=10)
        done = 0
        rate.update(done, 10**6)
        for second in range(120):
            clock.now += 1
            done += 100 if second < 60 else 10
            rate.update(done, 10**6)
        assert rate.rows == pytest.approx(10, rel=0.05)

    def test_many_at_once_are_not_lost(self) -> None:
        clock = Clock()
        rate = Rate(clock=clock)
        rate.update(0, 100)
        for done in range(1, 51):
            rate.update(done, 100)
        assert rate.eta is None
        clock.now += 10
        assert rate.update(50, 100).eta == pytest.approx(10)
        assert rate.update(100, 100).eta == 0

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (0, "0 s"),
            (0.42, "0.42 s"),
            (8.04, "8 s"),
            (10.2, "10 s"),
            (99, "99 s"),
            (99.9, "2 min"),
            (5999, "1 h 40 min"),
            (7200, "2 h"),
            (200_000, "2 d 7 h"),
            (180, "3 min"),
        ],
    )
    def test_times(self, seconds: float, said: str) -> None:
        assert duration(seconds) == said

    def test_numbers(self) -> None:
        assert [amount(number) for number in (0.1234, 12.345, 123.4, 12345.6)] == ["0.123", "12.3", "123", "12346"]

    def test_a_progress_with_speed(self) -> None:
        said: list[tuple[int, int, str]] = []

        def listen(done: int, total: int, message: str = "") -> None:
            said.append((done, total, message))

        told: Progress = Timed(listen, "rows")
        told(0, 10, "rows labelled")
        time.sleep(0.25)
        told(5, 10, "rows labelled")
        told(10, 10, "rows labelled")
        told(0, 3, "fragments")
        assert [(done, total) for done, total, _ in said] == [(0, 10), (5, 10), (10, 10), (0, 3)]
        assert re.fullmatch(r"rows labelled · [\d.]+ rows/s, ETA [\d.]+ s", said[1][2]), said[1]
        assert [message for _, _, message in (said[0], *said[2:])] == ["rows labelled", "rows labelled", "fragments"]


class TestBudget:
    def test_few_failures_stop_nothing(self) -> None:
        FailureBudget(share=0.1, min_samples=10).check("ingest", {"NoCaption": 9}, 9)
        FailureBudget(share=0.1, min_samples=10).check("ingest", {"NoCaption": 100}, 1000)
        FailureBudget(share=1.0).check("ingest", {"NoCaption": 10_000}, 10_000)

    def test_it_says_what_and_what_to_do(self) -> None:
        with pytest.raises(BudgetExceededError, match=r"101 of 1000 samples failed \(100 × NoCaption, 1 × BrokenImage\).*failures\.share"):
            FailureBudget(share=0.1, min_samples=10).check("ingest", {"BrokenImage": 1, "NoCaption": 100}, 1000)

    def test_one_bad_shard_does_not_stop_a_run_of_many(self) -> None:
        budget = FailureBudget(share=0.1, min_samples=10, min_shards=3)
        budget.check("ingest", {"NoCaption": 1000}, 1000, pieces=2)
        with pytest.raises(BudgetExceededError):
            budget.check("ingest", {"NoCaption": 1000}, 3000, pieces=3)
        with pytest.raises(BudgetExceededError):
            budget.check("ingest", {"NoCaption": 1000}, 1000)

    def test_only_chosen_reasons_and_shards(self) -> None:
        budget = FailureBudget(share=0.1, min_samples=10, min_shards=2, reasons=["BrokenImage"])
        budget.check("ingest", {"NoCaption": 100, "BrokenImage": 10}, 100)
        with pytest.raises(BudgetExceededError, match="3 of 5 shards"):
            FailureBudget(min_shards=2).check("ingest", {"Unreadable": 3}, 5, unit="shards")
