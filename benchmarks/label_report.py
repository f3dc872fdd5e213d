"""A report of labels: what it costs on a large table.

    python -m benchmarks.label_report [--quick]

Two tables, the second ten times the first: 200 000 and 2 000 000 rows (20 000 and 200 000 with --quick). Their pictures are one tiny JPEG
and their depth one tiny map, since the report reads as few of them from any table (`tests/unit/test_label_report.py` counts); uids and
scores are as of any table. In turn:

    columns   the bound: reading `uid`, `scores` and `detection_rev` of every row, and nothing else
    scan      `mtv_core.label_report_scan.scan`: the same, with the rows of every slice and the histograms
    report    `mtv_core.label_report.collect` and `render`: all of it, but for writing the files

Memory is what a process of its own needs at most, beyond its imports, to make the report. JSON keys of the last line:

    scan_vs_columns     scan ÷ columns, wall time, on the larger table
    million_rows_s      of the scan, on the larger table
    fixed_seconds       of a report that do not depend on the table: report − scan, on the smaller one
    growth_mb           MB that the report of the larger table takes beyond the smaller one's
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.common import ROOT, finish, machine, table
from benchmarks.refresh import needed_mb
from mtv_core import label_report
from mtv_core.data.depth import encode
from mtv_core.data.schema import LABELS, SAMPLES, label_schema
from mtv_core.label_report_scan import scan
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

REVISION = "a" * 16
FRAGMENT = 20_000  # rows
COLUMNS = ["uid", "scores", "detection_rev"]


def sample_rows(first: int, count: int, rng: np.random.Generator, jpeg: bytes) -> pa.Table:
    """Samples with uids of their own."""
    uids = [bytes(row).hex() for row in rng.integers(0, 256, (count, 16), dtype=np.uint8)]
    caption = [f"a red cube left of a blue cone {number % 1000}" for number in range(first, first + count)]
    columns = {
        "uid": uids, "image": [jpeg] * count, "width": [16] * count, "height": [16] * count, "caption": caption,
        "captions": [[{"text": text, "kind": "web"}] for text in caption], "caption_raw": caption, "source": ["bench"] * count,
        "shard": ["s"] * count, "key": [str(number) for number in range(first, first + count)], "sha256": uids, "phash": [0] * count,
        "split": ["train"] * count, "ingest_id": ["i"] * count,
    }  # fmt: skip
    return pa.table({field.name: pa.array(columns.get(field.name, [None] * count), field.type) for field in SAMPLES}, schema=SAMPLES)


def label_rows(expert: str, count: int, rng: np.random.Generator, depth: bytes) -> pa.Table:
    """Labels: none to five boxes a row."""
    revision = pa.array([REVISION] * count, pa.string())
    if expert == "depth":
        return pa.table([pa.array([depth] * count), revision], schema=label_schema(expert))
    numbers = rng.integers(0, 6, count)
    ends = pa.array(np.concatenate([[0], np.cumsum(numbers)]).astype(np.int32))
    total = int(numbers.sum())
    corners = np.sort(rng.random((total, 2, 2), np.float32), axis=1).reshape(-1)
    boxes = pa.FixedSizeListArray.from_arrays(pa.array(corners), 4)
    phrases = pa.array(np.array(["red cube", "blue cone", "sky"])[rng.integers(0, 3, total)])
    scores = pa.array(rng.random(total, np.float32))
    columns = [pa.ListArray.from_arrays(ends, values) for values in (boxes, phrases, scores)]
    arrays = [column.cast(field.type) for column, field in zip(columns, LABELS[expert], strict=True)]
    return pa.table([*arrays, revision], schema=label_schema(expert))


def make(uri: Path, count: int) -> Table:
    """A table of `count` rows with labels of both experts."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "JPEG")
    depth = encode(rng.random((8, 8)).astype(np.float32))
    made = Table.create_or_open(str(uri))
    for first in range(0, count, FRAGMENT):
        made.append(sample_rows(first, min(FRAGMENT, count - first), rng, buffer.getvalue()), FRAGMENT)
    for expert in LABELS:
        made.ensure_columns(expert)
        version = made.version
        for first in range(0, len(made.dataset().get_fragments()), 50):
            staged = []
            for fragment in made.dataset().get_fragments()[first : first + 50]:
                batch = label_rows(expert, fragment.physical_rows, rng, depth)
                staged.append(made.stage_labels(expert, version, fragment.fragment_id, batch, revision=REVISION))
            made.commit_labels(staged)
    return made


def read_columns(made: Table) -> None:
    """The bound."""
    for _ in made.at(made.uri).scan(COLUMNS, batch_size=1 << 16):
        pass


def read_scan(made: Table) -> None:
    scan(made.at(made.uri), revision=REVISION)


def report(made: Table) -> None:
    document = label_report.collect(made, made.version, {}, None, LabelConfig())
    for _ in label_report.render(document):
        pass


WORK = {"columns": read_columns, "scan": read_scan, "report": report}


def peak_mb(uri: str) -> float:
    """MB that a process needs at most to make the report, beyond its imports."""
    command = [sys.executable, "-m", "benchmarks.label_report", "--child", uri]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(made: Table, rounds: int) -> dict[str, float]:
    """Seconds of each, the median."""
    found: dict[str, list[float]] = {name: [] for name in WORK}
    for _ in range(rounds):
        for name, work in WORK.items():
            began = time.perf_counter()
            work(made)
            found[name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, one round")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(needed_mb(lambda: report(Table.open(options.child)), 1))
        return
    small, large = (20_000, 200_000) if options.quick else (200_000, 2_000_000)
    with tempfile.TemporaryDirectory(prefix="mtv-label-report-") as scratch:
        seconds, memory = {}, {}
        for count in (small, large):
            made = make(Path(scratch) / str(count), count)
            seconds[count] = measure(made, 1 if options.quick else 5)
            memory[count] = peak_mb(made.uri)
    lines: list[tuple[str, ...]] = [("", *(f"{count:,} rows, s" for count in seconds), "rows/s")]
    lines += [(name, *(f"{of[name]:.3f}" for of in seconds.values()), f"{large / seconds[large][name]:,.0f}") for name in WORK]
    print(table([*lines, ("memory, MB", *(f"{peak:.0f}" for peak in memory.values()), "")]), "\n")
    finish(
        {
            "scan_vs_columns": round(seconds[large]["scan"] / seconds[large]["columns"], 3),
            "million_rows_s": round(large / seconds[large]["scan"] / 1e6, 3),
            "fixed_seconds": round(seconds[small]["report"] - seconds[small]["scan"], 3),
            "growth_mb": round(memory[large] - memory[small], 1),
            "seconds": {str(count): {name: round(value, 4) for name, value in of.items()} for count, of in seconds.items()},
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
