"""What `mtv up` started: `<MTV_HOME>/services/services.json`, changed under a file lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from mtv_core.runs import write_atomic

_FREE_BYTES = 200 * 2**20  # A first start writes 60 MB: the UI's files, two databases, logs.


class ServiceError(RuntimeError):
    """A service cannot be started; the message says why and what to do."""


class Service(BaseModel, extra="ignore"):
    """One process of ours. `created` tells it from another that got the same pid later."""

    pid: int
    created: float
    port: int | None = None
    serves: str = Field("", description="of the worker: the URLs it was started with")


class State(BaseModel, extra="ignore"):
    """What is known between two calls of `mtv`."""

    services: dict[str, Service] = Field(default_factory=dict)
    deployed: str = Field("", description="digest of what the deployments were made from")
    mlflow: str = Field("", description="version whose schema the database has")


def services_folder(home: Path) -> Path:
    """Where the services keep their databases."""
    return home / "services"


def log_file(home: Path, name: str) -> Path:
    """Where a service's output goes."""
    return home / "logs" / f"{name}.log"


def load(home: Path) -> State:
    """The state, empty if there is none or it cannot be read: running services are found by their environment as well."""
    try:
        return State.model_validate_json((services_folder(home) / "services.json").read_text())
    except (OSError, ValidationError):
        return State()


def save(home: Path, state: State) -> None:
    """Write the state at once or not at all."""
    write_atomic(services_folder(home) / "services.json", state.model_dump_json(indent=2) + "\n")


def prepare(home: Path) -> None:
    """Make the folders.

    Raises:
        ServiceError: they cannot be written, or the disk is full.
    """
    advice = "point MTV_HOME at a folder that can be written"
    try:
        for folder in (services_folder(home), home / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=services_folder(home)) as probe:
            probe.write(b"mtv")
            probe.flush()
        free = shutil.disk_usage(home).free
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServiceError(f"the disk of {home} is full: free some space, or {advice}") from None
        raise ServiceError(f"{home} cannot be written ({error.strerror}): {advice}") from None
    if free < _FREE_BYTES:
        raise ServiceError(
            f"the disk of {home} is nearly full ({free >> 20} MiB left, {_FREE_BYTES >> 20} are needed): free some space, or {advice}"
        )


@contextlib.contextmanager
def lock(home: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One `mtv up` or `mtv down` at a time; the second waits. The lock goes with its holder, however that ends."""
    with (services_folder(home) / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another mtv up or mtv down is at work: waiting for it")
            _wait(file.fileno())
        yield


def _wait(descriptor: int, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ServiceError(f"another mtv up or mtv down has been at work for {seconds:.0f} s: end it, then try again") from None
            time.sleep(0.1)
