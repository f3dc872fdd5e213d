"""Ingest: how fast, against peers that do the same, and against what the codec alone allows.

    python -m benchmarks.ingest [--quick]

The input is a folder of tars of photo-like JPEGs, 1024 × 768 px at quality 90 (4:2:0), each with a caption and a JSON. All shrink them
to a long side of 512 px, at quality 90 and 4:2:0, and write them with caption and JSON:

    webdataset     webdataset + Pillow, whose `draft` decodes at half size (so nothing is left to resize) + `ShardWriter`: tars
    img2dataset    img2dataset's own resizer (OpenCV) and writer: tars and a parquet
    mtv            `mtv_core.ingest.run`, workers and all: a table; also hashes, checks, filters, deduplicates (exact and near), commits
    codec          the bound: our decode + resize + encode + perceptual hash of the same pictures, in memory, and nothing else

With a long side of 1024 px the same tars pass through byte for byte:

    passthrough    `mtv_core.ingest.run`
    validate       the bound: reading, sha256, and the one decode that the check and the perceptual hash need

All run on one process and on two, with the same memory settings. Start-up (interpreters, imports, the Dask cluster) does not count, all
else does. The runs of a round come one after the other, rounds are repeated, and medians of samples/s are compared; CPU time, which a busy
machine disturbs less, stands beside. JSON keys of the last line, with the targets:

    vs_best_peer           mtv ÷ the faster peer, the worse of one and two processes                        ≥ 1.5
    vs_codec_bound         mtv ÷ codec, one process                                                         ≥ 0.85
    passthrough_vs_bound   passthrough ÷ validate, one process                                              ≥ 0.85
    scaling_vs_codec       gain of mtv from one to two workers ÷ gain of the codec from one to two          ≥ 0.9
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import ROOT, finish, machine, peers_python, photo_jpegs, table
from mtv_core import ingest
from mtv_core.compute import ComputeConfig
from mtv_core.data.sources import RawSample, SourceConfig, expand, read
from mtv_core.executor import Executor, Outcome, SerialExecutor
from mtv_core.ingest_config import IngestConfig
from tasks.cluster import DaskExecutor, connect

SIDE, QUALITY = 512, 90
PASS_SIDE = 1024
ROWS_PER_FRAGMENT = 300  # so that so few samples are several fragments, as any real table is
WORDS = (
    "a",
    "the old",
    "red",
    "small",
    "wooden boat",
    "house",
    "dog in the street",
    "garden",
    "river",
    "near",
    "with two people",
    "at dusk",
)


@dataclass(frozen=True)
class Timing:
    """Of one run."""

    samples: int
    wall: float  # s
    cpu: float  # s, of all processes together

    @property
    def rate(self) -> float:
        return self.samples / self.wall


def make_tars(folder: Path, shards: int, samples: int) -> list[str]:
    """Shards as img2dataset writes them."""
    folder.mkdir(parents=True)
    jpegs = photo_jpegs(range(shards * samples))
    tars = []
    for shard in range(shards):
        path = folder / f"{shard:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
            for number in range(shard * samples, (shard + 1) * samples):
                caption = " ".join(WORDS[(number * 7 + n * n) % len(WORDS)] for n in range(9)) + f" {number}"
                meta = {"caption": caption, "url": f"https://example.org/{number}.jpg", "width": 1024, "height": 768, "status": "success"}
                parts = {"jpg": jpegs[number], "txt": caption.encode(), "json": json.dumps(meta, indent=4).encode()}
                for extension, content in parts.items():
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
        tars.append(str(path))
    return tars


class Workers:
    """Processes of one role that wait for jobs (`ingest_worker`)."""

    def __init__(self, stack: ExitStack, role: str, python: Path | str, number: int, scratch: Path) -> None:
        self._scratch, self._role = scratch, role
        self._processes = []
        for _ in range(number):
            command = [str(python), "-W", "ignore", str(ROOT / "benchmarks" / "ingest_worker.py"), role]
            log = stack.enter_context((scratch / f"{role}.log").open("a"))
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=scratch, env=_environment()
            )
            stack.callback(_end, process)
            self._processes.append(process)
        for process in self._processes:
            if process.stdout is None or process.stdout.readline().strip() != "ready":
                raise SystemExit(f"{role} did not start: {(scratch / f'{role}.log').read_text()[-2000:]}")

    def run(self, tars: Sequence[str], number: int, side: int = SIDE) -> Timing:
        """Do all tars on `number` of the processes, each its share."""
        began = time.perf_counter()
        for index, process in enumerate(self._processes[:number]):
            job = {"tars": tars[index::number], "side": side, "quality": QUALITY, "out": str(self._scratch / f"{self._role}-{index}")}
            assert process.stdin is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        answers = []
        for process in self._processes[:number]:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{self._role} ended: {(self._scratch / f'{self._role}.log').read_text()[-2000:]}")
            answers.append(json.loads(line))
        wall = time.perf_counter() - began
        return Timing(sum(one["samples"] for one in answers), wall, sum(one["cpu"] for one in answers))


def _environment() -> dict[str, str]:
    """With the memory settings that our workers have (tasks.cluster), for everyone."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ingest_once(tars: Sequence[str], executor: Executor, scratch: Path, side: int) -> Timing:
    """Into a new table."""
    target = scratch / "table"
    shutil.rmtree(target, ignore_errors=True)
    source = SourceConfig(uri=str(Path(tars[0]).parent))
    config = IngestConfig(max_side=side, quality=QUALITY, rows_per_fragment=ROWS_PER_FRAGMENT)
    cpu = _cpu(executor)
    began = time.perf_counter()
    result = ingest.run([source], str(target), config, executor)
    wall = time.perf_counter() - began
    if result.rows != result.report.rows_in:
        raise SystemExit(f"{result.rows} rows of {result.report.rows_in} samples: {result.report}")
    return Timing(result.rows, wall, _cpu(executor) - cpu)


