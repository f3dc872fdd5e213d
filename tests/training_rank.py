"""Ranks without torchrun, forked from a process that has imported torch and transformers already: a second instead of ten."""

import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from mtv_core.runs import write_atomic
from mtv_core.training.job import JOB, LOG, TrainJob

# Nothing of Lance: it must not be there before a fork.
PRELOAD = ["mtv_core.objectives.system", "mtv_core.training.config", "torchvision.transforms.v2", "training_rank"]
SECONDS = 60


def start(job: TrainJob, **environment: str) -> list[BaseProcess]:
    """The ranks of a job, started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(job.folder / JOB, job.model_dump_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "TOKENIZERS_PARALLELISM": "false"}
    ranks = []
    for rank in range(job.config.processes):
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.config.processes)}
        process = context.Process(target=_rank, args=(job.folder, shared | mine | environment))
        process.start()
        ranks.append(process)
    return ranks


def end(ranks: list[BaseProcess]) -> list[int]:
    """Exit statuses, −9 for SIGKILL; whoever hangs is killed and gives −1."""
    statuses = []
    for process in ranks:
        process.join(SECONDS)
        statuses.append(-1 if process.exitcode is None else process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
    return statuses


def run(job: TrainJob, **environment: str) -> list[int]:
    """Start and wait."""
    return end(start(job, **environment))


def _rank(folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["train", "--config", str(folder / JOB)]
    from mtv_core.training.main import main

    os._exit(main())
