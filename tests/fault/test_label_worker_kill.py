"""kill -9 of Dask workers during labelling: others do their fragments, and the run ends as one in which nobody died."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from beside import FULL, leaves_nothing
from label_tables import columns, config, make_table, quick_experts, rejects
from slow_labels import Slowly

from mtv_core import labelling
from mtv_core.compute import ComputeConfig
from mtv_core.executor import SerialExecutor
from mtv_core.store.table import Table
from tasks.cluster import DaskExecutor, connect

pytestmark = pytest.mark.fault

LABEL = config(commit_fragments=4, commit_seconds=1e9)
KILLS = 20 if FULL else 1
ROWS = 40 if FULL else 25
KILLS_A_RUN = 2  # a fragment whose workers died three times counts as what kills them

quick = pytest.fixture(autouse=True)(quick_experts)


@contextlib.contextmanager
def killing(executor: DaskExecutor, table: Table, wanted: int, chance: random.Random) -> Iterator[list[psutil.Process]]:
    """Kill workers that are labelling, at random moments; yields those that died of it."""
    died: list[psutil.Process] = []
    done = threading.Event()

    def at_work() -> psutil.Process | None:
        """The process of one that has a fragment in its hands, while labels are being written."""
        if not any((Path(table.samples_uri) / "data").glob("label-*")):
            return None
        busy = {address for address, keys in executor.client.processing().items() if keys}
        nannies = [nanny for nanny in executor.client.cluster.workers.values() if nanny.worker_address in busy]
        pid = chance.choice(nannies).pid if nannies else None
        return psutil.Process(pid) if pid is not None else None

    def kill() -> None:
        while len(died) < wanted and not done.is_set():
            with contextlib.suppress(psutil.NoSuchProcess):  # the one before this is known to have died only now
                worker = at_work()
                if worker is not None and not done.wait(chance.uniform(0, 0.4)) and worker not in died:
                    worker.kill()
                    died.append(worker)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield died
    finally:
        done.set()
        thread.join()


def _different(found: dict[str, list[object]], expected: dict[str, list[object]], name: str) -> list[tuple[object, str, str]]:
    """(uid, what is there, what should be) of the rows in which a column differs."""
    rows = zip(found["uid"], found[name], expected[name], strict=True)
    return [(uid, str(one)[:99], str(other)[:99]) for uid, one, other in rows if one != other]


@pytest.mark.skipif(not FULL, reason="a cluster a run: make faults")
def test_killed_workers_are_made_up_for(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    unlabelled = Path(make_table(tmp_path / "unlabelled", count=ROWS, rows_per_fragment=5).uri)
    truth = Table.open(str(shutil.copytree(unlabelled, tmp_path / "undisturbed")))
    labelling.run(truth.uri, LABEL, SerialExecutor())
    killed = runs = 0
    while killed < KILLS and runs < 3 * KILLS:
        table = Table.open(str(shutil.copytree(unlabelled, tmp_path / "killed")))
        with connect(ComputeConfig(workers=2, memory_limit="1GiB")) as executor:
            with killing(executor, table, min(KILLS_A_RUN, KILLS - killed), chance) as died:
                result = labelling.run(table.uri, LABEL, Slowly(executor))
            assert not [worker for worker in died if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
        found, expected = columns(table), columns(truth)
        wrong = {name: _different(found, expected, name) for name in expected if found[name] != expected[name]}
        assert not wrong, (seed, runs, wrong, rejects(table), result.report)
        assert (rejects(table), table.label_counts(), len(table.tags())) == ([], truth.label_counts(), 1)
        assert (result.report.rows_out, result.report.counts.get("transient", 0)) == (2 * ROWS, 0)
        leaves_nothing(table)
        shutil.rmtree(table.uri)
        killed, runs = killed + len(died), runs + 1
    assert killed == KILLS, f"{killed} kills of {KILLS} in {runs} runs"
    print(f"{killed} workers killed in {runs} runs")
