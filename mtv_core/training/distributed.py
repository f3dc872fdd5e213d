"""Ranks: who they are, what they tell each other, and that they die with whoever started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mtv_core.training.config import TrainConfig

AGENT = "MTV_AGENT_PID"
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the process `parent`, which started it, ends. Linux only: elsewhere a kill -9 may leave ranks.

    The request is kept over exec, not over fork. A parent that was gone before the request could be made is noticed too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(frozen=True)
class World:
    """All ranks of a training, seen from one."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def means(self, values: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
        """Means over ranks of scalars that every rank has under the same names, in one message."""
        vector = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values.values()])
        if self.ranks > 1:
            dist.all_reduce(vector)
        return dict(zip(values, (vector / self.ranks).tolist(), strict=True))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.ranks > 1:
            dist.barrier()


def choose_device(config: TrainConfig, local_rank: int) -> torch.device:
    """Of one rank.

    Raises:
        ValueError: cuda is asked for, and there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count() if config.device != "cpu" and torch.cuda.is_available() else 0
    if config.device == "cuda" and gpus < config.processes:
        raise ValueError(
            f"train.device is cuda, but there are {gpus} GPUs for {config.processes} processes; lower train.processes or use cpu"
        )
    return torch.device("cuda", local_rank) if gpus >= config.processes else torch.device("cpu")


def join(config: TrainConfig) -> World:
    """Become a rank of what torchrun started: nccl on GPUs, gloo on CPUs."""
    rank, ranks, local = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = choose_device(config, local)
    torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks > 1:
        timeout = timedelta(seconds=config.collective_timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_store(rank, ranks, timeout),
            rank=rank,
            world_size=ranks,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    return World(rank, ranks, device)


def _store(rank: int, ranks: int, timeout: timedelta) -> Any:
    """Where ranks find each other's addresses.

    torchrun's store outlives its ranks, and since torch 2.15 nothing in it tells one restart from the next: ranks that are started again
    read the addresses of the dead and cannot connect. So each restart has a prefix of its own.
    """
    theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        ranks,
        is_master=rank == 0 and not theirs,
        timeout=timeout,
        multi_tenant=not theirs,
    )
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )


class StopRequest:
    """SIGTERM asks a training to write a checkpoint and end; the loop looks at `asked` once a step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
