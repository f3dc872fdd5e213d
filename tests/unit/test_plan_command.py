"""`mtv plan` says what the plan says, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from label_tables import QuickExpert, config, make_table, sample_rows
from typer.testing import CliRunner

from flows.cli import app
from mtv_core import experts, labelling, labelling_worker
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_plan import plan
from mtv_core.store import rates
from mtv_core.store.rates import Rate
from mtv_core.store.table import Table


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """24 labelled rows, and 4 that came later."""
    monkeypatch.setattr(experts, "load", QuickExpert)
    labelling_worker.loaded.cache_clear()
    table = make_table(tmp_path / "table")
    labelling.run(table.uri, config(), SerialExecutor())
    table.append(sample_rows(4, first=24))
    yield table
    labelling_worker.loaded.cache_clear()


def said(table: Table, *options: str) -> str:
    preset = Path(table.uri).parent / "preset.yaml"
    preset.write_text(yaml.safe_dump({"sources": ["blocks://few"], "label": config().model_dump(mode="json")}))
    result = CliRunner().invoke(app, ["plan", "--preset", str(preset), "--table", table.uri, *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_json_is_the_plan(table: Table) -> None:
    found = json.loads(said(table, "--json"))
    assert found["table"] == table.uri
    assert found["experts"] == {name: one.model_dump(mode="json") for name, one in plan(table.uri, config()).items()}
    assert found["experts"]["depth"]["stale"]["num_stale"] == 4


def test_what_a_person_reads(table: Table) -> None:
    tracked = {name: experts.revision(name, expert) for name, expert in config().experts().items()}
    measured = Rate(
        revision=tracked["depth"], rows=2000, bytes_written=4_000_000, worker_seconds=40, wall_seconds=20, workers=2,
        at="2026-03-01T10:00:00+00:00",
    )  # fmt: skip
    rates.record(table, "depth", measured)
    text = said(table, "--set", "label.price_per_hour=1800")
    assert f"{tracked['depth']}: 24 rows, no labels: 4 rows" in text
    # 4 rows at 100 rows/s; 2 kB each; 0.04 s of two workers at 1800 an hour
    assert "4 rows in 1 fragment, about 0.04 s, 8 kB, cost 0.04" in text
    assert "100 rows/s with 2 workers, on 2026-03-01, 2 000 rows" in text


def test_a_proposal_and_a_refusal_are_told_apart(table: Table) -> None:
    options = ["--set", "label.depth.model=blocks:depth-r2"]
    revision = plan(table.uri, config("blocks:depth-r2"))["depth"].tracked
    text = said(table, *options)
    assert f"{revision}  not accepted; `mtv refresh` tries it and labels every row with it if it passes" in text
    assert "28 rows in 4 fragments" in text
    table.reject("depth", revision, "AbsRel 0.3 > 0.1")
    text = said(table, *options)
    assert f"{revision}  refused before; `mtv refresh --force` tries it again" in text
    assert "AbsRel 0.3 > 0.1" in text


def test_no_table_is_a_mistake_with_an_answer(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "--table", str(tmp_path / "none")])
    assert result.exit_code != 0
    assert "mtv ingest" in str(result.exception)
