"""Takes samples down, and dies where `MTV_FAULT` says: `python takedown_child.py TABLE REQUEST.json` or `… TABLE --resume`."""

from __future__ import annotations

import sys
from pathlib import Path

from mtv_core.store import takedown
from mtv_core.store.table import Table
from mtv_core.store.takedown_request import Request

if __name__ == "__main__":
    table = Table.create_or_open(sys.argv[1])
    print("ready", flush=True)
    if sys.argv[2] == "--resume":
        takedown.resume(table)
    else:
        takedown.run(table, Request.model_validate_json(Path(sys.argv[2]).read_text()), "asked by its owner")
