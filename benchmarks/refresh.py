"""A refresh: what it costs to find that nothing is stale, and to label the little that is.

    python -m benchmarks.refresh [--quick]

A table of 10 000 fragments (1 000 with --quick), labelled by both blocks experts. Its rows are few and small: what a no-op costs grows with
fragments and label files, not with pixels. In turn, each on a table opened anew:

    scan    the bound: opening the table, and one bare scan an expert for rows whose revision is null or another
    plan    `mtv_core.labelling_plan.plan`: what `mtv plan` and the head of a refresh do
    no-op   `mtv_core.labelling.run` to its end, the tag included

Memory is what a process of its own needs at most, beyond its imports, to do it once and ten times.

A second table has fewer fragments with real pictures (blocks, 96 px) and is labelled by the real blocks experts on one process:

    full    every row labelled anew by both experts, whose revision changed
    1 %     one fragment in a hundred is stale, since it came later

Weights are loaded again for each, pictures are decoded, label files written and committed, the table is tagged; starting Python is left
out.
JSON keys of the last line, with the targets:

    noop_vs_scan        no-op ÷ scan, wall time                                                             ≤ 3
    noop_growth_mb      MB more after ten no-ops than after one                                             about 0
    one_percent_cost    1 % ÷ full, wall time                                                               ≤ 0.03
    bytes_vs_columns    bytes of all data files a full relabel added ÷ bytes of the columns it replaced      1
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from benchmarks.common import ROOT, finish, machine, table
from mtv_core import experts, labelling, labelling_plan, labelling_worker
from mtv_core.blocks.shards import truth
from mtv_core.data.schema import SAMPLES, label_schema, sample_uid
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.dataset import open_dataset
from mtv_core.store.table import Table

if TYPE_CHECKING:
    from lance import LanceDataset

PICTURES = 64  # different ones; they repeat
TIMES = 10  # no-ops after one another, for memory
SOURCE = "benchmark"


def label_config(revision: int) -> LabelConfig:
    """The blocks experts of a revision, accepted at once."""
    models = {name: {"model": f"blocks:{name}-r{revision}"} for name in ("depth", "detection")}
    return LabelConfig.model_validate({**models, "accept": "immediate"})


# Tables


def rows(first: int, number: int, pictures: list[tuple[bytes, str]]) -> pa.Table:
    """Samples of pictures that repeat; each has a caption and so a uid of its own."""
    found = []
    for index in range(first, first + number):
        image, text = pictures[index % len(pictures)]
        caption = f"{text} {index}"
        found.append(
            {
                "uid": sample_uid(image, caption), "image": image, "width": 96, "height": 96, "caption": caption,
                "captions": [{"text": caption, "kind": "web"}], "caption_raw": caption, "source": SOURCE, "shard": SOURCE,
                "key": f"{index:09d}", "sha256": hashlib.sha256(image).hexdigest(), "phash": index, "split": "train", "ingest_id": SOURCE,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(found, schema=SAMPLES)


def scenes() -> list[tuple[bytes, str]]:
    """JPEGs of blocks and their captions."""
    found = []
    for index in range(PICTURES):
        sample, buffer = truth(1, index, 96, 96), io.BytesIO()
        Image.fromarray(sample.rendered.rgb).save(buffer, "JPEG", quality=92)
        found.append((buffer.getvalue(), sample.caption.text))
    return found


class HeldTable(Table):
    """Keeps the handles it opened: it writes 20 000 label files in a minute."""

    def dataset(self, version: int | None = None) -> LanceDataset:
        held = self.__dict__.setdefault("held", {})
        if version is None:
            return super().dataset()
        if version not in held:
            held[version] = super().dataset(version)
        return held[version]


def wide_table(folder: Path, fragments: int, config: LabelConfig, rows_per_fragment: int = 4) -> Table:
    """Many fragments, labelled as a run of the experts would have, with empty labels."""
    written = HeldTable(str(folder))
    written.append(rows(0, fragments * rows_per_fragment, [(b"not decoded", "a picture")]), rows_per_fragment)
    for name, expert in config.experts().items():
        written.ensure_columns(name)
        revision, schema = experts.revision(name, expert), label_schema(name)
        labels = pa.Table.from_pylist([{f"{name}_rev": revision}] * rows_per_fragment, schema=schema)
        version = written.version
        staged = [written.stage_labels(name, version, fragment, labels, (), revision) for fragment in range(fragments)]
        written.commit_labels(staged)
    return Table.open(str(folder))


# Finding that nothing is stale


def scan(uri: str, config: LabelConfig) -> None:
    """What Lance takes to open the table and to filter it for stale rows."""
    dataset = open_dataset(f"{uri}/samples.lance")
    assert dataset is not None
    for name, expert in config.experts().items():
        revision = experts.revision(name, expert)
        stale = dataset.scanner(columns=[], with_row_address=True, filter=f"{name}_rev is null or {name}_rev <> '{revision}'")
        assert sum(batch.num_rows for batch in stale.to_batches()) == 0


def plan(uri: str, config: LabelConfig) -> None:
    """What `mtv plan` does."""
    assert all(one.num_stale == 0 for one in labelling_plan.plan(uri, config).values())


def noop(uri: str, config: LabelConfig) -> None:
    """A run that has nothing to do."""
    assert labelling.run(uri, config, SerialExecutor()).report.rows_in == 0


WORK: dict[str, Callable[[str, LabelConfig], None]] = {"scan": scan, "plan": plan, "no-op": noop}


def peak_mb(name: str, uri: str, times: int) -> float:
    """MB that a process needs at most, beyond its imports, to do it so many times."""
    command = [sys.executable, "-m", "benchmarks.refresh", "--child", name, "--uri", uri, "--times", str(times)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def needed_mb(work: Callable[[], None], times: int) -> float:
    """MB that work needs at most beyond what this process has already."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    for _ in range(times):
        work()
    return (_memory("VmHWM") - before) / 1000


