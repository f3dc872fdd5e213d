"""What a lock is, whatever keeps it: a name that one holder has, and who that is."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, Field


class LockLostError(OSError):
    """The right to write was lost: it was not renewed in time, and somebody else may have it. Commit nothing; run again, it goes on."""


class Owner(BaseModel, frozen=True, extra="ignore"):
    """Who holds a name, for other processes and for people."""

    token: str = Field(description="unique to one holding")
    what: str = Field(description="what is being done: ingest, takedown, …")
    host: str
    machine: str = Field(description="boot and process namespace, within which `pid` means something; empty if that is not known")
    pid: int
    started: int = Field(description="ticks from boot to the start of the process; tells it from a later one of the same pid")
    since: str = Field(description="UTC time")
    seconds: float = Field(description="how long it is valid without being renewed; for leases")
    done: bool = Field(False, description="the holder writes nothing any more, and needs nothing that it staged")
    released: bool = False

    def __str__(self) -> str:
        return f"{self.what} (process {self.pid} on {self.host}, since {self.since} UTC)"

    def gone(self) -> bool:
        """Whether its process is known to have ended: only of those that run, or ran, on this machine since it was started."""
        return bool(self.machine) and self.machine == _machine() and _started(self.pid) != self.started


def myself(what: str, seconds: float) -> Owner:
    """This process, as the owner of one more name."""
    return Owner(
        token=secrets.token_hex(8),
        what=what,
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0,
        since=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        seconds=seconds,
    )


def _machine() -> str:
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> int | None:
    """When a process began; None if there is none, or only its exit status is left."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in b"ZX" else int(fields[18])


class Held(Protocol):
    """A name that this process has."""

    @property
    def owner(self) -> Owner:
        """What the others see."""
        ...

    def check(self) -> None:
        """Raises LockLostError if it may be somebody else's by now, or soon."""
        ...

    def say_done(self) -> None:
        """Tell the others that the holder writes nothing any more."""
        ...

    def close(self) -> None:
        """Give it back. Again, it does nothing."""
        ...


class LockFolder(Protocol):
    """The names of one table."""

    poll: float  # seconds between two tries

    def take(self, name: str, owner: Owner) -> Held | None:
        """Take a name; None if somebody has it, or was quicker."""
        ...

    def holders(self) -> dict[str, Owner]:
        """Name → holder, of the names that are held now."""
        ...
