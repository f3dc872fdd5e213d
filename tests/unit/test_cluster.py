"""DaskExecutor against what can happen to a piece of work: it finishes, raises, has a bad moment, or takes its worker with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mtv_core.compute import ComputeConfig
from mtv_core.executor import SerialExecutor
from tasks import cluster

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def piece(item: tuple[str, str]) -> str:
    """Do what the item says; the second field is a folder or a name."""
    verb, where = item
    if verb == "die":
        os._exit(9)
    if verb == "raise":
        raise ValueError(f"no {where} here")
    if verb == "flaky":
        mark = Path(where)
        if not mark.exists():
            mark.touch()
            raise ConnectionResetError("the store hung up")
    if verb == "missing":
        with Path(where).open("a") as file:
            file.write("x")
        raise FileNotFoundError(where)
    return f"{verb} {where}"


@pytest.fixture(scope="module")
def executor() -> Iterator[cluster.DaskExecutor]:
    with cluster.connect(ComputeConfig(workers=2, memory_limit="1GiB")) as executor:
        yield executor


def test_same_outcomes_as_the_serial_executor(executor: cluster.DaskExecutor) -> None:
    items = [("raise" if index % 7 == 3 else "do", str(index)) for index in range(60)]
    slow = {o.item: (o.result, str(o.error)) for o in SerialExecutor().map(piece, items)}
    outcomes = list(executor.map(piece, items))
    assert len(outcomes) == len(items)
    assert {o.item: (o.result, str(o.error)) for o in outcomes} == slow
    assert {type(o.error) for o in outcomes} == {ValueError, type(None)}


def test_a_killer_is_named_and_the_others_finish(executor: cluster.DaskExecutor) -> None:
    items = [("do", str(index)) for index in range(12)]
    items.insert(4, ("die", "x"))
    outcomes = list(executor.map(piece, items))
    assert [o.item for o in outcomes if o.killed] == [("die", "x")]
    assert sorted(o.item for o in outcomes) == sorted(items)
    assert all(o.result == f"do {o.item[1]}" for o in outcomes if not o.killed)


def test_a_bad_moment_is_tried_again_and_a_missing_file_is_not(executor: cluster.DaskExecutor, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    outcomes = list(executor.map(piece, [("flaky", str(tmp_path / "mark")), ("missing", str(missing))]))
    by_verb = {o.item[0]: o for o in outcomes}
    assert by_verb["flaky"].error is None
    assert isinstance(by_verb["missing"].error, FileNotFoundError)
    assert missing.read_text() == "x"


def test_in_flight_futures_are_bounded(executor: cluster.DaskExecutor) -> None:
    iterator = executor.map(piece, [("do", str(index)) for index in range(1000)])
    next(iterator)
    assert len(executor.client.futures) <= executor._window() + 1
    iterator.close()
    assert len(executor.client.futures) <= executor._window() + 1


def test_a_resource_nobody_offers_is_refused_instead_of_waited_for(executor: cluster.DaskExecutor) -> None:
    with pytest.raises(ValueError, match="GPU=1"):
        list(executor.map(piece, [("do", "x")], resources={"GPU": 1}))


def test_no_scheduler_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 2)
    with pytest.raises(ConnectionError, match="no Dask scheduler answers"), cluster.connect(ComputeConfig(scheduler="tcp://127.0.0.1:1")):
        pass


def _children() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())}


def test_no_worker_is_left_after_an_exception() -> None:
    before = _children()

    def stage() -> None:
        with cluster.connect(ComputeConfig(workers=1, memory_limit="1GiB")) as executor:
            assert len(_children() - before) == 1
            executor.client.submit(time.sleep, 60, pure=False)
            raise RuntimeError("of the stage")

    with pytest.raises(RuntimeError, match="of the stage"):
        stage()
    assert not _children() - before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_is_left_after_a_signal(number: int, tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "from mtv_core.compute import ComputeConfig\n"
        "from tasks import cluster\n"
        "def stop(*_):\n    raise SystemExit(3)\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, stop)\n"
        "    with cluster.connect(ComputeConfig(workers=1, memory_limit='1GiB')) as executor:\n"
        "        print('ready', flush=True)\n"
        "        list(executor.map(time.sleep, [60]))\n"
    )
    path = tmp_path / "stage.py"
    path.write_text(script)
    command = [sys.executable, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        family = psutil.Process(child.pid).children(recursive=True)
        assert family
        child.send_signal(number)
        child.wait(30)
        _, alive = psutil.wait_procs(family, timeout=15)
        assert not alive


def environment_of(item: str) -> str:
    return os.environ.get(item, "")


def test_the_environment_is_given_back_and_workers_keep_freed_memory() -> None:
    before = dict(os.environ)
    with cluster.connect(ComputeConfig(workers=1, memory_limit="1GiB")) as executor:
        (outcome,) = executor.map(environment_of, ["MALLOC_TRIM_THRESHOLD_"])
    assert int(outcome.result or 0) >= 1 << 30
    assert dict(os.environ) == before


def test_a_stage_without_work_starts_no_cluster() -> None:
    with cluster.on_demand(ComputeConfig(scheduler="tcp://127.0.0.1:9")) as lazy:
        assert list(lazy.map(piece, [])) == []
        with pytest.raises(ConnectionError, match="no Dask scheduler"):
            list(lazy.map(piece, [("do", "x")]))


def test_a_cluster_on_demand_is_started_once_and_ends_with_the_block() -> None:
    me = psutil.Process()
    with cluster.on_demand(ComputeConfig(workers=1, memory_limit="1GiB")) as lazy:
        before = {child.pid for child in me.children(recursive=True)}
        for name in "ab":
            assert [outcome.result for outcome in lazy.map(piece, [("do", name)])] == [f"do {name}"]
        assert lazy.executor is not None
        started = [child for child in me.children(recursive=True) if child.pid not in before]
        assert len(lazy.executor.client.scheduler_info()["workers"]) == 1
    assert not any(
        child.is_running() and child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline()) for child in started
    )
