"""kill -9 during ingest: the next run ends with exactly the rows, refusals and ledger of a run that nobody disturbed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ingest_child import run
from tars import picture, sample, shards, tar

from mtv_core.executor import SerialExecutor
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

FULL = os.environ.get("MTV_FAULT_ROUNDS") == "full"
CHILD = Path(__file__).with_name("ingest_child.py")
ROOT = CHILD.parents[2]
# Every place at which a run may die, and how often it is passed there: 5 shards, 4 fragments.
POINTS = {
    "ingest.staged": 5,
    "ingest.shard_done": 5,
    "ingest.dedup": 1,
    "ingest.fragment_written": 4,
    "ingest.rejects_committed": 1,
    "ingest.samples_committed": 1,
    "ingest.ledger_committed": 1,
}
State = dict[str, Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 good samples; duplicates, a broken image, a missing caption, a cut tar, a shard of refusals only."""
    folder = tmp_path_factory.mktemp("source")
    shards(folder, 2, 10)
    tar(
        folder / "2.tar",
        [*sample(3), *sample(30), ("x.jpg", picture(40)[:150]), ("x.txt", b"x"), *(m for n in range(31, 36) for m in sample(n))],
    )
    cut = tar(folder / "3.tar", [m for n in range(50, 54) for m in sample(n)])
    cut.write_bytes(cut.read_bytes()[:-11_000])
    tar(folder / "4.tar", [("y.jpg", picture(41)), *sample(5, "again")])
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table that has rows already, two of which the source brings again."""
    folder = tmp_path_factory.mktemp("base")
    shards(folder / "in", 1, 4, first=30)
    run(str(folder / "in"), str(folder / "table"), SerialExecutor())
    return folder / "table"


def state(table: Path) -> State:
    """All that can be seen, rows in their order; and that nothing is left of a killed run."""
    opened = Table.open(str(table))
    dataset = opened.dataset()
    named = {file.path for fragment in dataset.get_fragments() for file in fragment.data_files()}
    # A file that Lance had just begun (.tmp…) is removed later, when surely nobody writes it any more.
    assert {path.name for path in (table / "samples.lance" / "data").glob("*.lance")} == named
    assert list((table / "_staging").iterdir()) == []
    return {
        "rows": dataset.to_table().to_pylist(),
        "fragments": [fragment.physical_rows for fragment in dataset.get_fragments()],
        "rejects": sorted(opened.rejects.read().to_pylist(), key=lambda r: (r["shard"], r["key"])),
        "ledger": sorted(opened.ledger.read().to_pylist(), key=lambda r: r["shard"]),
    }


@pytest.fixture(scope="module")
def undisturbed(source: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    """The truth, for a new table and for one that grows."""
    new, grown = (tmp_path_factory.mktemp("undisturbed") / name for name in ("new", "grown"))
    shutil.copytree(base, grown)
    for table in (new, grown):
        run(str(source), str(table), SerialExecutor())
    states = {"new": state(new), "grown": state(grown)}
    assert len(states["new"]["rows"]) == 28
    assert len(states["grown"]["rows"]) == 28
    assert [reject["error"] for reject in states["new"]["rejects"]].count("Duplicate") == 2
    assert len(states["new"]["ledger"]) == 5
    return states


def child(source: Path, table: Path, executor: str, **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(source), str(table), executor],
        env=os.environ | environment | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def die(source: Path, table: Path, executor: str, **environment: str) -> None:
    with child(source, table, executor, **environment) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, errors


def seen(table: Path) -> None:
    """Whatever the moment: no table, or one whose rows are whole and unique."""
    opened = Table.create_or_open(str(table))
    if opened.exists():
        uids = opened.dataset().to_table()["uid"].to_pylist()
        assert len(set(uids)) == len(uids) in (4, 28)


@pytest.mark.parametrize("kind", ["new", "grown"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point: str, kind: str, source: Path, base: Path, undisturbed: dict[str, State], tmp_path: Path) -> None:
    number = {"new": POINTS[point], "grown": 1}[kind]
    if not FULL and kind == "grown" and point not in ("ingest.fragment_written", "ingest.samples_committed"):
        pytest.skip("long form only: make faults")
    table = tmp_path / "table"
    if kind == "grown":
        shutil.copytree(base, table)
    die(source, table, "serial", MTV_FAULT=f"{point}:{number}")
    seen(table)
    run(str(source), str(table), SerialExecutor())
    assert state(table) == undisturbed[kind]
    reports = {entry["ingest_id"] for entry in undisturbed[kind]["ledger"]}
    assert all((table / "reports" / one / "report.html").exists() for one in reports)
    assert not list(table.glob("reports/*/begun.json"))
    assert f"{len(undisturbed[kind]['rows'])} " in (table / "README.md").read_text()


def test_killed_again_and_again(source: Path, undisturbed: dict[str, State], tmp_path: Path) -> None:
    """Each run gets one step further than the last."""
    table = tmp_path / "table"
    steps = [
        "ingest.staged:2",
        "ingest.fragment_written:2",
        "ingest.rejects_committed",
        "ingest.samples_committed",
        "ingest.ledger_committed",
    ]
    for step in steps if FULL else steps[1:4:2]:
        die(source, table, "serial", MTV_FAULT=step)
        seen(table)
    run(str(source), str(table), SerialExecutor())
    assert state(table) == undisturbed["new"]


@pytest.mark.parametrize("point", ["ingest.staged", "ingest.fragment_written"])
def test_a_killed_worker_is_made_up_for(point: str, source: Path, undisturbed: dict[str, State], tmp_path: Path) -> None:
    if not FULL and point == "ingest.fragment_written":
        pytest.skip("long form only: make faults")
    with child(source, tmp_path / "table", "dask", MTV_FAULT=point, MTV_FAULT_ONCE=str(tmp_path / "died")) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert (tmp_path / "died").exists()
    opened = Table.open(str(tmp_path / "table"))
    assert opened.dataset().to_table().to_pylist() == undisturbed["new"]["rows"]
    assert sorted(opened.ledger.read().to_pylist(), key=lambda r: r["shard"]) == undisturbed["new"]["ledger"]


def test_killed_with_its_workers_at_work(source: Path, undisturbed: dict[str, State], tmp_path: Path) -> None:
    """The workers outlive the driver for a moment, and the next run does not mind."""
    table = tmp_path / "table"
    with child(source, table, "dask") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        deadline = time.monotonic() + 60
        while not any((table / "_staging" / "ingest").glob("*/*/shard.json")) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
    run(str(source), str(table), SerialExecutor())
    psutil.wait_procs(workers, timeout=30)
    opened = Table.open(str(table))
    assert opened.dataset().to_table().to_pylist() == undisturbed["new"]["rows"]


def test_two_ingests_at_once(source: Path, undisturbed: dict[str, State], tmp_path: Path) -> None:
    """Two processes bring overlapping sources: every picture once, whoever was first."""
    other = tmp_path / "other"
    shards(other, 3, 10, first=5)  # 5 … 34: some are in the source
    table = tmp_path / "table"
    with child(source, table, "serial") as one, child(other, table, "serial") as two:
        for process in (one, two):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    found = state(table)
    images = [row["sha256"] for row in found["rows"]]
    assert len(images) == len(set(images))
    wanted = {row["sha256"] for row in undisturbed["new"]["rows"]} | {hashlib.sha256(picture(n)).hexdigest() for n in range(5, 35)}
    assert set(images) == wanted
    counted = [entry["rows_in"] == entry["rows_out"] + entry["rows_rejected"] for entry in found["ledger"]]
    assert counted == [True] * 8


def test_the_scheduler_dies(source: Path, undisturbed: dict[str, State], tmp_path: Path) -> None:
    """The driver says so and ends; the next run ends as if nothing had been."""
    place = tmp_path / "scheduler.json"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*command, "--no-show", "--scheduler-file", str(place)], **quiet)
    started = [scheduler]
    try:
        deadline = time.monotonic() + 60
        while not place.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        address = json.loads(place.read_text())["address"]
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        started.append(subprocess.Popen([*worker, "--no-nanny", "--local-directory", str(tmp_path)], **quiet))
        table = tmp_path / "table"
        with child(source, table, address) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            while not any((table / "_staging" / "ingest").glob("*/*/shard.json")) and time.monotonic() < deadline:
                time.sleep(0.002)
            scheduler.kill()
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 1, errors
            assert "scheduler" in errors
    finally:
        for one in started:
            one.kill()
            one.wait()
    run(str(source), str(table), SerialExecutor())
    assert state(table) == undisturbed["new"]


BATCHES = 10
KILLS = 50 if FULL else 4


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sources that come one after the other: good samples, and some of every kind that is refused, of earlier batches too."""
    folders = []
    for batch in range(BATCHES if FULL else 2):
        folder, first = tmp_path_factory.mktemp("batch"), 100 * (batch + 1)
        shards(folder, 3, 9, first=first)
        large, copy = (picture(first + 1, (240, 160), quality=quality) for quality in (90, 75))  # other bytes, the same picture
        bad = [("x.jpg", picture(first + 90)[:150]), ("x.txt", b"x"), ("y.jpg", picture(first + 91))]
        bad += [("v.jpg", large), ("v.txt", b"large"), ("z.jpg", copy), ("z.txt", b"a copy")]
        tar(folder / "3.tar", [*sample(first + 2, "again"), *bad, *sample(max(100, first - 98), "older"), *sample(first + 50)])
        cut = tar(folder / "4.tar", [m for n in range(first + 60, first + 66) for m in sample(n)])
        cut.write_bytes(cut.read_bytes()[:-11_000])
        folders.append(folder)
    return folders


