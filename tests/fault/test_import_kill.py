"""kill -9 during an import of labels: readers see none of it or all of it, and the same command again ends as one left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from label_tables import QuickExpert, columns, config, make_table, rejects

from mtv_core import experts, labelling, labelling_worker
from mtv_core.executor import SerialExecutor
from mtv_core.label_import import run
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

CHILD = Path(__file__).with_name("import_child.py")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled table of 6 fragments and a file with boxes of most rows, one of them bad, and of one strange uid."""
    folder = tmp_path_factory.mktemp("world")
    table = make_table(folder / "table", count=30, rows_per_fragment=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "load", QuickExpert)
        labelling_worker.loaded.cache_clear()
        labelling.run(table.uri, config(), SerialExecutor())
        labelling_worker.loaded.cache_clear()
    uids = columns(table)["uid"][:26]
    rows = [{"uid": uid, "boxes": [[0, 0, 0.5, (i + 1) / 32]], "phrases": [f"thing {i}"]} for i, uid in enumerate(uids)]
    rows[7]["boxes"] = [[0.5, 0.5, 0.1, 0.1]]
    rows.append({**rows[0], "uid": "0" * 32})
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fault", ["import.staged:1", "import.staged:4", "import.before_commit", "import.committed", "import.accepted"])
def test_killed_at_a_fault_point(world: Path, tmp_path: Path, fault: str, keep: bool) -> None:
    alone = Table(str(shutil.copytree(world / "table", tmp_path / "alone")))
    wanted = run(alone.uri, world / "mine.jsonl", keep_others=keep)
    killed = Table(str(shutil.copytree(world / "table", tmp_path / "killed")))
    before = columns(killed)
    arguments = [sys.executable, str(CHILD), killed.uri, str(world / "mine.jsonl"), *(["keep"] if keep else [])]
    environment = {**os.environ, "MTV_FAULT": fault, "PYTHONPATH": str(CHILD.parent.parent)}
    child = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert columns(killed) == (before if fault.startswith(("import.staged", "import.before")) else columns(alone))
    found = run(killed.uri, world / "mine.jsonl", keep_others=keep)
    assert columns(killed) == columns(alone)
    assert rejects(killed) == rejects(alone)
    assert killed.label_counts() == alone.label_counts()
    known, truth = killed.accepted()["detection"], alone.accepted()["detection"]
    assert known.revision == truth.revision == found.revision == wanted.revision
    assert known.source["imported"]["kept"] == truth.source["imported"]["kept"]
    if fault.startswith("import.staged"):
        assert (found.report.rows_out, found.refused) == (wanted.report.rows_out, wanted.refused)
    assert not list((Path(killed.uri) / "_staging").rglob("*.json"))
