"""kill -9 at any moment of `mtv refresh` (canary, gate, accept, relabel, report) while ingests append: it goes on where it was."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ingest_child
import pytest
import refreshes
from beside import FULL, Kills, Witness, hears, leaves_nothing, reading
from canary_experts import SeeingExpert, cleared, seeing_experts
from label_tables import config
from tars import shards

from mtv_core import labelling
from mtv_core.executor import SerialExecutor
from mtv_core.store.table import Table

pytestmark = pytest.mark.fault

CONFIGS = [  # the gate decides, by its thresholds
    config(depth, detection, gate={"rows": 24}, commit_fragments=2, commit_seconds=1e9)
    for depth in ("blocks:depth-r1", "blocks:depth-r2")
    for detection in ("blocks:detection-r1", "blocks:detection-r2")
]
EVERY = 3  # kills after which a refresh is left alone

fresh = pytest.fixture(autouse=True)(cleared)


class Batches:
    """What comes into the table, a few samples at a time."""

    def __init__(self, sources: Path, folder: Path, witness: Witness) -> None:
        self.sources, self.folder, self.witness, self.number = sources, folder, witness, 0

    def bring(self, samples: int = 3) -> None:
        first, batch = 100 * self.number, self.sources / str(self.number)
        shards(batch, 1, samples, first)
        self.witness.expect(samples, first)
        ingest_child.run(str(batch), str(self.folder), SerialExecutor())
        self.number += 1

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Batch after batch, at least one, until the block ends."""
        done, wrong = threading.Event(), []

        def bring() -> None:
            try:
                while True:
                    self.bring()
                    if done.wait(0.4):
                        return
            except Exception as error:
                wrong.append(error)

        thread = threading.Thread(target=bring)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if wrong:
            raise wrong[0]


def step(table: Table, revisions: dict[str, str]) -> str:
    """How far a refresh came."""
    accepted = {name: one.revision for name, one in table.accepted().items()}
    if accepted != revisions:
        return "canary"
    return "relabel" if any(table.stale(name, revision).num_stale for name, revision in revisions.items()) else "report"


def test_killed_anywhere_in_a_refresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = Kills(50 if FULL else 2, duration=1.5, seconds=3000 if FULL else 120)
    folder, steps, again = tmp_path / "table", Counter[str](), False  # again: the same refresh, to go on where it was killed
    witness = Witness(folder, CONFIGS, SeeingExpert)
    batches = Batches(tmp_path / "in", folder, witness)
    batches.bring(28)
    seeing_experts(monkeypatch)
    first = labelling.run(str(folder), CONFIGS[0], SerialExecutor())
    label, table = CONFIGS[0], Table.open(str(folder))

    def left_alone() -> dict[str, str]:
        """Run to its end, it has labelled every row by the revisions that it was to accept."""
        assert refreshes.undisturbed(folder, label) == 0, str(kills)
        revisions = labelling.revisions(label)
        accepted = {name: one.revision for name, one in table.accepted().items()}
        assert accepted == revisions, (str(kills), table.rejected(), table.label_counts())
        witness.check(complete=revisions)
        return revisions

    with reading(table, first.tag) as wrong:
        for _ in kills.rounds():
            if not again:
                label = kills.chance.choice([one for one in CONFIGS if one != label])
            with refreshes.child(folder, label) as process:
                hears(process, "ready")
                with batches.coming():
                    hit = kills.strike(process)
            witness.check()
            assert table.rejected() == {}, str(kills)  # the gate refuses no sound revision, whatever was killed
            reached = step(table, labelling.revisions(label)) if hit else "end"
            steps[reached] += 1
            again = reached in ("canary", "relabel") and kills.chance.random() < 0.7
            if hit and kills.hits % EVERY == 0:
                left_alone()
                again = False
        batches.bring()  # alone, it clears away what others had staged
        revisions = left_alone()
        leaves_nothing(table)
        witness.check(complete=revisions)
        witness.check(version=first.version, complete=first.revisions)
    assert not wrong, (str(kills), wrong[:3])
    print(dict(steps))
    assert not FULL or min(steps["canary"], steps["relabel"]) > 0, steps
