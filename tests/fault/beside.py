"""What tests share that kill a process while others are at the same table: kills that hit, a witness of every label, a reader at a tag."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import tars
from label_tables import QuickExpert
from PIL import Image

from mtv_core.data.schema import LABELS, sample_uid
from mtv_core.experts.config import ExpertConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.store import locks, takedown_erase
from mtv_core.store.table import Table

FULL = os.environ.get("MTV_FAULT_ROUNDS") == "full"
FOLDER = Path(__file__).parent


def start(script: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Run one of the children here; it says `ready` once it has imported everything."""
    path = os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER.parent)])
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **environment, "PYTHONPATH": path}, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def hears(process: subprocess.Popen[str], word: str) -> None:
    """Wait for a child's word."""
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != f"{word}\n":
        process.kill()
        raise AssertionError((said, process.communicate()))


class Kills:
    """Rounds of a test, until as many kills as wanted have struck a process that was at its work.

    Args:
        wanted: how many.
        duration: s that a process takes from `ready` to `done`, about; learnt on the way, so that kills fall all over it.
        seconds: after which the rounds end, with a failure if too few kills hit.
    """

    def __init__(self, wanted: int, duration: float, seconds: float) -> None:
        self.seed = random.randrange(2**32)
        self.chance = random.Random(self.seed)
        self.wanted, self.duration, self.seconds = wanted, duration, seconds
        self.hits = self.number = 0

    def __str__(self) -> str:
        return f"seed {self.seed}, round {self.number}, {self.hits} kills"

    def rounds(self) -> Iterator[int]:
        """The numbers of the rounds.

        Raises:
            AssertionError: too few kills hit.
        """
        began = time.monotonic()
        while self.hits < self.wanted and self.number < 5 * self.wanted and time.monotonic() - began < self.seconds:
            yield self.number
            self.number += 1
        assert self.hits >= self.wanted, f"{self.hits} kills of {self.wanted} hit after {time.monotonic() - began:.0f} s: {self}"
        print(f"{self}: {time.monotonic() - began:.0f} s")

    def strike(self, process: subprocess.Popen[str]) -> bool:
        """Kill a child that has said `ready`, some time after; whether it had not said `done`."""
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.chance.uniform(0, self.duration))
        process.kill()
        took = time.monotonic() - began
        said, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), f"{self}: {said}\n{errors}"
        hit = process.returncode == -signal.SIGKILL and not said.endswith("done\n")
        self.count(hit)
        self.duration = self.duration * 1.1 if hit else max(0.2, (self.duration + took) / 2)
        return hit

    def count(self, hit: bool) -> None:
        """Take a kill into account."""
        self.hits += hit


class Witness:
    """Knows of every sample (`tars.sample`) what each expert says of it, by uid, and what was labelled when it last looked.

    Args:
        folder: of the table.
        configs: whose experts may have labelled it.
        make: the expert of a configuration.
    """

    def __init__(self, folder: Path, configs: Sequence[LabelConfig], make: Callable[[str, ExpertConfig], QuickExpert] = QuickExpert):
        made = [make(name, expert) for config in configs for name, expert in config.experts().items()]
        self.folder = folder
        self.experts = {(expert.name, expert.revision): expert for expert in made}
        self.samples: dict[str, tuple[bytes, str]] = {}  # uid → picture, caption
        self.labels: dict[tuple[str, str, str], dict[str, Any]] = {}  # uid, expert, revision → label
        self.labelled: set[tuple[str, str]] = set()  # uid, expert

    def expect(self, number: int, first: int) -> list[str]:
        """Samples that come; their uids."""
        found = []
        for n in range(first, first + number):
            picture, caption = tars.picture(n), f"picture {n}"
            found.append(sample_uid(picture, caption))
            self.samples[found[-1]] = picture, caption
        return found

    def check(self, version: int | None = None, complete: dict[str, str] | None = None, uids: Collection[str] = ()) -> None:
        """Every sample is there once; it has its own label by the revision it names, or none and no revision; no label went away.

        Args:
            version: of the table, that may lack samples; None: the latest.
            complete: expert → revision that every row is to have.
            uids: rows that are to have a label of every expert.
        """
        rows = Table.at(str(self.folder), version=version).dataset.to_table().to_pylist()
        found = [row["uid"] for row in rows]
        assert len(set(found)) == len(found)
        assert set(found) <= self.samples.keys()
        assert version is not None or len(found) == len(self.samples)
        names = sorted({name for name, _ in self.experts})
        for row in rows:
            uid = row["uid"]
            assert (row["image"], row["caption"]) == self.samples[uid]
            for name in names:
                revision = row.get(f"{name}_rev")
                wanted = self.label(uid, name, revision) if revision else {}
                for column in LABELS[name].names:
                    assert row.get(column) == wanted.get(column), (row["key"], name, revision)
                assert complete is None or revision == complete[name], (row["key"], name, revision, complete)
                assert revision or uid not in uids, (row["key"], name)
                assert revision or version is not None or (uid, name) not in self.labelled, (row["key"], name)
                if revision and version is None:
                    self.labelled.add((uid, name))

    def label(self, uid: str, name: str, revision: str) -> dict[str, Any]:
        """The truth."""
        key = (uid, name, revision)
        if key not in self.labels:
            picture, caption = self.samples[uid]
            label = self.experts[name, revision].label(Image.open(io.BytesIO(picture)).convert("RGB"), caption)
            [self.labels[key]] = pa.RecordBatch.from_pylist([label], LABELS[name]).to_pylist()  # in the precision that is stored
        return self.labels[key]


@contextlib.contextmanager
def reading(table: Table, tag: str) -> Iterator[list[str]]:
    """Somebody reads a tag all the time; yields what was wrong with what they read."""
    wrong: list[str] = []

    def digest() -> str:
        rows = Table.at(table.uri, tag=tag).dataset.to_table()
        return hashlib.sha256(repr(rows.to_pylist()).encode()).hexdigest()

    first, done = digest(), threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                if digest() != first:
                    wrong.append("other bytes")
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


def leaves_nothing(table: Table) -> None:
    """No record of staged work is left, and after a clean-up, which lets go of all versions without a tag, no file that none names."""
    assert not list((Path(table.uri) / "_staging").rglob("*.json"))
    with locks.maintenance(table, "clean-up"):
        takedown_erase.clean(table, table.samples_uri)
    assert takedown_erase.strays(table, table.samples_uri) == []
    assert not [path for path in Path(table.uri).rglob(".*") if ".tmp" in path.name or ".partial" in path.name]
    assert not list((Path(table.uri) / "_experts").glob(".*"))
