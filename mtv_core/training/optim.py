"""AdamW, its schedule, and what happens to a step that is not finite."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from mtv_core.training.config import OptimConfig

_BLOCK = re.compile(r"\bbackbone\.blocks\.(\d+)\.")
_STEM = re.compile(r"\bbackbone\.(patch_embed|pos_embed|cls_token|reg_token|norm_pre)\b")
# Vectors that stand for a place or a missing patch are no matrices to be kept small, whatever their shape.
_NO_DECAY = ("pos_embed", "position_embedding", "mask_token", "latent", "cls_token", "reg_token")


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Of step 1 … `steps`: linear from 0 to `lr` over the warm-up, then as `schedule` says, to `end_lr` one step after the last.

    A warm-up longer than half the run is cut to that, so that a short trial of a long recipe learns at all.
    """
    warmup = min(config.warmup_steps, steps // 2)
    if step <= warmup:
        return config.lr * step / warmup
    if config.schedule == "wsd":
        falling = max(1, min(round(config.decay_share * steps), steps - warmup))
        left = 1 - math.sqrt(max(0, step - 1 - (steps - falling)) / falling)
    else:
        left = 0.5 * (1 + math.cos(math.pi * (step - warmup - 1) / (steps - warmup)))
    return config.end_lr + (config.lr - config.end_lr) * left


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Trained parameters by whether they decay (matrices do; biases, norms, scalars, position embeddings do not) and how deep they lie.

    `lr_scale` of a group multiplies the learning rate: `layer_decay` for each block of the backbone between it and the backbone's end; the
    patch embedding lies before the first block. What is no part of the backbone has 1.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    blocks = 1 + max((int(found[1]) for name, _ in trained if (found := _BLOCK.search(name))), default=-1)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        key = (weight_decay if _decays(name, parameter) else 0.0, layer_decay ** _depth(name, blocks))
        groups.setdefault(key, []).append(parameter)
    ordered = sorted(groups, reverse=True)
    return [{"params": groups[key], "weight_decay": key[0], "lr_scale": key[1]} for key in ordered]


def _depth(name: str, blocks: int) -> int:
    """Blocks from a parameter to the backbone's end, its own included."""
    if found := _BLOCK.search(name):
        return blocks - int(found[1])
    return blocks + 1 if _STEM.search(name) else 0


def _decays(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY)


def adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """The optimiser; fused, which is several times faster than a loop on the CPU too."""
    return torch.optim.AdamW(
        parameter_groups(module, config.weight_decay, config.layer_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Of all groups, each with its factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]


class NotFiniteError(RuntimeError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class Guard:
    """Counts the steps that were left out, and stops a run that only leaves out.

    Args:
        limit: steps in a row that may be left out; one more stops the run.
        skipped: left out so far, of a resumed run.
        in_a_row: of these, the last ones.
    """

    def __init__(self, limit: int, skipped: int = 0, in_a_row: int = 0) -> None:
        self.limit, self.skipped, self.in_a_row = limit, skipped, in_a_row

    def keep(self, step: int, loss: float, norm: float) -> bool:
        """Whether to take a step.

        Raises:
            NotFiniteError: the limit is reached.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise NotFiniteError(
                f"step {step}: {self.in_a_row} steps in a row had a loss ({loss}) or gradient norm ({norm}) that is not finite; "
                "lower train.optim.lr, lengthen train.optim.warmup_steps or set train.optim.clip, and start from an earlier checkpoint"
            )
        return False
