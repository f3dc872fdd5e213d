"""The life of a run and the book that is kept of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pyarrow as pa
import pytest

from mtv_core import runs
from mtv_core.config import resolve_config
from mtv_core.report import StageRef
from mtv_core.runs import RunRecord, RunStatus, StageRecord
from tasks import run as run_module
from tasks.run import open_run, resumable

DEAD = 2**22 + 1  # above the largest pid


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Stopped(BaseException):
    """Stands for Prefect's TerminationSignal, which is told by its name."""


Stopped.__name__ = "TerminationSignal"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, RunStatus.COMPLETED, ""),
        (ValueError("no such\n  word [/x]"), RunStatus.FAILED, "no such word [/x]"),
        (KeyError("x"), RunStatus.FAILED, "KeyError: 'x'"),
        (KeyboardInterrupt(), RunStatus.CANCELLED, "stopped from outside"),
        (Stopped(), RunStatus.CANCELLED, "stopped from outside"),
    ],
)
def test_how_a_run_ended_is_recorded(error: BaseException | None, status: RunStatus, said: str) -> None:
    resolved = resolve_config("demo")
    if error is None:
        with open_run(resolved, "test") as run:
            assert runs.load(run.run_id).status is RunStatus.RUNNING
    else:
        with pytest.raises(type(error)), open_run(resolved, "test") as run:
            raise error
    record = runs.load(run.run_id)
    assert (record.status, record.message) == (status, said)
    assert record.ended is not None
    assert (record.folder / "config.yaml").is_file()


class Suspended(BaseException):
    """Stands for Prefect's signal, which is told by its name."""


Suspended.__name__ = "Pause"


def test_a_run_that_waits_for_a_person_has_not_ended_and_is_no_crash() -> None:
    with contextlib.suppress(Suspended), open_run(resolve_config("demo"), "test") as run:
        run.record.message = "waits for an answer"
        raise Suspended
    record = runs.load(run.run_id)
    record.pid = DEAD
    assert (runs.effective_status(record), record.message, record.ended) == (RunStatus.SUSPENDED, "waits for an answer", None)


def test_stages_are_told_apart_by_who_did_the_work() -> None:
    with open_run(resolve_config("demo"), "test") as run:
        run.stage(
            "label", "k", lambda: StageRef(stage="label", run_id=run.run_id, uri="t", version=3, tag="mtv-1", revisions={"depth": "r"})
        )
        run.stage("train", "k", lambda: StageRef(stage="train", run_id="earlier", uri="m", version=3, tag="mtv-1"))
        with pytest.raises(OSError, match="full"):
            run.stage("export", "k", lambda: (_ for _ in ()).throw(OSError(28, "full")))
    record = runs.load(run.run_id)
    assert {name: stage.status for name, stage in record.stages.items()} == {"label": "ran", "train": "reused", "export": "failed"}
    assert (record.table.uri, record.table.version, record.table.tag, record.experts) == (run.table, 3, "mtv-1", {"depth": "r"})


def record(run_id: str, key: str = "k", *, done: bool = False, checkpoint: bool = True, pid: int = DEAD) -> RunRecord:
    made = RunRecord(run_id=run_id, pid=pid)
    ref = StageRef(stage="train", run_id=run_id, uri="m") if done else None
    made.stages["train"] = StageRecord(key=key, ref=ref)
    made.save()
    if checkpoint:
        (made.folder / "checkpoints" / "step-1").mkdir(parents=True)
    return made


def left(made: RunRecord) -> bool:
    return (made.folder / "checkpoints").is_dir()


def test_a_run_that_died_early_does_not_hide_the_checkpoints_before_it() -> None:
    record("1")
    record("2", key="another")
    record("3", done=True)
    record("4", checkpoint=False)
    record("5", pid=os.getpid())  # still at work
    record("6")
    found = resumable("train", "k", left, but="6")
    assert found is not None
    assert found.run_id == "1"
    assert resumable("train", "none", left, but="6") is None


def test_a_killed_run_is_crashed_and_a_living_one_is_not() -> None:
    assert runs.effective_status(record("1")) is RunStatus.CRASHED
    assert runs.effective_status(record("2", pid=os.getpid())) is RunStatus.RUNNING
    stranger = record("3", pid=os.getpid()).model_copy(update={"process_started": 1.0})
    assert runs.effective_status(stranger) is RunStatus.CRASHED


def test_messages_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    made = RunRecord(run_id="1", status=RunStatus.FAILED, message="[rank 0] error: … [/data/x]")
    made.save()
    for command in (["runs"], ["runs", "1"], ["config", "show", "--sources", "/data/[a-z]*.tar"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert ("/data/[a-z]*.tar" if command[0] == "config" else "[rank 0] error: … [/data/x]") in result.output


def test_a_table_made_again_has_another_tag(tmp_path: Path) -> None:
    import shutil

    from mtv_core.data.schema import SAMPLES
    from mtv_core.store.table import Table

    row = {field.name: {"string": "x", "binary": b"x", "int32": 1, "uint64": 1}.get(str(field.type), []) for field in SAMPLES}
    tags = []
    for _ in range(2):
        table = Table.create_or_open(str(tmp_path / "t"))
        table.append(pa.Table.from_pylist([row], schema=SAMPLES))
        tags.append(table.tag({}))
        assert table.tag({}) == tags[-1]
        shutil.rmtree(tmp_path / "t")
    assert tags[0] != tags[1]


def test_prefect_ids_are_those_of_the_flow_run() -> None:
    assert run_module._prefect_ids() == (None, None)
