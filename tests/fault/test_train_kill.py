"""A training that was killed and run again ends with the steps, rows of metrics and weights, bit by bit, of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import training_rank
from training_world import make_table, tiny_config

from mtv_core.training import launch, metrics
from mtv_core.training.job import RESULT, TrainJob, TrainResult

pytestmark = pytest.mark.fault

FULL = os.environ.get("MTV_FAULT_ROUNDS") == "full"
OF_TIME = {"samples_per_second", "loader_wait", "eta_seconds"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of the fork server and all that comes from it
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    folder = tmp_path_factory.mktemp("train")
    uri, version, tag = make_table(folder, 21, held_out=2)
    return TrainJob(folder=folder / "undisturbed", table_uri=uri, version=version, tag=tag, config=tiny_config())


def outcome(job: TrainJob) -> dict[str, Any]:
    """What must not depend on kills."""
    result = TrainResult.model_validate_json((job.folder / RESULT).read_text())
    rows = [{name: value for name, value in row.items() if name not in OF_TIME} for row in metrics.read(job.folder)]
    weights = {name: (job.folder / name / "model.safetensors").read_bytes() for name in ("model", "init")}
    left = {path.name for path in job.folder.iterdir() if not path.name.startswith(".train")}
    kept = sorted(path.name for path in (job.folder / "checkpoints").iterdir())
    return {"steps": result.steps, "rows": rows, **weights, "checkpoints": kept, "files": left - {"train.log"}}


@pytest.fixture(scope="module")
def undisturbed(base: TrainJob) -> dict[str, Any]:
    assert training_rank.run(base) == [0, 0], (base.folder / "train.log").read_text()
    made = outcome(base)
    assert [row["step"] for row in made["rows"]] == [3, 6, 9, 10]
    assert made["model"] != made["init"]
    return made


def elsewhere(base: TrainJob, folder: Path, **changes: Any) -> TrainJob:
    return base.model_copy(update={"folder": folder / "run", "config": base.config.model_copy(update=changes)})


# The first steps, before any checkpoint, are killed below too, under torchrun.
FAULTS = ["train.step:7", "train.checkpoint_written:2", "train.checkpoint_published:1", "train.finished"]


@pytest.mark.parametrize(
    "fault", FAULTS + FULL * ["train.step:1", "train.step:4", "train.checkpoint_written:1", "train.checkpoint_published:3"]
)
def test_kill_and_run_again(base: TrainJob, undisturbed: dict[str, Any], tmp_path: Path, fault: str) -> None:
    job = elsewhere(base, tmp_path)
    statuses = training_rank.run(job, MTV_FAULT=fault, MTV_FAULT_ONCE=str(tmp_path / "once"))
    assert -signal.SIGKILL in statuses
    assert -1 not in statuses, "the other rank waits for the dead one"
    assert training_rank.run(job) == [0, 0], (job.folder / "train.log").read_text()
    assert outcome(job) == undisturbed


def test_sigterm_saves_the_step_it_is_at(base: TrainJob, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    job = elsewhere(base, tmp_path)
    ranks = training_rank.start(job)
    wait_for(job.folder / "init")  # the first step is about to begin
    os.kill(ranks[1].pid or 0, signal.SIGTERM)  # one is asked, all end
    assert training_rank.end(ranks) == [143, 143]
    saved = max(int(path.name.removeprefix("step-")) for path in (job.folder / "checkpoints").glob("step-*"))
    assert 1 <= saved < 10
    assert training_rank.run(job) == [0, 0]
    assert f"going on from step {saved} of 10" in (job.folder / "train.log").read_text()
    assert outcome(job) == undisturbed


def test_another_run_goes_on_from_its_checkpoints(base: TrainJob, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    first = elsewhere(base, tmp_path)
    assert training_rank.run(first, MTV_FAULT="train.step:7") == [-signal.SIGKILL] * 2
    second = first.model_copy(update={"folder": tmp_path / "second", "resume_from": str(first.folder / "checkpoints")})
    assert training_rank.run(second) == [0, 0], (second.folder / "train.log").read_text()
    assert outcome(second) == undisturbed


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.005)


LAUNCHER = """
import sys
from pathlib import Path
from mtv_core.training import launch
launch.run(launch.TrainJob.model_validate_json(Path(sys.argv[1]).read_text()), lambda rows: print(rows[-1]["step"], flush=True))
"""


def family(launcher: psutil.Process) -> list[psutil.Process]:
    return [launcher, *launcher.children(recursive=True)]


def kill_launcher(job: TrainJob, victim: str, delay: float) -> None:
    """Start a launcher, kill it or one of its processes `delay` seconds after its ranks are up, and see that none of them stays."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "job.json").write_text(job.model_dump_json())
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(job.folder / "job.json")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert launcher.stdout is not None
    with launcher.stdout:
        tree = family(psutil.Process(launcher.pid))
        while len(tree) < 2 + job.config.processes and launcher.poll() is None:
            time.sleep(0.05)
            tree = family(psutil.Process(launcher.pid))
        time.sleep(delay)
        tree = family(psutil.Process(launcher.pid)) if launcher.poll() is None else tree
        {"launcher": tree[0], "agent": tree[1], "rank": tree[-1]}[victim].kill()
        # Ranks die with their agent, the agent with its launcher; a launcher whose agent or rank died ends by itself.
        _, alive = psutil.wait_procs([p for p in tree[1:] if p.is_running()], timeout=20)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        launcher.wait(30)
    (job.folder / "job.json").unlink()


def rounds() -> list[Any]:
    """The short form kills the launcher once; the full one kills whatever, whenever, up to three times."""
    if not FULL:
        return [pytest.param([("launcher", 1.0)], id="launcher")]
    dice = random.Random(os.environ.get("MTV_FAULT_SEED", time.time_ns()))
    kills = [[(dice.choice(("launcher", "agent", "rank")), dice.uniform(0, 12)) for _ in range(dice.randint(1, 3))] for _ in range(20)]
    return [pytest.param(several, id=" ".join(f"{victim}@{delay:.2f}" for victim, delay in several)) for several in kills]


@pytest.mark.parametrize("kills", rounds())
def test_killed_launchers_leave_nothing_and_are_gone_on_from(
    base: TrainJob, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: list[tuple[str, float]]
) -> None:
    before = set(psutil.Process().children(recursive=True))  # the fork server
    job = elsewhere(base, tmp_path, max_restarts=0)
    for victim, delay in kills:
        kill_launcher(job, victim, delay)
    # At last a rank dies on its own, and torchrun starts the ranks again.
    monkeypatch.setenv("MTV_FAULT", "train.step:2")
    monkeypatch.setenv("MTV_FAULT_ONCE", str(tmp_path / "once"))
    rows: list[dict[str, Any]] = []
    result = launch.run(elsewhere(base, tmp_path, max_restarts=1), rows.extend)
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert result.metrics["step"] == 10
    assert outcome(job) == undisturbed
    assert not set(psutil.Process().children(recursive=True)) - before
