"""Locks in object stores: leases, which end by themselves unless they are renewed.

    <name>.<generation>.json     of one name the highest generation counts; it says who has it, or that it was released

Who wants a name writes the next generation on condition that nobody has (`If-None-Match: *`), once the highest is free: released; or not
renewed for as long as it promised, by the store's own clock; or of a process of this machine that is gone. Then it looks again, for a
latecomer may have brought back a generation that others had left behind and removed; the highest is never removed.

A holder writes its own object again from a thread. It takes the name for lost, for good, when a renewal was not confirmed before the
promise of the last one ran out, counted from before that one was sent. So nobody compares the clocks of two machines: the store's own
measures how old a lease is, the holder's own how long ago it asked. Two hold a name at once only if these differ in speed by a tenth.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
import time

from pydantic import ValidationError

from mtv_core.data.files import Files
from mtv_core.store.lock_owner import LockLostError, Owner

_log = logging.getLogger(__name__)
_NAME = re.compile(r"(?P<name>.+)\.(?P<generation>\d{8})\.json")
_GRACE = 3.0  # s; stores tell time in whole seconds
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a laptop sleeps


def _now() -> float:
    return time.clock_gettime(_CLOCK)


class LeaseLocks:
    """Names as leases below one folder of an object store."""

    poll = 1.0

    def __init__(self, files: Files, folder: str) -> None:
        self.files, self.folder = files, folder
        self._offset: float | None = None  # the store's clock minus ours, at most

    def path(self, name: str, generation: int) -> str:
        """Of an object, relative to the table."""
        return f"{self.folder}/{name}.{generation:08d}.json"

    def take(self, name: str, owner: Owner) -> HeldLease | None:
        """See `LockFolder.take`."""
        highest = self._highest().get(name, 0)
        if highest and self._holder(name, highest) is not None:
            return None
        mine, sent = highest + 1, _now()
        if not self.files.write_once(self.path(name, mine), owner.model_dump_json().encode()):
            return None
        held = HeldLease(self, name, mine, owner, sent)
        if self._highest().get(name) != mine:
            held.abandon()
            return None
        for generation in self._generations(name):
            if generation < mine:
                self.files.remove(self.path(name, generation))
        held.start()
        return held

    def holders(self) -> dict[str, Owner]:
        """See `LockFolder.holders`."""
        found = {}
        for name, generation in self._highest().items():
            owner = self._holder(name, generation)
            if owner is not None:
                found[name] = owner
        return found

    def _holder(self, name: str, generation: int) -> Owner | None:
        """Who holds the name, if this is its highest generation; None if nobody does."""
        path = self.path(name, generation)
        try:
            owner = Owner.model_validate_json(self.files.read(path))
        except FileNotFoundError:
            return None  # released just now, or left behind by a higher one, which the caller will find
        except ValidationError as error:
            raise OSError(f"{self.files.path(path)} is no lock of this version of MTV; remove it if nobody works on the table") from error
        if owner.released:
            return None
        if not owner.gone():
            with contextlib.suppress(FileNotFoundError):
                if self._store_time() - self.files.modified(path) <= owner.seconds + _GRACE:
                    return owner
        if owner.token in name:  # a name that nobody else will ever take
            self.files.remove(path)
        return None

    def _store_time(self) -> float:
        """What the clock of the store says now, or a second less."""
        if self._offset is None:
            probe = f"{self.folder}/clock-{secrets.token_hex(8)}"
            self.files.write(probe, b"what time is it?")
            try:
                self._offset = self.files.modified(probe) - _now()
            finally:
                self.files.remove(probe)
        return self._offset + _now()

    def _generations(self, name: str) -> list[int]:
        found = [_NAME.fullmatch(entry) for entry in self.files.names(self.folder)]
        return [int(match["generation"]) for match in found if match is not None and match["name"] == name]

    def _highest(self) -> dict[str, int]:
        highest: dict[str, int] = {}
        for entry in self.files.names(self.folder):
            if match := _NAME.fullmatch(entry):
                highest[match["name"]] = max(highest.get(match["name"], 0), int(match["generation"]))
        return highest


class HeldLease:
    """A lease of this process.

    Args:
        locks: where.
        name: of what.
        generation: which this process wrote.
        owner: as it was written.
        sent: the time, by our clock, before it was.
    """

    def __init__(self, locks: LeaseLocks, name: str, generation: int, owner: Owner, sent: float) -> None:
        self.owner, self._files, self._path = owner, locks.files, locks.path(name, generation)
        self._once = owner.token in name
        self._margin = owner.seconds / 6
        self._until = sent + owner.seconds - self._margin
        self._lost: str | None = None
        self._ended = threading.Event()
        self._writing = threading.Lock()  # the object has one writer at a time: an older state never covers a newer one
        self._thread = threading.Thread(target=self._renew_until_ended, name=f"lock {name}", daemon=True)

    def start(self) -> None:
        """Keep it from now on."""
        self._thread.start()

    def abandon(self) -> None:
        """It never counted."""
        self._ended.set()
        self._files.remove(self._path)

    def check(self) -> None:
        """See `Held.check`: enough of it must be left for a commit to be sent and answered."""
        if self._lost is None and _now() > self._until - self._margin:
            self._renew()
        if self._lost is not None or _now() > self._until - self._margin or self._ended.is_set():
            raise LockLostError(
                f"the lock {self._files.path(self._path)}, held by {self.owner}, was not renewed in time "
                f"({self._lost or 'the process was stopped, or too slow'}), so that another process may have it by now; run again"
            )

    def say_done(self) -> None:
        """See `Held.say_done`."""
        with self._writing:
            self.owner = self.owner.model_copy(update={"done": True})
        self._renew()

    def close(self) -> None:
        """See `Held.close`."""
        if self._ended.is_set():
            return
        self._ended.set()
        try:
            with self._writing:
                if _now() > self._until:
                    return  # it may be another's
                if self._once:
                    self._files.remove(self._path)
                else:
                    self._files.write(self._path, self.owner.model_copy(update={"released": True}).model_dump_json().encode())
        except OSError as error:
            _log.warning("the lock %s could not be released (%s); it ends by itself in %.0f s", self._path, error, self.owner.seconds)

    def _renew_until_ended(self) -> None:
        pause = self.owner.seconds / 4
        while not self._ended.wait(pause):
            self._renew()
            if self._lost is not None:
                return

    def _renew(self) -> None:
        with self._writing:
            sent = _now()
            if self._ended.is_set() or self._lost is not None:
                return
            problem = "it was stopped or too slow"
            try:
                if sent <= self._until:
                    self._files.write(self._path, self.owner.model_dump_json().encode())
            except Exception as error:  # whatever it is: the next try may do better
                problem = f"{type(error).__name__}: {error}"
                _log.warning("the lock %s could not be renewed: %s", self._path, problem)
                sent = self._until - self.owner.seconds + self._margin  # nothing gained
            if _now() > self._until:
                self._lost = problem
            else:
                self._until = sent + self.owner.seconds - self._margin