def _cpu(executor: Executor) -> float:
    workers = sum(executor.client.run(time.process_time).values()) if isinstance(executor, DaskExecutor) else 0.0
    return time.process_time() + workers


# Where the rest goes


@dataclass
class Timed:
    """An executor in this process that knows how much CPU time each kind of work took, s."""

    inner: Executor = field(default_factory=SerialExecutor)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def map(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, resources: Mapping[str, float] | None = None
    ) -> Iterator[Outcome[Any, Any]]:
        outcomes = self.inner.map(function, items, resources=resources)
        while True:
            with _clock(self.seconds, function.__name__):
                outcome = next(outcomes, None)
            if outcome is None:
                return
            yield outcome


@contextmanager
def _clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    seconds[name] += time.process_time() - began


def breakdown(tars: Sequence[str], scratch: Path, side: int, codec: float) -> dict[str, float]:
    """CPU ms a sample by kind of work, of one ingest in this process. `codec` is the bound, ms a sample."""
    executor = Timed()
    total = ingest_once(tars, executor, scratch, side)
    seconds = executor.seconds
    for shard in expand(SourceConfig(uri=str(Path(tars[0]).parent)), None):
        with _clock(seconds, "read"):
            samples = list(read(shard, 64 << 20, None))
        with _clock(seconds, "hash"):
            for sample in samples:
                assert isinstance(sample, RawSample)
                assert sample.digest
    each = {name: 1000 * spent / total.samples for name, spent in seconds.items()}
    whole = 1000 * total.cpu / total.samples
    return {
        "codec": codec,
        "read the tar": each["read"],
        "sha256 of images": each["hash"],
        "captions, filters, rows, staging": each["stage_shard"] - codec - each["read"] - each["hash"],
        "write fragments (Lance)": each["write_fragment"],
        "deduplicate, commit, ledger, report": whole - each["stage_shard"] - each["write_fragment"],
        "wait for the disk": 1000 * total.wall / total.samples - whole,
    }


