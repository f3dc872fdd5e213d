"""Locks, on a file system and in an object store: who excludes whom, what a kill leaves, and what a slow holder may still do."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtv_core.store import lock_files, lock_leases
from mtv_core.store.lock_files import FileLocks
from mtv_core.store.lock_leases import HeldLease, LeaseLocks
from mtv_core.store.lock_owner import Owner, myself
from mtv_core.store.locks import LockLostError, alone, committing, maintenance, writing
from mtv_core.store.table import Table

ROOT = Path(__file__).parents[2]
CHILD = """
import contextlib, random, sys, time
from mtv_core.store import locks
from mtv_core.store.table import Table
table, what, log = Table.create_or_open(sys.argv[1]), sys.argv[2], sys.argv[3]
print("ready", flush=True)
if what == "hold-commit":
    with locks.committing(table) as lease:
        print("held", flush=True)
        sys.stdin.readline()
        try:
            lease.check(); print("may commit", flush=True)
        except locks.LockLostError:
            print("lost", flush=True)
        time.sleep(600)
if what == "hold-writing":
    with locks.writing(table, "test"):
        print("held", flush=True); time.sleep(600)
if what == "hold-maintenance":
    with locks.maintenance(table, "test"):
        print("held", flush=True); time.sleep(600)
if what == "count":  # each turn says when it began and ended; a kill may leave a beginning without an end
    while True:
        with locks.committing(table) as lease:
            me = random.getrandbits(60)
            with open(log, "a", buffering=1) as file:
                file.write(f"begin {me}\\n"); time.sleep(random.uniform(0, 0.05)); lease.check(); file.write(f"end {me}\\n")
