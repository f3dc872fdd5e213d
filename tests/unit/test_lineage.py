"""Which models learnt from labels that are not the accepted ones any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from label_tables import QuickExpert, config, make_table, sample_rows
from typer.testing import CliRunner

from flows.cli import app
from mtv_core import experts, labelling, labelling_worker, lineage
from mtv_core.config import PipelineConfig
from mtv_core.executor import SerialExecutor
from mtv_core.label_import import run as import_labels
from mtv_core.report import StageRef
from mtv_core.runs import RunRecord, RunStatus, StageRecord, TableState
from mtv_core.store.table import Table
from mtv_core.training.batches import EXPERTS
from tasks import lineage as stage
from tasks import tracking

SERIAL = SerialExecutor()
BOTH: dict[str, Any] = {"train": {"objectives": {"grounding": {}, "depth": {}, "contrastive": {}}}}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """24 rows without labels; run folders and MLflow are this test's own."""
    monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(experts, "load", QuickExpert)
    labelling_worker.loaded.cache_clear()
    yield make_table(tmp_path / "table")
    labelling_worker.loaded.cache_clear()


def label(table: Table, **options: Any) -> labelling.LabelResult:
    return labelling.run(table.uri, config(**options), SERIAL)


def train(table: Table, number: int, labels: labelling.LabelResult, settings: dict[str, Any] | None = None, **fields: Any) -> RunRecord:
    """A run folder, as a training leaves it."""
    made = RunRecord(run_id=f"20260101T00000{number}-aaaaaa", status=RunStatus.COMPLETED, config=settings or BOTH, **fields)
    made.table = TableState(uri=table.uri, version=labels.version, tag=labels.tag)
    ref = StageRef(
        stage="train",
        run_id=made.run_id,
        uri=str(made.folder / "model"),
        version=labels.version,
        tag=labels.tag,
        revisions=labels.revisions,
    )
    made.stages = {"train": StageRecord(status="ran", ref=ref)}
    made.save()
    return made


def of_folders(table: Table, expert: str | None = None) -> list[lineage.TrainedRun]:
    uses, problems = lineage.from_folders()
    assert problems == []
    return lineage.trace(uses, expert, table.uri).runs


def test_a_new_revision_supersedes_what_was_trained_before(table: Table) -> None:
    first = label(table)
    one = train(table, 1, first)
    assert [run.superseded for run in of_folders(table)] == [[]]
    table.append(sample_rows(6, first=24))
    second = label(table, depth="blocks:depth-r2", accept="immediate")
    two = train(table, 2, second)
    old, new = of_folders(table)
    assert (old.run_id, new.run_id) == (one.run_id, two.run_id)
    [found] = old.superseded
    assert (found.expert, found.used, found.accepted) == ("depth", first.revisions["depth"], second.revisions["depth"])
    assert (found.rows, found.rows_left) == (24, 0)
    assert (old.model, old.tag, old.revisions) == (str(one.folder / "model"), first.tag, first.revisions)
    assert new.superseded == []
    assert [run.superseded for run in of_folders(table, "detection")] == [[], []]


def test_an_accepted_revision_supersedes_before_a_row_is_relabelled(table: Table) -> None:
    first = label(table)
    train(table, 1, first)
    table.accept("depth", "0" * 16, {})
    [found] = of_folders(table)[0].superseded
    assert (found.accepted, found.rows, found.rows_left) == ("0" * 16, 24, 24)


def test_labels_that_no_objective_learnt_from_do_not_count(table: Table) -> None:
    first = label(table)
    train(table, 1, first, {"train": {"objectives": {"grounding": {}, "depth": None}}})
    train(table, 2, first, {"train": {"objectives": {"contrastive": {}, "grounding": None, "depth": None}}})
    label(table, depth="blocks:depth-r2", accept="immediate")
    [only] = of_folders(table)
    assert (list(only.revisions), only.superseded) == (["detection"], [])
    assert lineage.EXPERTS == EXPERTS


def test_imported_labels_supersede_too_and_of_a_mixed_tag_every_part(table: Table, tmp_path: Path) -> None:
    first = label(table)
    train(table, 1, first)
    uid = Table.at(table.uri).take([0], ["uid"])["uid"][0].as_py()
    (tmp_path / "mine.jsonl").write_text(json.dumps({"uid": uid, "boxes": [], "phrases": []}))
    mine = import_labels(table.uri, tmp_path / "mine.jsonl", keep_others=True)
    assert mine.tag is not None
    revisions = {**first.revisions, "detection": mine.revision}
    train(table, 2, labelling.LabelResult(mine.version, mine.tag, revisions, mine.report))
    old, mixed = of_folders(table, "detection")
    assert [(one.used, one.rows, one.rows_left) for one in old.superseded] == [(first.revisions["detection"], 24, 23)]
    assert [(one.used, one.rows, one.rows_left) for one in mixed.superseded] == [(first.revisions["detection"], 23, 23)]