def main() -> None:
    """Run everything and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and rounds")
    parser.add_argument("--without-peers", action="store_true", help="only ours and the bounds")
    options = parser.parse_args()
    shards, samples, rounds = (4, 100, 3) if options.quick else (16, 150, 5)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtv-bench-")))
        print(f"making {shards * samples} pictures", file=sys.stderr)
        tars = make_tars(scratch / "tars", shards, samples)
        size = sum(Path(tar).stat().st_size for tar in tars) / (shards * samples)
        rates, cpus = measure(stack, tars, scratch, rounds, peers=not options.without_peers)
        parts = {
            "ingest": breakdown(tars, scratch, SIDE, 1000 * cpus["codec", 1]),
            "passthrough": breakdown(tars, scratch, PASS_SIDE, 1000 * cpus["validate", 1]),
        }
    report(rates, cpus, parts, size)


Measured = dict[tuple[str, int], float]


def measure(stack: ExitStack, tars: list[str], scratch: Path, rounds: int, peers: bool) -> tuple[Measured, Measured]:
    """Medians by (what, processes): samples/s, and CPU seconds a sample."""
    roles: dict[str, tuple[Path | str, int]] = {"codec": (sys.executable, SIDE), "validate": (sys.executable, PASS_SIDE)}
    if peers:
        roles |= {"webdataset": (sys.executable, SIDE), "img2dataset": (peers_python(), SIDE)}
    workers = {role: (Workers(stack, role, python, 2, scratch), side) for role, (python, side) in roles.items()}
    clusters = {number: stack.enter_context(connect(ComputeConfig(workers=number))) for number in (1, 2)}
    timings: dict[tuple[str, int], list[Timing]] = defaultdict(list)
    for turn in range(rounds + 1):
        for number in (1, 2):
            # img2dataset takes so long that it gets a quarter of the shards.
            shares = {role: tars[: -(-len(tars) // 4) * number] if role == "img2dataset" else tars for role in workers}
            done = {role: run.run(shares[role], number, side) for role, (run, side) in workers.items()}
            done["mtv"] = ingest_once(tars, clusters[number], scratch, SIDE)
            done["passthrough"] = ingest_once(tars, clusters[number], scratch, PASS_SIDE)
            if turn:  # the first is for warming up
                for name, timing in done.items():
                    timings[name, number].append(timing)
        print(f"round {turn} of {rounds}", file=sys.stderr)
    rates = {key: median(timing.rate for timing in found) for key, found in timings.items()}
    return rates, {key: median(timing.cpu / timing.samples for timing in found) for key, found in timings.items()}


def report(rates: Measured, cpus: Measured, parts: dict[str, dict[str, float]], size: float) -> None:
    """The tables and the last line."""
    names = [name for name in ("webdataset", "img2dataset", "mtv", "codec", "passthrough", "validate") if (name, 1) in rates]
    rows = [("", "1 process: samples/s", "CPU ms", "2 processes: samples/s", "CPU ms", "gain")]
    rows += [
        (
            name,
            f"{rates[name, 1]:.0f}",
            f"{1000 * cpus[name, 1]:.2f}",
            f"{rates[name, 2]:.0f}",
            f"{1000 * cpus[name, 2]:.2f}",
            f"{rates[name, 2] / rates[name, 1]:.2f}",
        )
        for name in names
    ]
    print(f"\n1024 × 768 px, quality 90, {size / 1000:.0f} KB a sample\n\n{table(rows)}\n")
    kinds = list(parts["ingest"])
    print(
        table([("CPU ms a sample, one process", *parts), *((kind, *(f"{parts[run][kind]:.3f}" for run in parts)) for kind in kinds)]), "\n"
    )
    gain = {name: rates[name, 2] / rates[name, 1] for name in names}
    peers = [name for name in ("webdataset", "img2dataset") if (name, 1) in rates]
    versus = [rates["mtv", number] / max(rates[peer, number] for peer in peers) for number in (1, 2)] if peers else []
    by_cpu = [min(cpus[peer, number] for peer in peers) / cpus["mtv", number] for number in (1, 2)] if peers else []
    finish(
        {
            "vs_best_peer": round(min(versus), 3) if versus else None,
            "vs_codec_bound": round(rates["mtv", 1] / rates["codec", 1], 3),
            "passthrough_vs_bound": round(rates["passthrough", 1] / rates["validate", 1], 3),
            "scaling_vs_codec": round(gain["mtv"] / gain["codec"], 3),
            "vs_best_peer_by_processes": [round(value, 3) for value in versus],
            "by_cpu_time": {
                "vs_best_peer": [round(value, 3) for value in by_cpu],
                "vs_codec_bound": round(cpus["codec", 1] / cpus["mtv", 1], 3),
                "passthrough_vs_bound": round(cpus["validate", 1] / cpus["passthrough", 1], 3),
            },
            "samples_per_s": {f"{name}/{number}": round(rate, 1) for (name, number), rate in rates.items()},
            "cpu_ms": {f"{name}/{number}": round(1000 * seconds, 3) for (name, number), seconds in cpus.items()},
            "parts_ms": {run: {kind: round(value, 3) for kind, value in found.items()} for run, found in parts.items()},
            "kb_per_sample": round(size / 1000, 1),
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