def _memory(name: str) -> int:
    """KB, of the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_noop(folder: Path, fragments: int, rounds: int) -> dict[str, Any]:
    """Seconds and MB of each kind of work on a table where nothing is stale."""
    config = label_config(1)
    began = time.perf_counter()
    uri = wide_table(folder, fragments, config).uri
    print(f"a table of {fragments} fragments, made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    noop(uri, config)  # accepts and tags, once
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for name, work in WORK.items():
            began = time.perf_counter()
            work(uri, config)
            if turn:  # the first is for warming up
                seconds[name].append(time.perf_counter() - began)
    memory = {f"{name}/{times}": peak_mb(name, uri, times) for name in ("scan", "no-op") for times in (1, TIMES)}
    return {"fragments": fragments, "seconds": {name: median(found) for name, found in seconds.items()}, "peak_mb": memory}


# Labelling what is stale


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Wall and CPU time of a block, with weights that are loaded in it."""
    labelling_worker.loaded.cache_clear()
    found: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    found |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def data_files(uri: str) -> dict[str, int]:
    """Name → bytes of all data files on the disk."""
    return {path.name: path.stat().st_size for path in (Path(uri) / "samples.lance" / "data").iterdir()}


def column_bytes(uri: str) -> int:
    """Bytes of the files that the label columns are read from now: nothing but those columns is in them."""
    dataset = open_dataset(f"{uri}/samples.lance")
    assert dataset is not None
    schema = dataset.lance_schema.fields()
    images = {field.id() for field in schema if field.name() == "image"}
    files = [file for fragment in dataset.get_fragments() for file in fragment.data_files() if not images & set(file.fields)]
    return sum((Path(uri) / "samples.lance" / "data" / file.path).stat().st_size for file in files)


