"""Labellers beside an ingest, killed or two at once: no label stays away, none is another row's, readers notice nothing."""

from __future__ import annotations

import random
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import ingest_child
import pytest
from beside import FULL, Kills, Witness, hears, leaves_nothing, reading, start
from label_tables import config, quick_experts
from tars import shards

from mtv_core import labelling
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

CONFIGS = [  # what is tracked now: none of the experts, one, or both have changed
    config(depth, detection, accept="immediate", commit_fragments=2, commit_seconds=1e9)
    for depth in ("blocks:depth-r1", "blocks:depth-r2")
    for detection in ("blocks:detection-r1", "blocks:detection-r2")
]


quick = pytest.fixture(autouse=True)(quick_experts)


def test_killed_while_an_ingest_appends(tmp_path: Path) -> None:
    kills = Kills(50 if FULL else 2, duration=0.4, seconds=3000 if FULL else 120)
    chance = kills.chance
    folder, sources = tmp_path / "table", tmp_path / "in"
    witness = Witness(folder, CONFIGS)
    shards(sources, 4, 7)
    witness.expect(28, 0)
    ingest_child.run(str(sources), str(folder), SerialExecutor())
    first = labelling.run(str(folder), CONFIGS[0], SerialExecutor())
    table = Table.open(str(folder))
    with reading(table, first.tag) as wrong:
        for number in kills.rounds():
            job = tmp_path / "config.json"
            job.write_text(chance.choice(CONFIGS).model_dump_json())
            batch = tmp_path / f"batch{number}"
            shards(batch, 2, 5, first=1000 + 10 * number)
            witness.expect(10, 1000 + 10 * number)
            with start("ingest_child.py", batch, folder, "serial") as appending, start("label_child.py", folder, job) as labels:
                for process in (appending, labels):
                    hears(process, "ready")
                kills.strike(labels)
                if chance.random() < 0.3:
                    appending.kill()
                _, errors = appending.communicate(timeout=120)
                assert appending.returncode in (0, -9), errors
            ingest_child.run(str(batch), str(folder), SerialExecutor())
            witness.check()
        last: LabelConfig = chance.choice(CONFIGS)
        result = labelling.run(str(folder), last, SerialExecutor())
        witness.check(complete=result.revisions)
        assert Table.at(str(folder), tag=result.tag).num_rows == len(witness.samples)
        leaves_nothing(table)
        witness.check(complete=result.revisions)
        witness.check(version=first.version, complete=first.revisions)
    assert not wrong, (str(kills), wrong[:3])


def test_two_labellers_begin_on_a_fresh_table_at_once(tmp_path: Path) -> None:
    """Depth in one process, boxes in another, each with columns to make and a revision to accept, and an ingest appends meanwhile."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    both = CONFIGS[0]
    fresh, sources, batch = tmp_path / "fresh", tmp_path / "in", tmp_path / "batch"
    shards(sources, 3, 7)
    shards(batch, 2, 5, first=100)
    ingest_child.run(str(sources), str(fresh), SerialExecutor())
    with ExitStack() as stack:
        labellers = []
        for name, other in (("depth", "detection"), ("detection", "depth")):
            job = tmp_path / f"{name}.json"
            job.write_text(both.model_copy(update={other: None}).model_dump_json())
            labellers.append(stack.enter_context(start("labeller_child.py", job)))
            stack.callback(labellers[-1].kill)
        for labeller in labellers:
            hears(labeller, "ready")
        for number in range(50 if FULL else 5):
            folder = Path(shutil.copytree(fresh, tmp_path / f"table{number}"))
            witness = Witness(folder, CONFIGS)
            old = witness.expect(21, 0)
            witness.expect(10, 100)
            for labeller in labellers:
                assert labeller.stdin is not None
                print(folder, file=labeller.stdin, flush=True)
            time.sleep(chance.uniform(0, 0.2))
            ingest_child.run(str(batch), str(folder), SerialExecutor())
            for labeller in labellers:
                hears(labeller, "done")
            witness.check(uids=old)  # rows that came late may wait for the next run
            accepted = {name: one.revision for name, one in Table.open(str(folder)).accepted().items()}
            assert accepted.keys() == {"depth", "detection"}, seed
            result = labelling.run(str(folder), both, SerialExecutor())
            assert result.revisions == accepted
            witness.check(complete=accepted)
            ingest_child.run(str(batch), str(folder), SerialExecutor())  # alone by now, it clears away what it had staged
            leaves_nothing(Table.open(str(folder)))
            shutil.rmtree(folder)