"""


@pytest.fixture(params=["local", "s3"])
def table(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(LeaseLocks, "poll", 0.05)
    uri = str(tmp_path / "table") if request.param == "local" else f"{request.getfixturevalue('bucket')}/table"
    return Table.create_or_open(uri)


@contextlib.contextmanager
def child(table: Table, what: str, log: Path | None = None, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, table.uri, what, str(log)],
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n"
        if what.startswith("hold"):
            assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def left(table: Table) -> list[str]:
    """Names of what the locks leave, without the last word on each name."""
    names = table.files.names("_locks")
    return [name for name in names if not name.startswith(("commit.", "maintenance.", "alone."))]


def test_writers_share(table: Table) -> None:
    with writing(table, "one") as one, writing(table, "other") as other:
        one.check()
        other.check()
    assert left(table) == []


def test_committers_take_turns(table: Table) -> None:
    inside, most = 0, 0

    def commit() -> None:
        nonlocal inside, most
        for _ in range(3):
            with committing(table, 60):
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1

    threads = [threading.Thread(target=commit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert inside == 0


def test_who_waits_too_long_is_told_for_whom(table: Table) -> None:
    message = rf"commit \(process {os.getpid()} on .*\) is at work"
    with committing(table), pytest.raises(TimeoutError, match=message), committing(table, 0.2):
        pass
    with committing(table, 0.2):
        pass


def test_maintenance_and_writers_exclude_each_other(table: Table) -> None:
    message = rf"ingest \(process {os.getpid()} on .* is at work on .*: run again"
    with writing(table, "ingest"), pytest.raises(OSError, match=message), maintenance(table, "takedown"):
        pass
    with maintenance(table, "takedown") as lease:
        lease.check()
        with pytest.raises(OSError, match=r"takedown .* is at work"), writing(table, "ingest"):
            pass
        with pytest.raises(OSError, match=r"takedown .* is at work"), maintenance(table, "takedown"):
            pass
        with committing(table):  # its own
            pass
    with writing(table, "ingest"):
        pass
    assert left(table) == []


def test_maintenance_waits_for_no_committer(table: Table) -> None:
    with committing(table), pytest.raises(OSError, match=r"commit .* is at work"), maintenance(table, "takedown"):
        pass


@pytest.mark.parametrize("what", ["commit", "writing", "maintenance"])
def test_a_killed_holder_on_this_machine_holds_nothing(table: Table, what: str) -> None:
    attempt: Callable[[], contextlib.AbstractContextManager[object]] = {
        "commit": lambda: committing(table, 0.3),
        "writing": lambda: maintenance(table, "takedown"),
        "maintenance": lambda: writing(table, "ingest"),
    }[what]
    with child(table, f"hold-{what}") as process:
        with pytest.raises(OSError, match="is at work"), attempt():
            pass
        process.kill()
        process.wait()
        started = time.monotonic()
        with attempt():
            pass
        assert time.monotonic() - started < 10  # far less than a lease
    assert left(table) == []


def test_two_never_commit_at_once_whoever_is_killed(table: Table, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(child(table, "count", log)) for _ in range(3)]
        for _ in range(4):
            time.sleep(chance.uniform(0.2, 1.0))
            victim = children.pop(chance.randrange(3))
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            children.append(stack.enter_context(child(table, "count", log)))
        time.sleep(2)
    lines = [line.split() for line in log.read_text().splitlines()]
    began = [who for word, who in lines if word == "begin"]
    assert len(began) > 5, f"seed {seed}"
    # Every end follows its own beginning at once: nobody came between.
    for (word, who), (previous_word, previous) in zip(lines[1:], lines, strict=False):
        if word == "end":
            assert (previous_word, previous) == ("begin", who), f"seed {seed}"
    unfinished = len(began) - sum(word == "end" for word, _ in lines)
    assert unfinished <= 4 + 3, f"seed {seed}"


class TestAlone:
    def test_only_when_nobody_else_writes(self, table: Table) -> None:
        with writing(table, "one") as one, alone(one) as answer:
            assert answer
        with writing(table, "one") as one, writing(table, "other") as other:
            with alone(one) as answer:
                assert not answer
            other.check()
            with alone(other) as answer:  # the one is done, though it is still there
                assert answer

    def test_a_killed_writer_does_not_count(self, table: Table) -> None:
        with child(table, "hold-writing") as process:
            with writing(table, "one") as one, alone(one) as answer:
                assert not answer
            process.kill()
            process.wait()
            with writing(table, "one") as one, alone(one) as answer:
                assert answer

    def test_a_writer_that_begins_waits(self, table: Table) -> None:
        began = threading.Event()

        def begin() -> None:
            with writing(table, "other"):
                began.set()

        with writing(table, "one") as one:
            with alone(one) as answer:
                assert answer
                thread = threading.Thread(target=begin)
                thread.start()
                assert not began.wait(0.5)
            assert began.wait(20)
            thread.join()

    def test_the_last_of_several_is_told_yes(self, table: Table) -> None:
        """Whatever the order: were all told no, nobody would ever clear away what they staged."""
        barrier, answers = threading.Barrier(3), list[bool]()
        inside = 0

        def write() -> None:
            nonlocal inside
            with writing(table, "one") as lease:
                barrier.wait()
                with alone(lease) as answer:
                    inside += answer
                    assert inside <= 1
                    answers.append(answer)
                    time.sleep(0.05)
                    inside -= answer
                barrier.wait()  # nobody has left while another one asks

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers.count(True) >= 1
        assert len(answers) == 3

    def test_an_error_within_is_passed_on(self, table: Table) -> None:
        with writing(table, "one") as one, pytest.raises(TimeoutError, match="mine"), alone(one):
            raise TimeoutError("mine")
        with writing(table, "one") as one, alone(one) as answer:
            assert answer


class TestFiles:
    def test_a_lock_on_a_file_that_its_holder_removes_just_now_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Opened before and locked after: whoever comes next would make a new file, and lock that."""
        real, path = lock_files._flock, tmp_path / "commit.lock"

        def late(*arguments: Any) -> bool:
            path.unlink()
            return real(*arguments)

        monkeypatch.setattr(lock_files, "_flock", late)
        assert FileLocks(tmp_path).take("commit", myself("test", 60.0)) is None
        monkeypatch.undo()
        held = FileLocks(tmp_path).take("commit", myself("test", 60.0))
        assert held is not None
        held.check()
        held.close()

    def test_a_lock_under_a_removed_folder_is_lost(self, tmp_path: Path) -> None:
        import shutil

        table = Table.create_or_open(str(tmp_path / "table"))
        with committing(table) as lease:
            lease.check()
            shutil.rmtree(tmp_path / "table")
            with pytest.raises(LockLostError):
                lease.check()

    def test_a_folder_that_cannot_be_written_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PermissionError, match=r"choose another table\.uri"), writing(Table.create_or_open(str(tmp_path / "file")), "x"):
            pass