def measure_relabel(folder: Path, fragments: int, rows_per_fragment: int, rounds: int) -> dict[str, Any]:
    """A full relabel and one of a hundredth, seconds; bytes that were written and bytes that are stale columns."""
    pictures = scenes()
    table = Table(str(folder))
    table.append(rows(0, fragments * rows_per_fragment, pictures), rows_per_fragment)
    labelling.run(table.uri, label_config(1), SerialExecutor())
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    written = columns = 0
    few = fragments // 100
    for turn in range(rounds):
        config = label_config(2 - turn % 2)
        before = data_files(table.uri)
        with timed() as full:
            report = labelling.run(table.uri, config, SerialExecutor()).report
        assert report.rows_in == 2 * table.num_rows
        new = {name: size for name, size in data_files(table.uri).items() if name not in before}
        assert before.items() <= data_files(table.uri).items()
        assert all(name.startswith("label-") for name in new)
        assert sum(new.values()) == report.bytes_written
        written, columns = sum(new.values()), column_bytes(table.uri)
        found["full"].append(full | {"rows": report.rows_in})
        table.append(rows(table.num_rows, few * rows_per_fragment, pictures), rows_per_fragment)
        with timed() as part:
            report = labelling.run(table.uri, config, SerialExecutor()).report
        assert report.rows_in == 2 * few * rows_per_fragment
        found["1 %"].append(part | {"rows": report.rows_in})
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    cost = {kind: median(a[kind] / b[kind] for a, b in zip(found["1 %"], found["full"], strict=True)) for kind in ("wall", "cpu")}
    seconds = {name: median(one["wall"] for one in ones) for name, ones in found.items()}
    labels = {name: int(ones[-1]["rows"]) for name, ones in found.items()}
    return {"fragments": fragments, "seconds": seconds, "labels": labels, "cost": cost, "bytes_written": written, "column_bytes": columns}


def report(nothing: dict[str, Any], little: dict[str, Any]) -> None:
    """The tables and the last line."""
    seconds, memory = nothing["seconds"], nothing["peak_mb"]
    lines: list[tuple[str, ...]] = [(f"nothing stale, {nothing['fragments']} fragments", "ms", "÷ scan", "MB", f"MB, {TIMES} times")]
    for name in WORK:
        peaks = [f"{memory[f'{name}/{times}']:.0f}" if f"{name}/{times}" in memory else "" for times in (1, TIMES)]
        lines.append((name, f"{1000 * seconds[name]:.0f}", f"{seconds[name] / seconds['scan']:.2f}", *peaks))
    print(f"\n{table(lines)}\n")
    print(
        table(
            [
                (f"labelling, {little['fragments']} fragments", "labels", "s", "÷ full", "÷ full, CPU"),
                ("full", f"{little['labels']['full']}", f"{little['seconds']['full']:.2f}", "1", "1"),
                (
                    "1 %",
                    f"{little['labels']['1 %']}",
                    f"{little['seconds']['1 %']:.2f}",
                    f"{little['cost']['wall']:.4f}",
                    f"{little['cost']['cpu']:.4f}",
                ),
            ]
        ),
        "\n",
    )
    finish(
        {
            "noop_vs_scan": round(seconds["no-op"] / seconds["scan"], 3),
            "plan_vs_scan": round(seconds["plan"] / seconds["scan"], 3),
            "noop_growth_mb": round(memory[f"no-op/{TIMES}"] - memory["no-op/1"], 1),
            "one_percent_cost": round(little["cost"]["wall"], 4),
            "one_percent_cost_cpu": round(little["cost"]["cpu"], 4),
            "bytes_vs_columns": round(little["bytes_written"] / little["column_bytes"], 4),
            "noop": nothing | {"seconds": {name: round(value, 4) for name, value in seconds.items()}},
            "relabel": little | {"seconds": {name: round(value, 3) for name, value in little["seconds"].items()}},
            "machine": machine(),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer fragments and rounds")
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(needed_mb(lambda: WORK[options.child](options.uri, label_config(1)), options.times)))
        return
    with tempfile.TemporaryDirectory(prefix="mtv-refresh-") as scratch:
        nothing = measure_noop(Path(scratch) / "wide", 1000 if options.quick else 10_000, 3 if options.quick else 9)
        little = measure_relabel(Path(scratch) / "real", 100 if options.quick else 400, 8, 1 if options.quick else 3)
    report(nothing, little)


if __name__ == "__main__":
    main()
