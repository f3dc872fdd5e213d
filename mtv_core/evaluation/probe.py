"""The linear probe that both dense protocols train: BatchNorm, dropout and one linear layer on frozen patch features.

Shapes: M pictures, B of a batch, D features, K outputs, g × g patches, S × S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

BATCH = 16
WARM_UP = 0.1  # share of the steps
STRIDE = 3  # probes are trained on the middle one of every 3 × 3 pixels


class LinearHead(nn.Module):
    """BatchNorm → dropout of whole features → 1 × 1 (DINOv3's linear segmentation head).

    The norm has no scale and shift of its own, which the linear layer after it makes redundant; a step takes a third of the time without.
    """

    def __init__(self, features: int, outputs: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.linear = nn.utils.skip_init(nn.Linear, features, outputs)  # its own would draw from the global generator
        nn.init.normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)
        self.dropout = dropout
        self.generator = generator

    def forward(self, features_BggD: Tensor) -> Tensor:
        """[B, g, g, D] → [B, K, g, g]."""
        normed: Tensor = self.norm(features_BggD.flatten(0, 2)).view_as(features_BggD)
        if self.training and self.dropout:
            kept_B11D = torch.rand(len(normed), 1, 1, normed.shape[-1], generator=self.generator) >= self.dropout
            normed = normed * kept_B11D / (1.0 - self.dropout)
        out: Tensor = self.linear(normed).permute(0, 3, 1, 2)
        return out


def share_of_lr(step: int, steps: int) -> float:
    """Linear up to 1 over the warm-up, then a cosine down to 0, which the step after the last would have."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (steps - warm))


def train(
    features_MggD: Tensor,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    seed: int,
    dropout: float,
) -> LinearHead:
    """Train one probe.

    Args:
        features_MggD: frozen features.
        outputs: K.
        loss: (indices of the batch [B], output [B, K, g, g]) → scalar.
        steps: of AdamW, batches of 16, linear warm-up over a tenth of them, cosine to zero.
        lr: highest learning rate.
        weight_decay: AdamW's.
        seed: decides the initial weights, the order of the pictures and what is dropped; torch's global generator is left alone.
        dropout: share of features dropped, whole features of a picture at a time.

    Returns:
        the head, ready for use.
    """
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(features_MggD.shape[-1], outputs, dropout, generator).train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    batch = min(BATCH, len(features_MggD))
    per_epoch = len(features_MggD) // batch
    order = torch.empty(0, dtype=torch.long)
    with torch.enable_grad():
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(features_MggD), generator=generator)
            start = step % per_epoch * batch
            chosen = order[start : start + batch]
            value = loss(chosen, head(features_MggD[chosen]))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.param_groups[0]["lr"] = lr * share_of_lr(step, steps)
            optimiser.step()
    return head.eval().requires_grad_(False)


def train_seeds(train_one: Callable[[int], LinearHead], seeds: int, threads: int) -> list[LinearHead]:
    """`train_one(seed)` for every seed, `threads` at a time: a step is too small to be worth threads inside torch."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(train_one, range(seeds)))


def thin(maps_MSS: Tensor) -> Tensor:
    """The middle one of every 3 × 3 pixels, [M, S/3, S/3]: a ninth of the cost, and just where `enlarge` puts its values."""
    return maps_MSS[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].contiguous()


def enlarge(maps_BKgg: Tensor, side: int) -> Tensor:
    """Bilinear to [B, K, side, side], corners on corners of the picture (not on centres of its corner pixels)."""
    return nn.functional.interpolate(maps_BKgg, (side, side), mode="bilinear", align_corners=False)
