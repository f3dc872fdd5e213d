"""kill -9 during labelling: the next run ends with exactly the labels of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from label_tables import QuickExpert, columns, config, make_table, quick_experts, rejects, sample_rows

from mtv_core import experts, labelling
from mtv_core.data.schema import SAMPLES
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

FULL = os.environ.get("MTV_FAULT_ROUNDS") == "full"
CHILD = Path(__file__).with_name("label_child.py")
# Every place at which a run may die, and how often it is passed: 14 fragments (7 an expert) in groups of 4 make 4 commits.
POINTS = {"label.accepted": 2, "label.staged": 14, "label.before_commit": 4, "label.replaced": 8, "label.committed": 4}
SHORT = ["label.accepted", "label.staged:6", "label.before_commit:2", "label.replaced"]  # "label.committed" is that of the relabelling
GROUPS = config(commit_fragments=4, commit_seconds=1e9)


quick = pytest.fixture(autouse=True)(quick_experts)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 7 fragments, one picture of which cannot be read."""
    table = make_table(tmp_path_factory.mktemp("tables") / "table", count=30, rows_per_fragment=5)
    [broken] = sample_rows(1, first=30).to_pylist()
    table.append(pa.Table.from_pylist([{**broken, "image": broken["image"][:150]}], schema=SAMPLES))
    return Path(table.uri)


@pytest.fixture(scope="module")
def undisturbed(unlabelled: Path) -> Table:
    """The truth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "load", QuickExpert)
        return finish(Path(shutil.copytree(unlabelled, unlabelled.parent / "undisturbed")))


def finish(folder: Path, label: LabelConfig = GROUPS) -> Table:
    labelling.run(str(folder), label, SerialExecutor())
    return Table.open(str(folder))


def kill(folder: Path, fault: str = "", after: float | None = None, label: LabelConfig = GROUPS, may_finish: bool = False) -> None:
    """Run the child until it dies at a fault point, or kill it some seconds after it has begun."""
    job = folder.parent / "config.json"
    job.write_text(label.model_dump_json())
    environment = {**os.environ, "MTV_FAULT": fault, "PYTHONPATH": str(CHILD.parent.parent)}
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), str(job)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if after is not None:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(after)
        child.kill()
    _, errors = child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL or (child.returncode == 0 and may_finish), errors


def assert_equal(table: Table, undisturbed: Table) -> None:
    wanted, found = columns(undisturbed), columns(table)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name] == wanted[name], name
    assert rejects(table) == rejects(undisturbed)
    assert table.label_counts() == undisturbed.label_counts()
    assert len(table.tags()) == len(undisturbed.tags())
    assert not list((Path(table.uri) / "_staging" / "labels").rglob("*.json"))
    assert not list((Path(table.uri) / "_experts").glob(".*"))


@pytest.mark.parametrize("fault", SHORT)
def test_killed_at_a_fault_point(fault: str, unlabelled: Path, undisturbed: Table, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unlabelled, tmp_path / "killed"))
    kill(folder, fault)
    assert_equal(finish(folder), undisturbed)


def test_killed_while_relabelling(unlabelled: Path, tmp_path: Path) -> None:
    second = config("blocks:depth-r2", accept="immediate", commit_fragments=2)
    folder = Path(shutil.copytree(unlabelled, tmp_path / "killed"))
    first = finish(folder)
    tag, before = first.tags(), columns(first)
    kill(folder, "label.committed:2", label=second)
    halfway = columns(first)
    assert len(set(halfway["depth_rev"])) == 2  # some fragments are new, the others old, none in between
    assert halfway["boxes"] == before["boxes"]
    table = finish(folder, second)
    twice = Path(shutil.copytree(unlabelled, tmp_path / "twice"))
    finish(twice)
    assert_equal(table, finish(twice, second))
    assert tag.items() <= table.tags().items()


@pytest.mark.skipif(not FULL, reason="50 rounds take minutes: MTV_FAULT_ROUNDS=full, as `make faults` does")
@pytest.mark.parametrize("seed", range(50))
def test_killed_anywhere(seed: int, unlabelled: Path, undisturbed: Table, tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = Path(shutil.copytree(unlabelled, tmp_path / "killed"))
    for _ in range(chance.choice([1, 1, 2, 3])):  # a killed run's successor is killed too
        if chance.random() < 0.5:
            kill(folder, after=chance.uniform(0.0, 1.5), may_finish=True)
        else:
            point = chance.choice(list(POINTS))
            kill(folder, f"{point}:{chance.randint(1, POINTS[point])}", may_finish=True)
    assert_equal(finish(folder), undisturbed)