class TestLeases:
    """What only leases can do: end while their holder lives."""

    @pytest.fixture
    def table(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Table:
        monkeypatch.setattr(LeaseLocks, "poll", 0.05)
        return Table.create_or_open(f"{bucket}/table")

    @staticmethod
    def take(table: Table, name: str = "commit", seconds: float = 60.0, **owner: object) -> HeldLease | None:
        mine = myself("test", seconds).model_copy(update=owner)
        return LeaseLocks(table.files, "_locks").take(name, mine)

    def test_it_is_renewed(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lock_leases, "_GRACE", 1.0)
        held = self.take(table, seconds=2.0)
        assert held is not None
        for _ in range(8):
            time.sleep(0.5)
            held.check()
            assert self.take(table) is None
        held.close()
        again = self.take(table)
        assert again is not None
        again.close()

    def test_of_a_holder_on_another_machine_it_ends_by_itself(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not before its time, by the clock of the store."""
        monkeypatch.setattr(lock_leases, "_GRACE", 1.0)
        name = "_locks/commit.00000001.json"
        dead = myself("test", 2.0).model_copy(update={"machine": "another", "pid": 1})
        table.files.write(name, dead.model_dump_json().encode())
        written = time.monotonic()
        while (held := self.take(table)) is None and time.monotonic() - written < 20:
            time.sleep(0.05)
        assert held is not None
        assert 1.0 < time.monotonic() - written < 8.0
        held.close()
        assert table.files.names("_locks") == ["commit.00000002.json"]

    @pytest.mark.parametrize("slow", [True, False])
    def test_a_slow_holder_may_not_commit(self, table: Table, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
        """Stopped for longer than its lease, it finds that out before it commits, for another one has the lock by then."""
        monkeypatch.setattr(lock_leases, "_GRACE", 1.0)
        with child(table, "hold-commit", MTV_LOCK_SECONDS="4") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if slow:
                process.send_signal(signal.SIGSTOP)
                with committing(table, 30) as mine:  # its process lives: only time can tell
                    process.send_signal(signal.SIGCONT)
                    time.sleep(2)  # it is awake, and its thread would renew
                    mine.check()
                    assert self.take(table) is None
            process.stdin.write("now\n")
            process.stdin.flush()
            assert process.stdout.readline() == ("lost\n" if slow else "may commit\n")

    def test_lost_is_lost(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        now = lock_leases._now()
        held = self.take(table, seconds=60.0)
        assert held is not None
        held.check()
        monkeypatch.setattr(lock_leases, "_now", lambda: now + 55)
        with pytest.raises(LockLostError, match="not renewed in time"):
            held.check()
        monkeypatch.setattr(lock_leases, "_now", lambda: now + 1)  # whatever happens then
        with pytest.raises(LockLostError):
            held.check()
        held.close()

    def test_a_renewal_that_fails_gains_nothing(
        self, table: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        held = self.take(table, seconds=60.0)
        assert held is not None
        until = held._until

        def fail(*_: object) -> None:
            raise OSError("the network is gone")

        monkeypatch.setattr(type(table.files), "write", fail)
        held._renew()
        assert held._until == until
        held.check()
        assert "the network is gone" in caplog.text
        now = lock_leases._now()
        monkeypatch.setattr(lock_leases, "_now", lambda: now + 45)
        with pytest.raises(LockLostError):
            held.check()

    def test_a_latecomer_does_not_bring_back_an_old_generation(self, table: Table) -> None:
        """It saw generation 1 free, and slept while 2 and 3 came; 2 is gone since, so its write succeeds, and must not count."""
        late = LeaseLocks(table.files, "_locks")
        first = self.take(table)
        assert first is not None
        first.close()
        seen = late._highest()
        second = self.take(table)
        assert second is not None
        second.close()
        third = self.take(table)
        assert third is not None
        answers = iter([seen])
        real = late._highest
        late._highest = lambda: next(answers, None) or real()  # type: ignore[method-assign]
        assert late.take("commit", myself("late", 60.0)) is None
        third.check()
        assert table.files.names("_locks") == ["commit.00000003.json"]
        third.close()

    def test_an_unknown_lock_is_not_ignored(self, table: Table) -> None:
        table.files.write("_locks/commit.00000001.json", b"{}")
        with pytest.raises(OSError, match="no lock of this version"):
            self.take(table)

    def test_another_process_of_the_same_pid_is_another(self) -> None:
        me = myself("test", 60.0)
        assert not me.gone()
        assert me.model_copy(update={"started": me.started - 1}).gone()
        assert me.model_copy(update={"pid": 2**22 + 1}).gone()
        assert not me.model_copy(update={"pid": 2**22 + 1, "machine": "another"}).gone()
        assert Owner.model_validate_json(me.model_dump_json()) == me
