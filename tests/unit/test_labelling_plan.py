"""The plan: what is stale, what was measured and what that makes; nothing opened where nothing is stale."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_tables import QuickExpert, config, make_table, sample_rows

from mtv_core import experts, labelling, labelling_worker
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.labelling_plan import plan, revisions
from mtv_core.report import StageReport
from mtv_core.store import rates
from mtv_core.store.rates import Meter, Rate
from mtv_core.store.table import Table

SERIAL = SerialExecutor()
R2 = "blocks:depth-r2"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """24 rows without labels in 3 fragments."""
    return make_table(tmp_path / "table")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Quick experts instead of models."""
    monkeypatch.setattr(experts, "load", QuickExpert)
    labelling_worker.loaded.cache_clear()
    yield
    labelling_worker.loaded.cache_clear()


def run(table: Table, with_config: LabelConfig | None = None) -> labelling.LabelResult:
    return labelling.run(table.uri, with_config or config(), SERIAL)


def test_before_the_first_labelling_all_is_stale_and_nothing_known(table: Table) -> None:
    version = table.version
    depth = plan(table.uri, config(price_per_hour=2))["depth"]
    assert table.version == version
    assert (depth.tracked, depth.accepted, depth.target) == (revisions(config())["depth"], None, depth.tracked)
    assert depth.stored == {"": 24}
    assert not depth.proposed
    assert (depth.stale.num_stale, depth.stale.num_fragments) == (24, 3)
    assert (depth.stale.seconds, depth.stale.bytes_to_write, depth.stale.cost, depth.stale.rate) == (None, None, None, None)


def test_after_labelling_nothing_is_stale_and_costs_nothing(table: Table) -> None:
    run(table)
    for one in plan(table.uri, config(price_per_hour=2)).values():
        assert one.stored == {one.accepted: 24}
        assert (one.stale.num_stale, one.stale.num_fragments) == (0, 0)
        assert (one.stale.seconds, one.stale.bytes_to_write, one.stale.cost) == (0, 0, 0)


def test_only_appended_rows_are_stale(table: Table) -> None:
    run(table)
    table.append(sample_rows(5, first=24), 3)
    for one in plan(table.uri, config()).values():
        assert (one.stale.num_stale, one.stale.num_fragments) == (5, 2)
        assert one.stored == {one.accepted: 24, "": 5}


def test_a_new_revision_is_a_proposal_with_its_price(table: Table) -> None:
    first = run(table)
    plans = plan(table.uri, config(R2))
    depth = plans["depth"]
    assert depth.proposed
    assert (depth.target, depth.stale.num_stale) == (first.revisions["depth"], 0)
    assert depth.proposal is not None
    assert (depth.proposal.revision, depth.proposal.num_stale, depth.proposal.num_fragments) == (depth.tracked, 24, 3)
    assert plans["detection"].proposal is None
    at_once = plan(table.uri, config(R2, accept="immediate"))["depth"]
    assert (at_once.target, at_once.stale.num_stale, at_once.proposal) == (at_once.tracked, 24, None)


def test_a_refusal_is_shown(table: Table) -> None:
    run(table)
    tracked = revisions(config(R2))["depth"]
    table.reject("depth", tracked, "AbsRel 0.3 > 0.1")
    depth = plan(table.uri, config(R2))["depth"]
    assert depth.refusal is not None
    assert depth.refusal.reason == "AbsRel 0.3 > 0.1"
    assert plan(table.uri, config())["depth"].refusal is None


# Nothing stale: nothing opened


def test_without_stale_rows_no_data_file_is_opened_and_no_weights_loaded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(table)
    monkeypatch.setattr(experts, "load", None)
    monkeypatch.setattr(labelling, "label_fragment", None)
    data = Path(table.uri) / "samples.lance" / "data"
    data.rename(data.with_name("elsewhere"))  # whoever opens a data file now fails
    assert all(one.num_stale == 0 for one in plan(table.uri, config()).values())
    again = run(table)
    assert (again.version, again.tag, again.report.rows_skipped) == (first.version, first.tag, 48)


# What was measured


