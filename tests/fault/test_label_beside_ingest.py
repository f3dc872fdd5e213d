"""kill -9 during labelling and refresh while an ingest appends: no label stays away, none is another row's, readers notice nothing."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ingest_child
import pytest
from label_tables import QuickExpert, config, quick_experts
from PIL import Image
from tars import shards

from mtv_core import labelling
from mtv_core.data.schema import LABELS
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

FULL = os.environ.get("MTV_FAULT_ROUNDS") == "full"
ROUNDS = 50 if FULL else 3
FOLDER = Path(__file__).parent
CONFIGS = [  # what is tracked now: none of the experts, one, or both have changed
    config(depth, detection, accept="immediate", commit_fragments=2, commit_seconds=1e9)
    for depth in ("blocks:depth-r1", "blocks:depth-r2")
    for detection in ("blocks:detection-r1", "blocks:detection-r2")
]


quick = pytest.fixture(autouse=True)(quick_experts)


def truths() -> dict[tuple[str, str], QuickExpert]:
    """(expert, revision) → what says the label of a picture with its caption."""
    known = [QuickExpert(name, expert) for one in CONFIGS for name, expert in one.experts().items()]
    return {(expert.name, expert.revision): expert for expert in known}


def check(table: Table, version: int | None = None, complete: dict[str, str] | None = None) -> int:
    """Every row has the label of its own picture by the revision it names, or none and no revision. Returns the number of rows.

    Args:
        table: which.
        version: of it; None: the latest.
        complete: expert → revision that every row is to have.
    """
    known = truths()
    rows = Table.at(table.uri, version=version).dataset.to_table().to_pylist()
    assert len({row["uid"] for row in rows}) == len(rows)
    for row in rows:
        picture = Image.open(io.BytesIO(row["image"])).convert("RGB")
        for name in ("depth", "detection"):
            revision = row.get(f"{name}_rev")
            wanted = known[name, revision].label(picture, row["caption"]) if revision else {}
            for column in LABELS[name].names:
                assert row.get(column) == wanted.get(column), (row["key"], name, revision)
            assert complete is None or revision == complete[name]
    return len(rows)


def start(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER.parent)])}
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def reading(table: Table, tag: str) -> Iterator[list[str]]:
    """Somebody reads a tag all the time; yields what was wrong with what they read."""
    wrong: list[str] = []
    first = Table.at(table.uri, tag=tag).dataset.to_table()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                if not Table.at(table.uri, tag=tag).dataset.to_table().equals(first):
                    wrong.append("other rows")
            except Exception as error:  # whatever a reader meets is a defect
                wrong.append(repr(error))
            done.wait(0.05)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield wrong
    finally:
        done.set()
        thread.join()


def test_killed_while_an_ingest_appends(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    folder, sources = tmp_path / "table", tmp_path / "in"
    shards(sources, 4, 7)
    ingest_child.run(str(sources), str(folder), SerialExecutor())
    first = labelling.run(str(folder), CONFIGS[0], SerialExecutor())
    table, samples, killed = Table.open(str(folder)), 28, 0
    with reading(table, first.tag) as wrong:
        for number in range(ROUNDS):
            wanted = chance.choice(CONFIGS)
            job = tmp_path / "config.json"
            job.write_text(wanted.model_dump_json())
            batch = tmp_path / f"batch{number}"
            shards(batch, 2, 5, first=1000 + 10 * number)
            samples += 10
            with start("ingest_child.py", batch, folder, "serial") as appending, start("label_child.py", folder, job) as labels:
                for process in (appending, labels):
                    assert process.stdout is not None
                    assert process.stdout.readline() == "ready\n"
                time.sleep(chance.uniform(0, 0.8))
                killed += labels.poll() is None
                labels.kill()
                if chance.random() < 0.3:
                    appending.kill()
                _, errors = appending.communicate(timeout=120)
                assert appending.returncode in (0, -9), errors
            ingest_child.run(str(batch), str(folder), SerialExecutor())
            assert check(table) == samples, f"seed {seed}, round {number}"
        last: LabelConfig = chance.choice(CONFIGS)
        result = labelling.run(str(folder), last, SerialExecutor())
        assert check(table, complete=result.revisions) == samples, f"seed {seed}"
        assert Table.at(str(folder), tag=result.tag).num_rows == samples
        assert check(table, version=first.version, complete=first.revisions) == 28
    assert not wrong, (seed, wrong[:3])
    assert killed >= ROUNDS // 3, killed
    assert not list((folder / "_staging").rglob("*.json")), seed
