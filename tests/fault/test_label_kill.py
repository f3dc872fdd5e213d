"""kill -9 during labelling: the next run ends with exactly the labels of a run that nobody disturbed."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from beside import FULL, Kills, hears, start
from label_tables import QuickExpert, columns, config, make_table, quick_experts, rejects, sample_rows

from mtv_core import experts, labelling
from mtv_core.data.schema import SAMPLES
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

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


def child(folder: Path, fault: str = "", label: LabelConfig = GROUPS) -> subprocess.Popen[str]:
    job = folder.parent / "config.json"
    job.write_text(label.model_dump_json())
    return start("label_child.py", folder, job, MTV_FAULT=fault)


def kill(folder: Path, fault: str, label: LabelConfig = GROUPS, may_finish: bool = False) -> bool:
    """Run the child until it dies at a fault point; whether it did."""
    with child(folder, fault, label) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL or (process.returncode == 0 and may_finish), errors
    return process.returncode != 0


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
    kill(folder, "label.committed:2", second)
    halfway = columns(first)
    assert len(set(halfway["depth_rev"])) == 2  # some fragments are new, the others old, none in between
    assert halfway["boxes"] == before["boxes"]
    table = finish(folder, second)
    twice = Path(shutil.copytree(unlabelled, tmp_path / "twice"))
    finish(twice)
    assert_equal(table, finish(twice, second))
    assert tag.items() <= table.tags().items()


@pytest.mark.skipif(not FULL, reason="50 rounds take minutes: MTV_FAULT_ROUNDS=full, as `make faults` does")
def test_killed_anywhere(unlabelled: Path, undisturbed: Table, tmp_path: Path) -> None:
    kills = Kills(50, duration=1.5, seconds=3000)
    for number in kills.rounds():
        folder = Path(shutil.copytree(unlabelled, tmp_path / "killed"))
        for _ in range(kills.chance.choice([1, 1, 2, 3])):  # a killed run's successor is killed too
            if kills.chance.random() < 0.5:
                with child(folder) as process:
                    hears(process, "ready")
                    kills.strike(process)
            else:
                point = kills.chance.choice(list(POINTS))
                kills.count(kill(folder, f"{point}:{kills.chance.randint(1, POINTS[point])}", may_finish=True))
        print(f"round {number} of {kills}")  # shown where it fails
        assert_equal(finish(folder), undisturbed)
        shutil.rmtree(folder)
