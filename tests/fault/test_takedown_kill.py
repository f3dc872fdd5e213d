"""kill -9 during a takedown: it never says that it is done while something is left, and the next run ends where an undisturbed one does."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import takedown_tables as tables
from takedown_tables import everything, on_disk, row

from mtv_core.store import takedown, takedown_erase, takedown_journal, tombstones
from mtv_core.store.denylist import KEY_VARIABLE, Denylist
from mtv_core.store.table import Table
from mtv_core.store.takedown_request import Request

pytestmark = pytest.mark.fault

FULL = os.environ.get("MTV_FAULT_ROUNDS") == "full"
CHILD = Path(__file__).with_name("takedown_child.py")
ROOT = CHILD.parents[2]
SOURCES = [ROOT / "mtv_core" / "store" / name for name in ("takedown.py", "takedown_erase.py")]
# Every place at which a takedown may die, and how often it is passed: rows in three fragments and refusals in one, 3 tags, 6 reports.
POINTS = {
    "takedown.begun": 1,
    "takedown.denied": 1,
    "takedown.rejects_deleted": 1,
    "takedown.deleted": 1,
    "takedown.rewritten": 3,
    "takedown.compacted": 2,
    "takedown.tombstoned": 3,
    "takedown.untagged": 3,
    "takedown.cleaned": 2,
    "takedown.swept": 6,
    "takedown.verified": 1,
    "takedown.done": 1,
}
GONE = [3, 9, 25, 30]  # 30 has the picture of 3
REQUEST = Request(
    uids=[row(3)["uid"], "ee" * 16], urls=["http://example.org/9.jpg", "https://example.org/900.jpg"], keys=["00003.tar:000001", "x:y"]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ.pop(KEY_VARIABLE, None)
    table, _ = tables.make(tmp_path_factory.mktemp("made") / "table")
    return Path(table.uri)


@pytest.fixture(scope="module")
def undisturbed(made: Path) -> dict[str, Any]:
    """The truth."""
    folder = made.parent / "undisturbed"
    shutil.copytree(made, folder)
    takedown.run(Table.open(str(folder)), REQUEST, "asked by its owner")
    found = state(folder)
    assert len(found["rows"]) == 28
    assert len(found["stones"]) == 3
    assert len(found["tags"]) == 1
    return found


def state(folder: Path) -> dict[str, Any]:
    """All that must not depend on kills; and that nothing is left, in any file."""
    table = Table.open(str(folder))
    assert on_disk(folder, GONE) == []
    assert takedown_journal.pending(table) == []
    assert takedown_erase.strays(table, table.samples_uri) == []
    assert not [path for path in folder.rglob(".*") if ".partial" in path.name or ".tmp" in path.name]
    denied = Denylist.load(table)
    asked = [denied.denies(row(n)["sha256"], row(n)["url"]) for n in range(40)]
    stones = [stone.model_dump(exclude={"when", "takedown", "successor"}) for stone in tombstones.read_all(table)]
    for stone in tombstones.read_all(table):
        assert tombstones.newest(table, stone) in table.tags()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".lance/" not in str(path)}
    return {
        "rows": everything(table),
        "rejects": sorted(table.rejects.read().to_pylist(), key=lambda one: (one["shard"], one["key"])),
        "denied": (len(denied), asked),
        "stones": sorted(stones, key=lambda stone: stone["tag"]),
        "tags": [table.tag_revisions(tag) for tag in table.tags()],
        "versions": len(table.dataset().versions()),
        "files": {name for name in files if not name.startswith(("_takedowns/2", "_takedowns/denied", "_locks"))},
    }


def run(folder: Path, *arguments: str, after: float | None = None, **environment: str) -> int:
    """Run the child to its end, or kill it some seconds after it has begun; the exit code."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    request = folder.parent / "request.json"
    request.write_text(REQUEST.model_dump_json())
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(folder), *(arguments or (str(request),))],
        env=os.environ | environment | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if after is not None:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(after)
        child.kill()
    _, errors = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), errors
    return child.returncode


def seen(folder: Path) -> None:
    """After a kill: what is not gone is not called done, and the rows that stay are there."""
    table = Table.open(str(folder))
    if on_disk(folder, GONE):
        assert all(journal.state == "begun" for journal in takedown_journal.read_all(table))
    gone = {row(n, image_of=3 if n == 30 else None)["uid"] for n in GONE}
    assert len({*everything(table)} - gone) == 28


def test_every_fault_point_is_known() -> None:
    found = {name for source in SOURCES for name in re.findall(r'fault_point\("([\w.]+)"\)', source.read_text())}
    assert found == set(POINTS)


SHORT = ["takedown.begun", "takedown.deleted", "takedown.compacted:2", "takedown.tombstoned:2", "takedown.cleaned", "takedown.verified"]


@pytest.mark.parametrize("fault", [f"{point}:{count}" for point, count in POINTS.items()] if FULL else SHORT)
@pytest.mark.parametrize("way", ["again", "resume"] if FULL else ["resume"])
def test_killed_at_a_fault_point(fault: str, way: str, made: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "table"))
    assert run(folder, MTV_FAULT=fault) == -signal.SIGKILL
    seen(folder)
    table = Table.open(str(folder))
    assert bool(takedown_journal.pending(table)) == (fault != "takedown.done:1")
    if way == "resume":
        takedown.resume(table)
    else:
        takedown.run(table, REQUEST, "asked by its owner")
    assert state(folder) == undisturbed


def test_killed_again_and_again(made: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Each resumption gets one step further than the last."""
    folder = Path(shutil.copytree(made, tmp_path / "table"))
    steps = list(POINTS)[:-1] if FULL else ["takedown.denied", "takedown.rewritten:2", "takedown.untagged", "takedown.swept"]
    assert run(folder, MTV_FAULT=steps[0]) == -signal.SIGKILL
    for step in steps[1:]:
        assert run(folder, "--resume", MTV_FAULT=step) == -signal.SIGKILL, step
        seen(folder)
    assert run(folder, "--resume") == 0
    assert state(folder) == undisturbed


@pytest.mark.skipif(not FULL, reason="50 rounds take minutes: MTV_FAULT_ROUNDS=full, as `make faults` does")
@pytest.mark.parametrize("seed", range(50))
def test_killed_anywhere(seed: int, made: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = Path(shutil.copytree(made, tmp_path / "table"))
    for _ in range(chance.choice([1, 1, 2, 3])):
        arguments = chance.choice([(), ("--resume",)])
        if chance.random() < 0.5:
            run(folder, *arguments, after=chance.uniform(0.0, 0.4))
        else:
            point = chance.choice(list(POINTS))
            run(folder, *arguments, MTV_FAULT=f"{point}:{chance.randint(1, POINTS[point])}")
        seen(folder)
    takedown.run(Table.open(str(folder)), REQUEST, "asked by its owner")
    assert state(folder) == undisturbed
