"""What ranks tell each other. Without a process group each of these is the one-rank case.

Every rank's loss is written so that the *mean* over ranks is the global batch's loss: DDP averages gradients in the same way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = len(x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # A row is used by every rank's loss: its gradient is the sum of theirs.
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather(x: Tensor) -> Tensor:
    """[R, …] of every rank, in rank order → [world × R, …]. Gradients flow back to the rank a row came from. R is the same on all ranks."""
    if world_size() == 1:
        return x
    if x.requires_grad:
        out: Tensor = _Gather.apply(x)
        return out
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def shift(x: Tensor) -> Tensor:
    """The previous rank's [R, …] in the place of this one's, around a ring; no gradient flows back. R is the same on all ranks."""
    here, ranks = rank(), world_size()
    received = torch.empty_like(x)
    sent = dist.P2POp(dist.isend, x.contiguous(), (here + 1) % ranks)
    for request in dist.batch_isend_irecv([sent, dist.P2POp(dist.irecv, received, (here - 1) % ranks)]):
        request.wait()
    return received


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without a gradient."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def all_max(x: Tensor) -> Tensor:
    """Largest over ranks, without a gradient."""
    if world_size() == 1:
        return x.detach()
    largest = x.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def labelled_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of (sum of `total` over ranks) / (sum of `count` over ranks): the mean of the shares is that quotient.

    0, still with (zero) gradients, when nothing on any rank is labelled.
    """
    return total * world_size() / all_sum(count.to(total.dtype)).clamp(min=1.0)


def full(x: Tensor) -> Tensor:
    """At least float32: sums of exponentials are not for half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
