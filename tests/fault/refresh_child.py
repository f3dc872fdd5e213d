"""`mtv refresh` with experts that see the picture, in this process, which dies where `MTV_FAULT` says: `refresh_child.py OPTION…`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from canary_experts import load

from flows import cli
from mtv_core import experts, labelling
from mtv_core.executor import SerialExecutor
from tasks import label, label_report, refresh, run

USED = (labelling, label_report, run)  # the command imports them when it needs them; a kill is to find it at work, not at that


@contextlib.contextmanager
def here(compute: Any) -> Iterator[SerialExecutor]:
    yield SerialExecutor()


if __name__ == "__main__":
    experts.load = load(os.environ.get("MTV_TEST_BROKEN") or None)
    for module in (refresh, label):
        vars(module)["on_demand"] = here
    sys.argv = ["mtv", "refresh", *sys.argv[1:]]
    print("ready", flush=True)
    try:
        cli.main()
    finally:
        print("done", flush=True)
