"""The launcher leaves no process behind, passes on every row once, and says why a training stopped; preflight says what cannot work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_world import make_table, tiny_config

from mtv_core.training import launch
from mtv_core.training.job import RESULT, TrainJob, TrainResult

# Stands for torchrun: a rank in a session of its own, which ignores SIGTERM where it is told to, and rows of metrics.
AGENT = """
import json, subprocess, sys, time
rank = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == 'deaf' else signal.SIG_DFL);"
    "print('up', flush=True); time.sleep(60)"
)
child = subprocess.Popen([sys.executable, "-c", rank, sys.argv[2]], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
for step in (1, 2):
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({"step": step, "pid": child.pid}) + "\\n")
    time.sleep(0.7)
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    return TrainJob(folder=tmp_path / "run", table_uri="unused", version=1, config=tiny_config())


def stand_in(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(launch, "preflight", lambda job: None)
    monkeypatch.setattr(launch, "command", lambda job: [sys.executable, "-c", *arguments])


class Interrupted(BaseException):
    """What a cancelled run sees."""


def interrupt_at(step: int, rows: list[dict[str, Any]]) -> Callable[[list[dict[str, Any]]], None]:
    def on_metrics(new: list[dict[str, Any]]) -> None:
        rows.extend(new)
        if rows[-1]["step"] >= step:
            raise Interrupted

    return on_metrics


@pytest.mark.parametrize("hearing", ["polite", "deaf"])
def test_nothing_is_left_when_the_caller_is_interrupted(job: TrainJob, monkeypatch: pytest.MonkeyPatch, hearing: str) -> None:
    stand_in(monkeypatch, AGENT, str(job.folder / "metrics.jsonl"), hearing)
    rows: list[dict[str, Any]] = []
    before = set(psutil.Process().children(recursive=True))  # of other tests: resource trackers
    with pytest.raises(Interrupted):
        launch.run(job, interrupt_at(2, rows))
    assert [row["step"] for row in rows] == [1, 2]
    assert not alive(rows[0]["pid"])
    assert not set(psutil.Process().children(recursive=True)) - before


def test_deaf_agents_are_killed_after_their_grace() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
        launch.end_tree(child, grace=0.3)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('[rank 1] error: RuntimeError: Connection closed'); print('[rank 0] error: ValueError: no such word'); raise SystemExit(1)",
         r"exit status 1\): \[rank 0\] error: ValueError: no such word"),
        ("print('      exitcode  : -9 (pid: 1)'); raise SystemExit(1)", "killed by SIGKILL: out of memory, most likely"),
        ("print('something else'); raise SystemExit(3)", r"exit status 3\): \nsomething else"),
        ("print('done, says it')", r"exit status 0"),
    ],
)  # fmt: skip
def test_failures_say_why_and_where_the_log_is(job: TrainJob, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    stand_in(monkeypatch, script)
    job.folder.mkdir()
    (job.folder / "train.log").write_text("[rank 0] error: of an earlier attempt\n")
    with pytest.raises(RuntimeError, match=said) as caught:
        launch.run(job, lambda rows: None)
    assert str(job.folder / "train.log") in str(caught.value)
    assert "earlier attempt" not in str(caught.value)


def test_a_finished_job_is_not_run_again_but_another_is(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "raise SystemExit(1)")
    result = TrainResult(
        steps=10, model_folder=job.folder / "model", baseline_folder=job.folder / "init", metrics={}, seconds=1, fingerprint=job.fingerprint
    )
    for name in ("model", "init"):
        (job.folder / name).mkdir(parents=True)
        (job.folder / name / "model.safetensors").touch()
    (job.folder / RESULT).write_text(result.model_dump_json())
    (job.folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    rows: list[dict[str, Any]] = []
    assert launch.run(job, rows.extend) == result
    assert [row["step"] for row in rows] == [1, 2]
    faster = job.model_copy(update={"config": tiny_config(processes=1, threads=2)})
    assert launch.finished(faster) == result
    other = job.model_copy(update={"config": tiny_config(seed=4)})
    with pytest.raises(RuntimeError):
        launch.run(other, rows.extend)


def test_the_agent_dies_with_whoever_started_it(tmp_path: Path) -> None:
    parent = (
        "import os, subprocess, sys, time\n"
        "rank = 'import os, time; from mtv_core.training.distributed import die_with_parent;'"
        " f' die_with_parent({os.getpid()}); print(os.getpid(), flush=True); time.sleep(60)'\n"
        "subprocess.Popen([sys.executable, '-c', rank], start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        rank = int(process.stdout.readline())
        process.kill()
        process.wait()
    assert gone(rank)


def test_an_orphan_ends_at_once() -> None:
    code = "from mtv_core.training.distributed import die_with_parent; die_with_parent(1 << 30); print('still here')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == b""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def gone(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int, str | None]]:
    return {
        "labelled": make_table(tmp_path_factory.mktemp("labelled"), 12, held_out=2),
        "bare": make_table(tmp_path_factory.mktemp("bare"), 12, labelled=False),
    }


def wanted(table: tuple[str, int, str | None], **changes: Any) -> TrainJob:
    uri, version, tag = table
    return TrainJob(folder=Path("unused"), table_uri=uri, version=version, tag=tag, config=tiny_config(**changes))


def test_preflight_lets_a_good_job_pass(tables: dict[str, tuple[str, int, str | None]]) -> None:
    launch.preflight(wanted(tables["labelled"]))


def test_preflight_refuses_what_cannot_work(tables: dict[str, tuple[str, int, str | None]]) -> None:
    objectives, views, model = (tiny_config().model_dump()[name] for name in ("objectives", "views", "model"))
    labelled, bare = tables["labelled"], tables["bare"]
    no_grounding = objectives | {"grounding": None}
    for job, said in (
        (wanted(labelled, global_batch=12), "10 rows to train on, fewer than one global batch"),
        (wanted(bare), r"train.objectives.grounding is on, but no training row .* label of the detection expert; label first"),
        (wanted(bare, objectives=no_grounding), r"train.objectives.depth is on, but no training row .* depth expert"),
        (wanted(labelled, views=views | {"local_size": 20}), "local_size .20. must be a multiple of the backbone's patch size .8."),
        (wanted(labelled, views=views | {"global_size": 20}), "global_size .20. must be a multiple"),
        (wanted(labelled, model=model | {"image_size": 50}), "image_size .50. must be a multiple of the patch size .8."),
        (wanted(labelled, model=model | {"backbone": "vit_nothing"}), "vit_nothing"),
        (wanted((labelled[0], labelled[1] - 1, labelled[2])), "names version .*, not version"),
    ):
        with pytest.raises(ValueError, match=said):
            launch.preflight(job)
    for job, said in (
        (wanted((labelled[0], labelled[1], "mtv-000000000000")), "no tag 'mtv-000000000000'"),
        (wanted((labelled[0], 99, None)), "99"),
        (wanted((f"{labelled[0]}-gone", 1, None)), "there is no table"),
    ):
        with pytest.raises(FileNotFoundError, match=said):
            launch.preflight(job)


def test_the_environment_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert launch.environment(tiny_config(threads=3))["GLOO_SOCKET_IFNAME"] == "eth7"
    assert launch.environment(tiny_config(threads=3))["OMP_NUM_THREADS"] == "3"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