class SlowExpert(QuickExpert):
    """20 ms a picture."""

    def label(self, image: Any, caption: str) -> dict[str, object]:
        time.sleep(0.02)
        return super().label(image, caption)


def test_the_estimate_is_what_it_then_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path / "slow", count=30, rows_per_fragment=6)
    monkeypatch.setattr(experts, "load", SlowExpert)
    only_depth = config().model_copy(update={"detection": None})
    first = run(table, only_depth)
    measured = rates.last(table, "depth", first.revisions["depth"])
    assert measured is not None
    assert (measured.rows, measured.workers, measured.bytes_written) == (30, 1, first.report.bytes_written)
    assert measured.worker_seconds == pytest.approx(first.report.seconds)
    assert measured.wall_seconds >= 30 * 0.02
    table.append(sample_rows(18, first=30), 6)
    work = plan(table.uri, only_depth.model_copy(update={"price_per_hour": 3.0}))["depth"].stale
    assert work.rate == measured
    assert work.seconds is not None
    assert work.cost == pytest.approx(work.seconds / 3600 * 3.0)
    began = time.monotonic()
    result = run(table, only_depth)
    assert work.bytes_to_write == pytest.approx(result.report.bytes_written, rel=0.3)
    assert 0.3 < work.seconds / (time.monotonic() - began) < 3


def rate(revision: str, rows: int, **fields: Any) -> Rate:
    return Rate(revision=revision, rows=rows, **{"bytes_written": 10 * rows, "worker_seconds": 4, "wall_seconds": 2, "workers": 2} | fields)


def test_the_latest_run_counts_unless_it_was_too_short_to_tell(table: Table) -> None:
    rates.record(table, "depth", rate("r1", 5))
    rates.record(table, "depth", rate("r1", 500))
    rates.record(table, "depth", rate("r1", 5))
    assert rates.last(table, "depth", "r1") == rate("r1", 500, at=rates.last(table, "depth", "r1").at)  # type: ignore[union-attr]
    rates.record(table, "depth", rate("r1", 90_000, wall_seconds=9))
    rates.record(table, "depth", rate("r1", 1000, wall_seconds=3))
    found = rates.last(table, "depth", "r1")
    assert found is not None
    assert found.rows == 1000
    assert found.rows_per_second == pytest.approx(1000 / 3)


def test_a_revision_that_never_ran_is_estimated_by_the_latest_other_one(table: Table) -> None:
    assert rates.last(table, "depth", "r3") is None
    rates.record(table, "depth", rate("r1", 2000, at="2026-01-02T00:00:00+00:00"))
    rates.record(table, "depth", rate("r2", 3000, at="2026-01-03T00:00:00+00:00"))
    rates.record(table, "detection", rate("d1", 4000, at="2026-01-04T00:00:00+00:00"))
    found = rates.last(table, "depth", "r3")
    assert found is not None
    assert (found.revision, found.rows) == ("r2", 3000)


def test_a_record_of_another_version_of_mtv_is_none(table: Table) -> None:
    table.files.write("_rates/depth/r1.json", b'{"rows": 3, "furlongs": 2}')
    assert rates.last(table, "depth", "r1") is None


def test_two_experts_share_the_wall_time_of_their_run() -> None:
    meter = Meter()
    with meter.running():
        time.sleep(0.05)
    for expert, seconds in (("depth", 3.0), ("detection", 1.0), ("depth", 3.0)):
        meter.add(expert, StageReport(rows_in=8, rows_out=6, rows_rejected=1, bytes_written=100, seconds=seconds), f"host:{seconds}")
    found = meter.rates({"depth": "r1", "detection": "d1"})
    assert (found["depth"].rows, found["depth"].bytes_written, found["depth"].worker_seconds, found["depth"].workers) == (14, 200, 6, 2)
    assert found["depth"].wall_seconds == pytest.approx(6 * found["detection"].wall_seconds)
    assert 0.05 <= found["depth"].wall_seconds + found["detection"].wall_seconds < 0.5


def test_an_expert_whose_rows_all_failed_for_now_says_nothing() -> None:
    meter = Meter()
    meter.add("depth", StageReport(rows_in=8, seconds=1), "host:1")
    assert meter.rates({"depth": "r1"}) == {}
