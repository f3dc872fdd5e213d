"""Processes of ours: start them so that they outlive the command line, recognise them, end whole trees of them.

Every process carries `MTV_SERVICES_OF=<MTV_HOME>` in its environment, and so does whatever it starts: a rank of a training whose parents
were killed is still found, and nothing that we did not start is ever ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from infra.local.state import Service

MARK = "MTV_SERVICES_OF"
ROLE = "MTV_SERVICE"
FLOW_RUN = "PREFECT__FLOW_RUN_ID"
_LOG_BYTES = 20 * 2**20

_children: dict[int, subprocess.Popen[bytes]] = {}  # Of this process, so that none of them stays a zombie in a long-lived one.


def spawn(command: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> Service:
    """Start a process in a session of its own, so that closing the terminal does not end it."""
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as file:
        child = subprocess.Popen(
            list(command), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    _children[child.pid] = child
    return Service(pid=child.pid, created=psutil.Process(child.pid).create_time())


def alive(service: Service | None) -> psutil.Process | None:
    """The service's process, if it still is the one that was started."""
    if service is None:
        return None
    reap()
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(service.pid)
        # Clocks are stepped now and then: half a second is no other process.
        if abs(process.create_time() - service.created) < 0.5 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or only its parent has not noticed yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def reap() -> None:
    """Forget children that have ended."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def family(home: Path, role: str | None = None) -> list[psutil.Process]:
    """Every living process started for this `MTV_HOME`, and for one service of it; this one and its ancestors left out."""
    reap()
    with contextlib.suppress(psutil.Error):
        here = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        env = environment(process)
        if env.get(MARK) == str(home) and process.pid not in here and (role is None or env.get(ROLE) == role):
            found.append(process)
    return found


def environment(process: psutil.Process) -> dict[str, str]:
    """A process's environment, empty if it is somebody else's or has ended."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ()
    return {}


def flow_runs(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Of these, the ones that run flows: each the top of its tree."""
    running = {process.pid: process for process in processes if FLOW_RUN in environment(process)}
    tops = []
    for process in running.values():
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in running:
                tops.append(process)
    return tops


def end(find: Callable[[], list[psutil.Process]], first: Sequence[psutil.Process], seconds: float) -> None:
    """SIGTERM to `first`, wait until nothing is found any more, then SIGKILL to the rest. What they start meanwhile is found too."""
    for process in first:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + seconds
    while rest := find():
        if time.monotonic() > deadline:
            for process in rest:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(rest, timeout=5)
            if time.monotonic() > deadline + 15:
                return
        time.sleep(0.05)


def choose_port(candidates: Iterable[int | None]) -> int:
    """The first of these ports that nobody has, else any free one."""
    for port in candidates:
        if port is not None and is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether nothing listens on the port, neither on this address nor on all of them."""
    with socket.socket() as caller:
        caller.settimeout(0.5)
        if caller.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
