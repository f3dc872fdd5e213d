"""`metrics.jsonl`: one row a window of steps, written by rank 0, read by whoever watches."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtv_core.runs import write_atomic

NAME = "metrics.jsonl"


class Window:
    """Means over the steps since the last row; steps that were left out do not count."""

    def __init__(self, sums: Mapping[str, list[float]] | None = None) -> None:
        self.sums = {name: list(pair) for name, pair in (sums or {}).items()}

    def add(self, values: Mapping[str, float]) -> None:
        """One step."""
        for name, value in values.items():
            pair = self.sums.setdefault(name, [0.0, 0])
            pair[0] += value
            pair[1] += 1

    def means(self) -> dict[str, float]:
        """And start anew."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


def append(folder: Path, row: Mapping[str, Any]) -> None:
    """Add one row; a reader sees all of it or nothing of it, for it reads whole lines only."""
    with (folder / NAME).open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def flush(folder: Path) -> None:
    """Make the rows so far last a power cut: a checkpoint is not to know of steps whose rows are lost."""
    path = folder / NAME
    if path.exists():
        with path.open("a") as file:
            os.fsync(file.fileno())


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole rows."""
    path = folder / NAME
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def keep_until(folder: Path, step: int, source: Path | None = None) -> None:
    """Leave the rows of steps ≤ `step`, those that a checkpoint knows of; what follows will be written again.

    The file is replaced, not cut, so that a reader in the middle of it notices. `source`: the folder to take the rows from.
    """
    rows = read(source or folder)
    kept = [row for row in rows if row["step"] <= step]
    path = folder / NAME
    text = "".join(json.dumps(row) + "\n" for row in kept)
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text)


class Tail:
    """The rows as they appear, each step's once, though the file is replaced when a run resumes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.inode, self.offset, self.step = 0, 0, 0

    def new(self) -> list[dict[str, Any]]:
        """Rows that were not there at the last call, in order."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            if (inode := os.fstat(file.fileno()).st_ino) != self.inode:
                self.inode, self.offset = inode, 0
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        rows = [row for row in map(json.loads, whole.splitlines()) if row["step"] > self.step]
        if rows:
            self.step = rows[-1]["step"]
        return rows


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Its finite numbers."""
    return {name: float(value) for name, value in row.items() if isinstance(value, (int, float)) and math.isfinite(value)}