def test_a_training_at_work_and_a_run_without_training(table: Table) -> None:
    first = label(table)
    at_work = RunRecord(run_id="20260101T000001-aaaaaa", config=BOTH, experts=first.revisions)
    at_work.stages = {"train": StageRecord()}
    at_work.save()
    (at_work.folder / "train.json").write_text(json.dumps({"table_uri": table.uri, "tag": first.tag}))
    only_labelled = RunRecord(run_id="20260101T000002-aaaaaa", table=TableState(uri=table.uri, version=first.version, tag=first.tag))
    only_labelled.save()
    table.accept("depth", "0" * 16, {})
    [found] = of_folders(table)
    assert (found.run_id, found.status, len(found.superseded)) == (at_work.run_id, "running", 1)


def test_a_table_that_is_gone_is_a_problem_not_an_end(table: Table) -> None:
    first = label(table)
    train(table, 1, first)
    train(Table("/nowhere/at/all"), 2, first)
    found = lineage.trace(lineage.from_folders()[0])
    assert [run.superseded for run in found.runs] == [[], None], "unknown is neither"
    text = CliRunner().invoke(app, ["lineage", "--all"]).output
    assert "0 of 2 trained runs used superseded labels, 1 did not, of 1 it cannot be told" in text
    assert f"{first.revisions['depth']} may be superseded" in text
    runs = json.loads(CliRunner().invoke(app, ["lineage", "--json"]).stdout)["runs"]
    assert [run["superseded"] for run in runs] == [[], None]
    assert ["/nowhere/at/all cannot be looked at" in problem for problem in found.problems] == [True]


def test_a_table_that_nobody_knows_is_a_mistake(table: Table, tmp_path: Path) -> None:
    train(Table(f"{tmp_path}/gone"), 1, label(table))
    with pytest.raises(FileNotFoundError, match=f"there is no table at {tmp_path}/typo, and no run names it"):
        stage.trace(table=f"{tmp_path}/typo")
    assert len(stage.trace(table=f"{tmp_path}/gone").runs) == 1, "a run names it"
    assert stage.trace(table=table.uri).runs == []
    assert CliRunner().invoke(app, ["lineage", "-t", f"{tmp_path}/typo"]).exit_code == 1


def test_labels_of_a_table_made_anew_cannot_be_told(table: Table, tmp_path: Path) -> None:
    train(make_table(tmp_path / "anew"), 1, label(table))
    assert [run.superseded for run in lineage.trace(lineage.from_folders()[0]).runs] == [None]


def test_mlflow_knows_runs_of_other_machines_and_registered_models(table: Table, tmp_path: Path) -> None:
    first = label(table)
    labelled = StageRef(
        stage="label", run_id="x", uri=table.uri, version=first.version, tag=first.tag, revisions=first.revisions, report=first.report
    )
    here = RunRecord(run_id="20260101T000001-aaaaaa")
    tracked = tracking.start_run(here, PipelineConfig(sources="blocks://8"), labelled)
    train(table, 1, first, mlflow_run_id=tracked.run_id)
    elsewhere = tracking.start_run(RunRecord(run_id="20260101T000002-bbbbbb"), PipelineConfig(sources="blocks://8"), labelled)
    elsewhere.end()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.safetensors").write_bytes(b"x")
    tracked.register(tmp_path / "export", "mine")
    second = label(table, detection="blocks:detection-r2", accept="immediate")
    one, two = stage.trace().runs
    assert (one.run_id, one.registered) == (here.run_id, ["mine 1 @champion"])
    assert (two.run_id, two.mlflow_run_id, two.status) == (None, elsewhere.run_id, "finished")
    for run in (one, two):
        assert [(found.expert, found.accepted) for found in run.superseded] == [("detection", second.revisions["detection"])]


def test_what_a_person_reads(table: Table) -> None:
    def said(*options: str) -> str:
        result = CliRunner().invoke(app, ["lineage", *options])
        assert result.exit_code == 0, result.output
        return result.output

    assert "0 of 0 trained runs" in said()
    first = label(table)
    made = train(table, 1, first)
    assert "0 of 1 trained runs used superseded labels, 1 did not" in said()
    second = label(table, depth="blocks:depth-r2", accept="immediate")
    text = said("--expert", "depth", "--table", table.uri)
    assert made.run_id in text
    assert (
        f"{first.revisions['depth']} is superseded by {second.revisions['depth']}: 24 rows of its tag had it, none has it any more" in text
    )
    assert "0 of 1" in said("--expert", "detection")
    [run] = json.loads(CliRunner().invoke(app, ["lineage", "--json"]).stdout)["runs"]
    assert [one["used"] for one in run["superseded"]] == [first.revisions["depth"]]
    assert "MLflow could not be asked" in text
