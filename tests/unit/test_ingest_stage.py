"""When the flow may reuse what an ingest made: never where something that it was to look at may have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tars import sample, shards, tar

from mtv_core import ingest
from mtv_core.config import resolve_config
from mtv_core.executor import SerialExecutor
from mtv_core.runs import RunRecord
from tasks import ingest as stage
from tasks.run import Run


def run_of(tmp_path: Path, **config: Any) -> Run:
    table = {"uri": str(tmp_path / "t")}
    resolved = resolve_config("demo", {"sources": str(tmp_path / "in"), "table": table, "ingest": config})
    return Run(RunRecord(run_id="20260101T000000-000000"), resolved.config, resolved.origin)


def ingested(run: Run) -> Any:
    return stage.ref_of(run, ingest.run(run.config.sources, run.table, run.config.ingest, SerialExecutor()))


def test_shards_that_are_as_they_were(tmp_path: Path) -> None:
    [path] = shards(tmp_path / "in", 1, 3)
    run = run_of(tmp_path)
    before, ref = stage.key(run), ingested(run)
    assert stage.valid(run, ref)
    assert stage.key(run) == before
    tar(path, [member for n in range(4) for member in sample(n)])
    assert stage.key(run) != before
    assert not stage.valid(run, ref)


def test_content_is_compared_every_time(tmp_path: Path) -> None:
    shards(tmp_path / "in", 1, 3)
    run = run_of(tmp_path, verify="content")
    assert not stage.valid(run, ingested(run))


def test_an_evaluation_set_that_changed(tmp_path: Path) -> None:
    shards(tmp_path / "in", 1, 3)
    [bench] = shards(tmp_path / "bench", 1, 2, first=50)
    run = run_of(tmp_path, decontaminate={"sets": [str(tmp_path / "bench")]})
    before = stage.key(run)
    assert stage.key(run) == before
    tar(bench, [member for n in range(50, 53) for member in sample(n)])
    assert stage.key(run) != before
