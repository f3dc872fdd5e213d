"""What workers stage: whole or not there, whoever fails, and in bounded memory."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mtv_core.report import Reject
from mtv_core.store import staging
from mtv_core.store.staging import ShardWriter, TargetError
from mtv_core.store.table import Table


def row(number: int, size: int, caption: str = "a picture") -> dict[str, Any]:
    """Nobody decodes it here."""
    return {
        "uid": f"{number:032x}",
        "image": number.to_bytes(8) * (size // 8),
        "width": 64,
        "height": 64,
        "caption": caption,
        "captions": [{"text": caption, "kind": "web"}],
        "caption_raw": caption,
        "source": "s",
        "shard": "0" * 32,
        "key": str(number),
        "url": None,
        "license": None,
        "meta": None,
        "sha256": f"{number:064x}",
        "phash": number,
        "split": "train",
    }


def stage(table: Table, rows: int, error: type[BaseException] | None = None) -> None:
    with ShardWriter(table, "r", "s", "c") as writer:
        writer.refuse(Reject(shard="s", key="k", stage="ingest", error="NoImage", message="none"))
        for number in range(rows):
            writer.add(row(number, 1000), "here")
        if error is not None:
            raise error


def left(table: Table) -> list[str]:
    return [path.name for path in (Path(table.uri) / staging.FOLDER).rglob("*") if path.is_file()]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("staging")}


@pytest.mark.parametrize("number", [0, 1, 2])  # of the batch that fails: the next one says it, or the end
def test_a_disk_that_is_full_is_said_although_a_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    table = Table.create_or_open(str(tmp_path / "table"))
    monkeypatch.setattr(staging, "_BATCH_BYTES", 1000)
    write, done = ShardWriter._write, []

    def full(self: ShardWriter, rows: Any, index: Any) -> None:
        done.append(len(rows))
        if len(done) > number:
            time.sleep(0.05)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, rows, index)

    monkeypatch.setattr(ShardWriter, "_write", full)
    with pytest.raises(TargetError) as caught:
        stage(table, 3)
    assert caught.value.errno == errno.ENOSPC
    assert len(done) == number + 1
    assert left(table) == []
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_caller_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    table = Table.create_or_open(str(tmp_path / "table"))
    monkeypatch.setattr(staging, "_BATCH_BYTES", 1000)
    with pytest.raises(error):
        stage(table, 3, error)
    assert left(table) == []
    assert not threads()


def test_rows_wait_by_all_that_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions that are longer than pictures: one batch of them may not be larger than one of pictures."""
    table = Table.create_or_open(str(tmp_path / "table"))
    write, sizes = ShardWriter._write, []

    def counted(self: ShardWriter, rows: Any, index: Any) -> None:
        sizes.append(len(rows))
        write(self, rows, index)

    monkeypatch.setattr(ShardWriter, "_write", counted)
    with ShardWriter(table, "r", "s", "c") as writer:
        for one in range(12):
            writer.add({**row(one, 8), "captions": [{"text": "x" * 10_000, "kind": "web"}] * 100}, "here")
    assert sizes == [5, 5, 2]


_PEAK = """
import sys
from pathlib import Path
from mtv_core.store import staging
from mtv_core.store.staging import Piece, ShardWriter
from mtv_core.store.table import Table
sys.path.insert(0, sys.argv[1])
from test_staging import row
def used():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
table = Table.create_or_open(sys.argv[2])
peaks = []
for shard, rows in (("small", 20), ("large", 250)):
    with ShardWriter(table, "r", shard, "c") as writer:
        for number in range(rows):
            writer.add(row(number, 1 << 20), "here")
    staging.write_fragment(table, [Piece(staged=f"r/{shard}", positions=list(range(rows)))], "0" * 32)
    peaks.append(used())
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_depend_on_the_size_of_a_fragment(tmp_path: Path) -> None:
    """250 MB of staged rows, which are mapped: what was written counts no longer."""
    command = [sys.executable, "-c", _PEAK, str(Path(__file__).parent), str(tmp_path / "table")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 130, f"{done.stdout} MiB"
