"""Every kind of bad input ends as a refusal with the right reason, and the good samples beside it are all there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import KINDS, Kind
from malformed.kinds import caption_of
from tars import picture

from mtv_core import ingest
from mtv_core.budget import FailureBudget
from mtv_core.data.schema import sample_uid
from mtv_core.data.sources import SourceConfig
from mtv_core.executor import SerialExecutor
from mtv_core.ingest_config import IngestConfig
from mtv_core.store.table import Table

BOMBS = [name for name in KINDS if "bomb" in name or "zeros" in name or "terabyte" in name or "gigabytes" in name or "moon" in name]


def uid_of(number: int) -> str:
    return sample_uid(picture(number), caption_of(number))


def run(kind: Kind, uri: Path | str, table: Path) -> ingest.IngestResult:
    return ingest.run([SourceConfig(uri=str(uri), **kind.source)], str(table), IngestConfig(**kind.config), SerialExecutor())


def everything(folder: Path) -> dict[str, Any]:
    """All there is below a folder, and when it changed."""
    found = {}
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            facts = Path(here, name).lstat()
            found[str(Path(here, name))] = (facts.st_mode, facts.st_size, facts.st_mtime_ns if name in files else 0)
    return found


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kind(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, table = tmp_path / "in", tmp_path / "table"
    for folder in (place, table, tmp_path / "cwd"):
        folder.mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    uri = kind.make(place)
    before = everything(tmp_path)
    if kind.refusal is not None:
        error, says = kind.refusal
        with pytest.raises(error, match=says):
            run(kind, uri, table)
        assert not Table.create_or_open(str(table)).exists()
    else:
        check(kind, run(kind, uri, table), Table.open(str(table)))
    after = {name: facts for name, facts in everything(tmp_path).items() if not name.startswith(f"{table}/")}
    assert after == before  # nothing is written anywhere but in the table


def check(kind: Kind, result: ingest.IngestResult, table: Table) -> None:
    """Rows, refusals and ledger are what the kind says, no more and no less."""
    rows = table.dataset().to_table(columns=["uid", "key", "image"]).to_pylist()
    rejects = table.rejects.read().to_pylist()
    good = {uid_of(number) for number in kind.good}
    assert good <= {row["uid"] for row in rows}
    assert sorted(row["key"] for row in rows if row["uid"] not in good) == sorted(kind.kept)
    assert sorted((reject["key"], reject["error"]) for reject in rejects) == sorted(kind.rejects)
    for reject in rejects:
        assert len(reject["message"]) > 10
        assert reject["location"]
        assert reject["reject_class"] == ("transient" if reject["error"] == "Unreadable" else "data")
    assert all(row["image"].startswith(b"\xff\xd8\xff") for row in rows)
    ledger = table.ledger.read().to_pylist()
    assert [entry["rows_in"] - entry["rows_out"] - entry["rows_rejected"] for entry in ledger] == [0] * len(ledger)
    assert sum(entry["rows_in"] for entry in ledger) == kind.samples
    assert result.report.rows_out == len(rows) == len(good) + len(kind.kept)


def test_there_are_enough() -> None:
    assert len(KINDS) >= 60
    assert {kind.format for kind in KINDS.values()} == {"webdataset", "parquet", "imagefolder", "coco", "arrow", "auto"}
    assert len(BOMBS) >= 15


def test_the_corpus_is_the_same_each_time(tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        if name in BOMBS or "unreadable" in name:
            continue  # slow, or not to be compared
        contents = []
        for _ in range(2):
            folder = tmp_path / name
            folder.mkdir()
            kind.make(folder)
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            contents.append([(str(path), path.read_bytes()) for path in paths])
            folder.rename(tmp_path / f"{name}.{len(contents)}")
        assert contents[0] == contents[1], name


def test_all_at_once(tmp_path: Path) -> None:
    """One run over everything that is read with the defaults: no kind changes what becomes of another."""
    kinds = [kind for kind in KINDS.values() if kind.refusal is None and not kind.config and kind.name not in BOMBS]
    sources = []
    for kind in kinds:
        (tmp_path / kind.name).mkdir()
        sources.append(SourceConfig(uri=str(kind.make(tmp_path / kind.name)), **kind.source))
    config = IngestConfig(failures=FailureBudget(share=1))
    ingest.run(sources, str(tmp_path / "table"), config, SerialExecutor())
    table = Table.open(str(tmp_path / "table"))
    rejects, ledger = table.rejects.read().to_pylist(), table.ledger.read().to_pylist()
    for kind in kinds:
        here = [entry for entry in ledger if f"{tmp_path}/{kind.name}/" in f"{entry['uri']}/"]
        assert sum(entry["rows_in"] for entry in here) == kind.samples, kind.name
        refused = {(reject["key"], reject["error"]) for reject in rejects if f"{tmp_path}/{kind.name}/" in f"{reject['location']}/"}
        assert {one for one in kind.rejects if one[1] != "Duplicate"} <= refused, kind.name
    assert {uid_of(number) for number in (1, 2, 3)} <= set(table.dataset().to_table(columns=["uid"])["uid"].to_pylist())
    assert {reject["reject_class"] for reject in rejects} == {"data", "transient"}


PEAK = """
import re, sys, tempfile, warnings
from pathlib import Path
from mtv_core import ingest
from mtv_core.budget import FailureBudget
from mtv_core.data.sources import SourceConfig
from mtv_core.executor import SerialExecutor
from mtv_core.ingest_config import IngestConfig

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

warnings.simplefilter("error")
with tempfile.TemporaryDirectory() as folder:
    for number, uri in enumerate(sys.argv[1:]):
        ingest.run([SourceConfig(uri=uri)], f"{folder}/{number}", IngestConfig(), SerialExecutor())
        before = before if number else peak()
        print(uri, peak() - before, "MB")
    print(peak() - before)
"""


def test_no_bomb_takes_memory(tmp_path: Path) -> None:
    """They unfold to between 64 MB and 8 EB. The first run, of a cut image, is what any run takes."""
    uris = []
    for name in ("image-jpeg-cut-in-data", *BOMBS):
        (tmp_path / name).mkdir()
        uris.append(str(KINDS[name].make(tmp_path / name)))
    done = subprocess.run([sys.executable, "-c", PEAK, *uris], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 60, done.stdout
