"""A worker's memory: bounded by the configuration, not by the size of a shard or of an image.

    python -m benchmarks.memory [--quick]

Each line is a process of its own that ingests one tar, as a worker and the committer do, and says how much memory it had at most
(`ru_maxrss`). The shards of 50 MB, 500 MB and 5 GB hold the same kind of pictures, about 150 KB each, every one with bytes of its own; they
pass through, so that all of it goes to the table. Near duplicates are off: pictures repeat, only their bytes differ. Two shards of small
pictures, 7 KB each, tell what a sample costs beside its bytes: what deduplication knows of it, in the committer, which is the same process
here. The bound of the last lines is what decoding an image of `ingest.max_pixels` takes.

The last line is one JSON object: peak MB by case, and `growth`: MB that the 5 GB shard (500 MB with --quick) takes beyond the 50 MB one.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 64


def picture(seed: int, side: int = 704) -> bytes:
    """A JPEG of about 150 KB: smooth colours with some texture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 12, (side * 3 // 4, side, 1))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def with_comment(jpeg: bytes, number: int) -> bytes:
    """The same picture with other bytes: a comment behind the start of the image."""
    text = f"{number:012d}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2) + text + jpeg[2:]


def make_tar(path: Path, size: int, side: int = 704) -> int:
    """A tar of about `size` bytes; the number of its samples."""
    pictures = [picture(seed, side) for seed in range(PICTURES)]
    number = 0
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        while tar.offset < size:
            for ending, content in (
                ("jpg", with_comment(pictures[number % PICTURES], number)),
                ("txt", f"picture number {number}".encode()),
            ):
                info = tarfile.TarInfo(f"{number:09d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            number += 1
    return number


def large_image(path: Path, kind: str) -> None:
    """A tar with one image of almost `ingest.max_pixels`."""
    side = 7900
    image = Image.linear_gradient("L").resize((side, side)).convert("RGBA" if kind == "PNG" else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    with tarfile.open(path, "w") as tar:
        for name, content in ((f"a.{kind.lower()}", buffer.getvalue()), ("a.txt", b"a large picture")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def child(source: str, table: str) -> None:
    """Ingest, and print rows, peak MB, seconds."""
    from mtv_core import ingest
    from mtv_core.data.dedup_config import DedupConfig
    from mtv_core.data.sources import SourceConfig
    from mtv_core.executor import SerialExecutor
    from mtv_core.ingest_config import IngestConfig

    began = time.perf_counter()
    config = IngestConfig(dedup=DedupConfig(near_threshold=None, placeholders=None))
    result = ingest.run([SourceConfig(uri=source)], table, config, SerialExecutor())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": result.rows, "peak_mb": round(peak), "seconds": round(time.perf_counter() - began, 1)}))


def measure(source: Path, table: Path) -> dict[str, float]:
    """One ingest in a process of its own."""
    try:
        command = [sys.executable, "-m", "benchmarks.memory", "--child", str(source), str(table)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found
    finally:
        shutil.rmtree(table, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 500 MB")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    sizes = {"50 MB": 50_000_000, "500 MB": 500_000_000} | ({} if arguments.quick else {"5 GB": 5_000_000_000})
    results: dict[str, dict[str, float]] = {}
    print(f"{'case':<22}{'samples':>9}{'rows':>9}{'seconds':>9}{'peak MB':>9}")
    with tempfile.TemporaryDirectory(prefix="mtv-memory-") as name:
        folder = Path(name)
        for case, size in sizes.items():
            samples = make_tar(folder / "shard.tar", size)
            results[case] = found = measure(folder / "shard.tar", folder / "table")
            assert found["rows"] == samples, (found, samples)
            print(f"{case + ' shard':<22}{samples:>9}{found['rows']:>9.0f}{found['seconds']:>9.1f}{found['peak_mb']:>9.0f}", flush=True)
        for case, size in {"small, 70 MB": 70_000_000, "small, 700 MB": 700_000_000}.items():
            samples = make_tar(folder / "shard.tar", size, side=128)
            results[case] = found = measure(folder / "shard.tar", folder / "table")
            assert found["rows"] == samples, (found, samples)
            print(f"{case:<22}{samples:>9}{found['rows']:>9.0f}{found['seconds']:>9.1f}{found['peak_mb']:>9.0f}", flush=True)
        for kind in ("JPEG", "PNG"):
            large_image(folder / "shard.tar", kind)
            results[f"62 MP {kind}"] = found = measure(folder / "shard.tar", folder / "table")
            print(f"{f'62 MP {kind}':<22}{1:>9}{found['rows']:>9.0f}{found['seconds']:>9.1f}{found['peak_mb']:>9.0f}", flush=True)
    largest = list(sizes)[-1]
    growth = results[largest]["peak_mb"] - results["50 MB"]["peak_mb"]
    print(json.dumps({"peak_mb": {case: found["peak_mb"] for case, found in results.items()}, "growth": growth}))


if __name__ == "__main__":
    main()
