"""The linear probe that both dense protocols train: BatchNorm, dropout and a 1 × 1 convolution on frozen patch features.

Shapes: M pictures, B of a batch, D features, K outputs, g × g patches, S × S pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BATCH = 16
WARM_UP = 0.1  # share of the steps
STRIDE = 2  # probes are trained on every second pixel of every second row


def linear_head(features: int, outputs: int, generator: torch.Generator, dropout: float = 0.1) -> nn.Sequential:
    """BatchNorm → dropout of whole features → 1 × 1, as in DINOv3's linear segmentation."""
    head = nn.Sequential(nn.BatchNorm2d(features), nn.Dropout2d(dropout), nn.Conv2d(features, outputs, 1))
    convolution = head[2]
    assert isinstance(convolution, nn.Conv2d)
    nn.init.normal_(convolution.weight, std=0.01, generator=generator)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return head


def train(
    features_MDgg: Tensor,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    seed: int,
    dropout: float = 0.1,
) -> nn.Sequential:
    """Train one probe; `seed` decides the initial weights, the order of the pictures and what is dropped out.

    Args:
        features_MDgg: frozen features.
        outputs: K.
        loss: (indices of the batch [B], output [B, K, g, g]) → scalar.
        steps: of AdamW, batches of 16, linear warm-up over a tenth of them, cosine to zero.
        lr: highest learning rate.
        weight_decay: AdamW's.
        seed: see above.
        dropout: share of features dropped.

    Returns:
        the head, ready for use.
    """
    generator = torch.Generator().manual_seed(seed)
    head = linear_head(features_MDgg.shape[1], outputs, generator, dropout)
    optimiser = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=lr, total_steps=max(steps, 2), pct_start=WARM_UP, cycle_momentum=False)
    batch = min(BATCH, len(features_MDgg))
    per_epoch = len(features_MDgg) // batch
    order = torch.empty(0, dtype=torch.long)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # dropout draws from the global generator
        torch.manual_seed(seed)
        head.train()
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(features_MDgg), generator=generator)
            start = step % per_epoch * batch
            chosen = order[start : start + batch]
            value = loss(chosen, head(features_MDgg[chosen]))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            schedule.step()
    return head.eval().requires_grad_(False)


def thin(maps_MSS: Tensor) -> Tensor:
    """Every second pixel of every second row [M, S/2, S/2]: what is trained on, at a quarter of the cost."""
    return maps_MSS[:, ::STRIDE, ::STRIDE]


def enlarge(maps_BKgg: Tensor, side: int) -> Tensor:
    """Bilinear to [B, K, side, side], pixel centres on pixel centres."""
    return nn.functional.interpolate(maps_BKgg, (side, side), mode="bilinear", align_corners=False)