def kill_something(process: subprocess.Popen[str], what: str) -> None:
    """End the driver, one of its workers, or all of them at once, as when the machine loses power."""
    driver = psutil.Process(process.pid)
    family = driver.children(recursive=True)
    workers = [one for one in family if "spawn_main" in " ".join(one.cmdline())] if what == "worker" else []
    for victim in [workers[0]] if workers else [driver] if what != "machine" else [driver, *family]:
        victim.kill()


def test_killed_again_and_again_while_batches_come(batches: list[Path], tmp_path: Path) -> None:
    """Drivers, workers and whole machines, at random moments, all against one table."""
    undisturbed = tmp_path / "undisturbed"
    began = time.monotonic()
    for batch in batches:
        run(str(batch), str(undisturbed), SerialExecutor())
    one = (time.monotonic() - began) / len(batches)
    expected = state(undisturbed)
    reasons = {reject["error"] for reject in expected["rejects"]}
    assert reasons == {"BrokenImage", "NoCaption", "Duplicate", "NearDuplicate", "TruncatedShard"}

    seed = random.randrange(2**32)
    chance = random.Random(seed)
    table = tmp_path / "table"
    kinds: list[str] = []
    durations = {"serial": one, "dask": one}  # s from being ready to the end, learnt on the way
    for batch in batches:
        for _ in range(KILLS // len(batches)):
            what = chance.choice(["driver", "worker", "machine"])
            executor = "dask" if what == "worker" else chance.choice(["serial", "dask"])
            with child(batch, table, executor) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                moment, began = chance.uniform(0, durations[executor]), time.monotonic()
                try:
                    process.wait(moment)
                    durations[executor] = max(0.2, time.monotonic() - began)  # nothing was left to kill; the next one comes earlier
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        kill_something(process, what)
                    kinds.append(what)
                _, errors = process.communicate(timeout=180)
                assert process.returncode in (0, -signal.SIGKILL), errors
        run(str(batch), str(table), SerialExecutor())
    assert len(kinds) > (KILLS // 3 if FULL else 0), kinds  # of four, some may come too late
    again = state(table)
    for part, content in expected.items():
        assert again[part] == content, f"seed {seed}: {part} after {kinds}"


def test_killed_at_any_moment(source: Path, undisturbed: dict[str, State], tmp_path: Path) -> None:
    with child(source, tmp_path / "timed", "serial") as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        assert process.wait(120) == 0
        duration = time.monotonic() - started
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    table = tmp_path / "table"
    for round_ in range(50 if FULL else 3):
        with child(source, table, "serial") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0, duration))
            process.kill()
        seen(table)
        if round_ % 3 == 2:  # up to three kills of one ingest
            run(str(source), str(table), SerialExecutor())
            assert state(table) == undisturbed["new"], f"seed {seed}, round {round_}"
            shutil.rmtree(table)
