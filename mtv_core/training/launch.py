"""A training as a call: torchrun in a child process, its rows of metrics as they appear, and nothing left of it on any exit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from mtv_core.runs import write_atomic
from mtv_core.training.config import TrainConfig
from mtv_core.training.job import JOB, LOG, RESULT, TrainJob, TrainResult
from mtv_core.training.metrics import Tail

__all__ = ["TrainJob", "TrainResult", "preflight", "run"]

OnMetrics = Callable[[list[dict[str, Any]]], None]
POLL_SECONDS = 0.5
GRACE_SECONDS = 20.0  # for a checkpoint, before SIGKILL
_ERROR = re.compile(r"^\[rank \d+\] error: .*")
_SIGNAL = re.compile(r"\bexitcode\s*:\s*-(\d+)")


def run(job: TrainJob, on_metrics: OnMetrics) -> TrainResult:
    """Train `job` to its end, going on from what an earlier call in the same folder left.

    `on_metrics` gets the new rows of metrics.jsonl every half second, each step's once a call, first those of earlier attempts. On every
    exit (an exception here or in `on_metrics`, KeyboardInterrupt, SIGTERM) the ranks are asked to write a checkpoint and are killed after
    20 s. When this process itself is killed, the kernel kills them.

    Raises:
        ValueError, FileNotFoundError: the job cannot work; see `preflight`.
        RuntimeError: the ranks failed, more often than `max_restarts`; with their last errors.
    """
    started = time.monotonic()
    tail = Tail(job.folder)
    if (result := finished(job)) is not None:
        if rows := tail.new():
            on_metrics(rows)
        return result
    preflight(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(job.folder / JOB, job.model_dump_json(indent=2) + "\n")
    with (job.folder / LOG).open("ab") as log, _sigterm_raises():
        begins = log.tell()
        child = subprocess.Popen(command(job), env=environment(job.config), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            running = True
            while running:
                running = _wait(child, POLL_SECONDS)
                if rows := tail.new():
                    on_metrics(rows)
        finally:
            end_tree(child)
    result = finished(job)
    if result is None:
        raise RuntimeError(failure(job.folder / LOG, begins, child.returncode))
    return result.model_copy(update={"seconds": time.monotonic() - started})


def command(job: TrainJob) -> list[str]:
    """torchrun on this machine alone, at a port that is free."""
    torchrun = [
        "--nnodes=1", f"--nproc-per-node={job.config.processes}", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
        "--local-addr=127.0.0.1", f"--max-restarts={job.config.max_restarts}",
    ]  # fmt: skip
    module = ["-m", "mtv_core.training.main", "--config", str((job.folder / JOB).absolute())]
    return [sys.executable, "-m", "mtv_core.training.agent", str(os.getpid()), *torchrun, *module]


def environment(config: TrainConfig) -> dict[str, str]:
    """Of torchrun and its ranks."""
    ours = {
        "OMP_NUM_THREADS": str(config.threads),
        # Freed activations stay with the process: giving them back and getting them again is a third of the time of a small step on a CPU.
        "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # Ranks of one machine talk over its loopback; a host name that resolves to nothing would stop gloo.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }
    return os.environ | ours


def finished(job: TrainJob) -> TrainResult | None:
    """The result of this very job, if it is there with its models."""
    try:
        result = TrainResult.model_validate_json((job.folder / RESULT).read_text())
    except (FileNotFoundError, ValidationError):
        return None
    whole = all((job.folder / name / "model.safetensors").is_file() for name in ("model", "init"))
    return result if whole and result.fingerprint == job.fingerprint else None


def preflight(job: TrainJob) -> None:
    """Find now what would stop the ranks later.

    Raises:
        FileNotFoundError: the table, its version or the tag is not there.
        ValueError: the tag is of another version; a slice that cannot be taken; no label for an objective that is on; fewer rows than a
            global batch; a model that cannot be made, or crops that do not fit its patches.
    """
    import numpy as np
    import torch

    from mtv_core.model.mtv import create_model
    from mtv_core.store.loader import check_enough, train_rows
    from mtv_core.store.slice_config import SliceConfig
    from mtv_core.store.table import Table
    from mtv_core.training.batches import EXPERTS

    config = job.config
    view = Table.at(job.table_uri, tag=job.tag, version=None if job.tag else job.version, storage_options=job.storage_options)
    if view.version != job.version:
        raise ValueError(
            f"the tag {job.tag!r} names version {view.version} of {job.table_uri}, not version {job.version}; label again to make a new tag"
        )
    rows = train_rows(view, config.data)
    check_enough(rows, config.global_batch, config.data)
    for objective, expert in EXPERTS.items():
        column = {"depth": "depth", "detection": "boxes"}[expert]
        if getattr(config.objectives, objective) is None:
            continue
        labelled = SliceConfig(where=f"{column} is not null")
        if column not in view.schema.names or not np.isin(rows.indices, view.indices(labelled, "train"), assume_unique=True).any():
            raise ValueError(
                f"train.objectives.{objective} is on, but no training row of {job.table_uri} at version {job.version} has a label of the "
                f"{expert} expert; label first (mtv label), or set train.objectives.{objective} to null"
            )
    with torch.device("meta"):
        model, _ = create_model(config.model)
    sizes = {"global_size": config.views.global_size, "local_size": config.views.local_size if config.views.local_crops else None}
    for name, size in sizes.items():
        if config.uses_crops and size is not None and size % model.patch_size:
            raise ValueError(f"train.views.{name} ({size}) must be a multiple of the backbone's patch size ({model.patch_size})")


def failure(log: Path, begins: int, status: int) -> str:
    """Why torchrun ended without a result: the ranks' own last words, or the end of the log."""
    with log.open("rb") as file:
        file.seek(begins)
        lines = file.read().decode(errors="replace").splitlines()
    said = list(dict.fromkeys(line for line in lines if _ERROR.match(line)))
    signals = [signal.Signals(int(found[1])).name for line in lines if (found := _SIGNAL.search(line))]
    if said:
        # The rank that fails first says why; the others lose their connection to it.
        why = "; ".join(sorted(said, key=lambda line: "Connection" in line or "DistBackendError" in line)[:2])
    elif signals:
        why = f"a rank was killed by {signals[-1]}" + (": out of memory, most likely" if signals[-1] == "SIGKILL" else "")
    elif status in (-signal.SIGTERM, 128 + signal.SIGTERM):
        why = "it was asked to stop"
    else:
        why = "\n".join(["", *lines[-15:]])
    return f"the training stopped before its end (exit status {status}): {why}. Log: {log}. Run it again to go on from the last checkpoint"


def _wait(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it still runs."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def end_tree(child: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    """End torchrun and all that came from it: SIGTERM, which the agent hands on to the ranks, and after `grace` seconds SIGKILL.

    Ranks live in sessions of their own, so they are found by descent, and before the agent is gone.
    """
    if child.poll() is not None:
        return  # the agent ends after its ranks, and they die with it if it was killed
    tree = _descendants(child.pid)
    child.send_signal(signal.SIGTERM)
    if _wait(child, grace):
        tree |= _descendants(child.pid)
        child.kill()
        child.wait()
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(tree), timeout=5)


def _descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the stack where it would end this process at once, so that a training leaves a checkpoint."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    if ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
