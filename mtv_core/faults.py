"""Named places at which a test may kill the process: the way to show that a kill leaves nothing half-done.

`MTV_FAULT=staged` ends the process with SIGKILL when it first passes `fault_point("staged")`; `MTV_FAULT=staged:3` when it does for the
third time. With `MTV_FAULT_ONCE=<file>` the kill happens only if that file does not exist yet, and makes it: one worker of many, once.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

_passed: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Die here, if the environment says so. Costs one dictionary look-up otherwise."""
    wanted = os.environ.get("MTV_FAULT")
    if not wanted:
        return
    place, _, count = wanted.partition(":")
    if place != name:
        return
    _passed[name] += 1
    if _passed[name] < int(count or 1):
        return
    once = os.environ.get("MTV_FAULT_ONCE")
    if once:
        try:
            Path(once).open("x").close()
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
