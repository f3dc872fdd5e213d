"""What torchrun starts: `python -m torch.distributed.run … -m mtv_core.training.main --config train.json`. One process a rank."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from mtv_core.training.distributed import AGENT, StopRequest, die_with_parent, join
from mtv_core.training.job import TrainJob

STOPPED = 128 + 15  # exit status of a rank that SIGTERM ended
_LOCK_SECONDS = 30  # a killed run's ranks are gone within milliseconds


def main() -> int:
    """Run one rank; every failure ends with a line `[rank N] error: …`, which the launcher shows."""
    if agent := os.environ.get(AGENT):
        die_with_parent(int(agent))
    parser = argparse.ArgumentParser(description="one rank of a training")
    parser.add_argument("--config", required=True, type=Path, help="train.json")
    job = TrainJob.model_validate_json(parser.parse_args().config.read_text())
    stop = StopRequest()
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(level=logging.INFO if rank == "0" else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*nested tensors.*", category=UserWarning)

    import torch.distributed as dist

    from mtv_core.training.loop import Stopped, train

    try:
        lock = _lock(job.folder) if rank == "0" else None
        world = join(job.config)
        train(job, world, stop)
    except Stopped as stopped:
        if rank == "0":
            logging.getLogger(__name__).info("%s", stopped)
        return STOPPED
    except Exception as error:
        traceback.print_exc()
        print(f"[rank {rank}] error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return STOPPED if stop.asked else 1
    if dist.is_initialized():
        dist.destroy_process_group()
    del lock
    return 0


def _lock(folder: Path) -> object:
    """Hold the folder for as long as this process lives; the kernel lets go of it however it ends.

    Raises:
        RuntimeError: another training is at work there.
    """
    file = (folder / ".train.lock").open("w")
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise RuntimeError(f"another training is at work in {folder}; stop it, or train in another folder") from None
            time.sleep(0.2)
        else:
            return file


if __name__ == "__main__":
    # Leave without waiting for threads of libraries: everything is on disk, and a rank that hangs at exit holds up torchrun.
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
