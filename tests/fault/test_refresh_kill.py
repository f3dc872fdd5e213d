"""kill -9 during a refresh: run again, it ends as one that nobody disturbed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import refreshes
from beside import FULL
from canary_experts import seeing_experts
from label_tables import columns, config, make_table

from mtv_core import labelling, labelling_worker
from mtv_core.executor import SerialExecutor
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

LABEL = config("blocks:depth-r2", commit_fragments=2, commit_seconds=1e9)
# In the order in which a refresh passes them. Three fragments of depth in groups of two make two commits.
POINTS = [
    "canary.tried", "label.accepted", "refresh.accepted", "label.staged:2", "label.before_commit", "label.replaced", "label.committed",
]  # fmt: skip
SHORT = ["canary.tried", "refresh.accepted", "label.replaced"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows in 3 fragments, labelled by the first revisions."""
    table = make_table(tmp_path_factory.mktemp("tables") / "table")
    with pytest.MonkeyPatch.context() as patch:
        seeing_experts(patch)
        labelling.run(table.uri, config(), SerialExecutor())
    labelling_worker.loaded.cache_clear()
    return Path(table.uri)


@pytest.fixture(scope="module")
def undisturbed(labelled: Path) -> Table:
    """The truth: depth of the second revision."""
    folder = Path(shutil.copytree(labelled, labelled.parent / "undisturbed"))
    assert refreshed(folder) == 0
    return Table.open(str(folder))


def refreshed(folder: Path, fault: str = "", broken: str = "") -> int:
    """Exit code of `mtv refresh`, in a process of its own if that is to die."""
    if not fault:
        return refreshes.undisturbed(folder, LABEL, broken)
    with refreshes.child(folder, LABEL, fault, broken) as child:
        said, errors = child.communicate(timeout=180)
    assert child.returncode == -signal.SIGKILL, (said, errors)
    return child.returncode


@pytest.mark.parametrize("fault", POINTS if FULL else SHORT)
def test_killed_at_a_fault_point(fault: str, labelled: Path, undisturbed: Table, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(labelled, tmp_path / "killed"))
    before = columns(Table.open(str(folder)))
    assert refreshed(folder, fault) == -signal.SIGKILL
    table = Table.open(str(folder))
    halfway, truth, second = columns(table), columns(undisturbed), undisturbed.accepted()["depth"].revision
    assert {name for name in before if halfway[name] != before[name]} <= {"depth", "depth_rev"}
    for i, revision in enumerate(halfway["depth_rev"]):
        assert halfway["depth"][i] == (truth if revision == second else before)["depth"][i]
    if fault == "canary.tried":
        assert halfway == before
        assert table.accepted()["depth"].revision != second
    assert refreshed(folder) == 0
    assert columns(table) == truth
    assert table.accepted()["depth"].revision == second
    assert (table.label_counts(), len(table.tags())) == (undisturbed.label_counts(), len(undisturbed.tags()))
    assert not list((folder / "_staging" / "labels").rglob("*.json"))
    assert not list((folder / "_experts").glob(".*"))


def test_a_broken_revision_is_refused_after_a_kill_too(labelled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(labelled, tmp_path / "killed"))
    table = Table.open(str(folder))
    before, version, tags = columns(table), table.version, table.tags()
    assert refreshed(folder, "canary.tried", broken="noise") == -signal.SIGKILL
    assert table.rejected() == {}
    assert refreshed(folder, broken="noise") == 1
    assert [one.revision for one in table.rejected()["depth"]] != [table.accepted()["depth"].revision]
    assert (columns(table), table.version, table.tags()) == (before, version, tags)
    assert refreshed(folder, broken="noise") == 0
