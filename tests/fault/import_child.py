"""Imports labels and dies where `MTV_FAULT` says: `python import_child.py TABLE FILE [keep]`."""

from __future__ import annotations

import sys
from pathlib import Path

from mtv_core.label_import import run

if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), keep_others=len(sys.argv) > 3)
