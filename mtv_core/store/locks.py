"""Who may write to a table when, over processes and machines. Whatever dies, its locks go with it.

    writing      ingest and labelling, many at a time: they stage beside each other, and keep maintenance away
    committing   one at a time: deduplication sees what the one before made visible
    maintenance  takedown and clean-up, alone: no writer is at work, and none begins
    alone        a writer that is done asks whether it may clear away what is staged: nobody else needs any of it

Each is a name in `<table>/_locks/`: `flock` on file systems, leases in object stores (`lock_files`, `lock_leases`). Who wants one shows his
own name first and looks for the others' after that, so of two that begin at once at least one sees the other. A process that is killed
holds nothing on its own machine any more; from another machine, a lease in an object store ends a minute after it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mtv_core.store.dataset import explain
from mtv_core.store.lock_files import FileLocks
from mtv_core.store.lock_leases import LeaseLocks
from mtv_core.store.lock_owner import Held, LockFolder, LockLostError, Owner, myself

if TYPE_CHECKING:
    from mtv_core.store.table import Table

__all__ = ["Lease", "LockLostError", "alone", "committing", "maintenance", "writing"]

FOLDER = "_locks"
SECONDS_VARIABLE = "MTV_LOCK_SECONDS"  # how long a lease in an object store outlives its holder
DEFAULT_SECONDS = 60.0
COMMIT_SECONDS = 6 * 3600.0
CLEAR_SECONDS = 3600.0
_MOMENT = 30.0  # s; longer than anybody needs to look who holds a name
_WRITER, _COMMIT, _MAINTENANCE, _ALONE = "writer-", "commit", "maintenance", "alone"

_log = logging.getLogger(__name__)


class Lease:
    """A right to write, held."""

    def __init__(self, table: Table, locks: LockFolder, held: Held) -> None:
        self.table, self.locks, self.held = table, locks, held
        self.done = False

    def check(self) -> None:
        """Call it right before a commit.

        Raises:
            LockLostError: the right was lost, or there is too little time left to commit in.
        """
        assert not self.done, "a writer that asked whether it is alone"
        self.held.check()


@contextlib.contextmanager
def writing(table: Table, what: str) -> Iterator[Lease]:
    """The right to stage, shared by any number of writers.

    Args:
        table: which one; it need not be there yet.
        what: is being done, for whoever is refused meanwhile.

    Raises:
        OSError: maintenance is at work, or the table's folder cannot be written.
    """
    locks = _locks(table)
    owner = _owner(what)
    with contextlib.closing(_take(table, locks, f"{_WRITER}{owner.token}", owner)) as held:
        deadline = time.monotonic() + CLEAR_SECONDS
        while (others := locks.holders()).keys() & {_ALONE, _MAINTENANCE}:
            if _MAINTENANCE in others or time.monotonic() > deadline:
                raise _busy(table, others.get(_MAINTENANCE, others.get(_ALONE)))
            _sleep(locks)
        yield Lease(table, locks, held)


@contextlib.contextmanager
def committing(table: Table, wait: float = COMMIT_SECONDS) -> Iterator[Lease]:
    """The right to make rows visible: one at a time.

    Args:
        table: which one.
        wait: s for one's turn.

    Raises:
        TimeoutError: another one took longer.
        OSError: maintenance is at work, or the table's folder cannot be written.
    """
    locks = _locks(table)
    with contextlib.closing(_take(table, locks, _COMMIT, _owner("commit"), wait)) as held:
        other = locks.holders().get(_MAINTENANCE)
        if other is not None and other.token not in _maintaining:
            raise _busy(table, other)
        yield Lease(table, locks, held)


@contextlib.contextmanager
def maintenance(table: Table, what: str) -> Iterator[Lease]:
    """The right to remove: nobody writes.

    Args:
        table: which one.
        what: is being done, for whoever is refused meanwhile.

    Raises:
        OSError: somebody writes, or does maintenance; or the table's folder cannot be written.
    """
    locks = _locks(table)
    with contextlib.closing(_take(table, locks, _MAINTENANCE, _owner(what))) as held:
        others = [owner for name, owner in locks.holders().items() if name == _COMMIT or name.startswith(_WRITER)]
        if others:
            raise _busy(table, *others)
        _maintaining.add(held.owner.token)
        try:
            yield Lease(table, locks, held)
        finally:
            _maintaining.discard(held.owner.token)


def at_work(table: Table) -> list[str]:
    """Who keeps maintenance away at this moment, as a person reads it. Takes no name, and holds nobody up.

    Nobody, too, to whom may not look: such a person is refused for that.
    """
    try:
        holders = _locks(table).holders()
    except PermissionError:
        return []
    return [str(owner) for name, owner in holders.items() if name in (_COMMIT, _MAINTENANCE) or name.startswith(_WRITER)]


@contextlib.contextmanager
def alone(lease: Lease) -> Iterator[bool]:
    """Whether nobody else writes, asked by a writer that is done. It stays so within the block: writers that begin wait for its end.

    Who asked counts as a writer no more, so of several that end at the same time the last one, at least, is told yes. It may be told more
    than one, one after the other. Nothing can be committed with the lease from here on.
    """
    lease.done = True
    asked = _ask(lease)
    try:
        yield asked is not None and _others_are_done(lease)
    finally:
        if asked is not None:
            asked.close()


def _ask(lease: Lease) -> Held | None:
    try:
        lease.held.check()
        lease.held.say_done()
        return _take(lease.table, lease.locks, _ALONE, _owner("clean-up"), CLEAR_SECONDS)
    except (LockLostError, TimeoutError) as error:
        _log.warning("what is staged is left to the next run: %s", error)
        return None


def _others_are_done(lease: Lease) -> bool:
    writers = [owner for name, owner in lease.locks.holders().items() if name.startswith(_WRITER)]
    return all(owner.done or owner.token == lease.held.owner.token for owner in writers)


_maintaining: set[str] = set()  # tokens of what this process holds, within which it may commit itself


def _locks(table: Table) -> LockFolder:
    return FileLocks(Path(table.files.path(FOLDER))) if table.files.local else LeaseLocks(table.files, FOLDER)


def _owner(what: str) -> Owner:
    return myself(what, float(os.environ.get(SECONDS_VARIABLE) or DEFAULT_SECONDS))


def _sleep(locks: LockFolder) -> None:
    time.sleep(locks.poll * random.uniform(0.5, 1.5))


def _take(table: Table, locks: LockFolder, name: str, owner: Owner, wait: float = 0.0) -> Held:
    """Take a name, waiting so many seconds for whoever has it."""
    began, told = time.monotonic(), False
    while True:
        try:
            held = locks.take(name, owner)
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            raise explain(error, table.uri) from error
        if held is not None:
            return held
        waited = time.monotonic() - began
        other = locks.holders().get(name)
        # Nobody: it was released just now, or others are looking too.
        if (other is not None and waited >= wait) or waited >= max(wait, _MOMENT):
            raise _busy(table, other) if wait == 0 else TimeoutError(f"{_busy(table, other)} (waited {waited:.0f} s)")
        if other is not None and not told:
            _log.info("waiting for %s on %s", other, table.uri)
            told = True
        _sleep(locks)


def _busy(table: Table, *others: Owner | None) -> OSError:
    names = "; ".join(str(other) for other in others if other is not None) or "another process"
    return OSError(errno.EBUSY, f"{names} is at work on {table.uri}: run again when that is done")
