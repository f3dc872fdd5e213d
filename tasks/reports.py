"""The files of an ingest's report: they lie beside the table, and a run keeps copies, since the table goes on without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mtv_core.data.files import Files
from mtv_core.report import StageRef

PREFIX = "report/"  # of the names in `StageRef.outputs`


def read(ref: StageRef, storage_options: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """Name → content of the files that are still there; a takedown removes pictures."""
    found: dict[str, bytes] = {}
    for name, uri in ref.outputs.items():
        if name.startswith(PREFIX):
            folder, _, file = uri.rpartition("/")
            try:
                found[name.removeprefix(PREFIX)] = Files(folder, storage_options).read(file)
            except FileNotFoundError:
                continue
    return found


def keep(ref: StageRef, folder: Path, storage_options: Mapping[str, str] | None = None) -> list[Path]:
    """Copy them into a run's folder, below `reports/ingest/`; returns the copies."""
    kept = []
    for name, content in read(ref, storage_options).items():
        path = folder / "reports" / ref.stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        kept.append(path)
    return kept
