"""Inverse depth up to scale and shift, with multi-scale gradient matching (MiDaS: Ranftl et al. 2020; Depth Anything V2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mtv_core.model.heads import DepthHead
from mtv_core.objectives.base import Batch, Loss, Views
from mtv_core.objectives.collective import full, labelled_mean
from mtv_core.objectives.config import DepthConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def normalised(maps: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Each map less its median, over its mean absolute deviation, both of the valid pixels; 0 where not valid.

    A flat map has no scale: its deviations are divided by 1e-3 instead.
    """
    flat, mask = maps.flatten(1), valid.flatten(1)
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    # The lower median of the valid pixels: the invalid ones are sorted behind them.
    ordered, _ = flat.masked_fill(~mask, torch.inf).sort(dim=1)
    median = ordered.gather(1, (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0) // 2)
    median = torch.where(mask.any(dim=1, keepdim=True), median, torch.zeros_like(median))
    centred = torch.where(mask, flat - median, torch.zeros_like(flat))
    deviation = (centred.abs().sum(dim=1, keepdim=True) / count).clamp(min=1e-3)
    return (centred / deviation).view_as(maps)


def scale_shift_invariant(
    prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Mean absolute difference of the normalised maps over a sample's valid pixels; 0 for a sample that has none."""
    difference = normalised(prediction, valid) - normalised(target, valid)
    return difference.abs().flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)


def gradient_matching(
    prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"], scales: int
) -> Float[Tensor, " b"]:
    """Sum over scales of the mean absolute gradient of the difference of the normalised maps; both pixels of a gradient must be valid.

    Scale k takes every 2^k-th row and column. Normalised by that scale's valid pixels.
    """
    difference = normalised(prediction, valid) - normalised(target, valid)
    total = difference.new_zeros(len(difference))
    for scale in range(scales):
        d, m = difference[:, :: 2**scale, :: 2**scale], valid[:, :: 2**scale, :: 2**scale]
        along_x = ((d[:, :, 1:] - d[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])).flatten(1).sum(dim=1)
        along_y = ((d[:, 1:] - d[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])).flatten(1).sum(dim=1)
        total = total + (along_x + along_y) / m.flatten(1).sum(dim=1).clamp(min=1)
    return total


def spread_layers(depth: int) -> tuple[int, ...]:
    """Four blocks, evenly spread, the last one included: 12 → 2, 5, 8, 11."""
    return tuple(sorted({max(0, round(depth * k / 4) - 1) for k in (1, 2, 3, 4)}))


class Depth(nn.Module):
    """A light DPT on layers of the clean view predicts the expert's inverse depth."""

    name = "depth"
    needs = frozenset({"layers"})
    teacher_heads: Mapping[str, nn.Module] = {}

    def __init__(self, width: int, layers: tuple[int, ...], config: DepthConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = layers
        self.head = DepthHead(width, len(layers), config.width)

    def forward(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Mean over the samples that have a valid pixel."""
        prediction = full(self.head(views.layers, (batch.depth.shape[1], batch.depth.shape[2])))
        target, valid = batch.depth.to(prediction.dtype), batch.depth_valid
        labelled_B = valid.flatten(1).any(dim=1)
        invariant = labelled_mean(scale_shift_invariant(prediction, target, valid).sum(), labelled_B.sum())
        matching = labelled_mean(gradient_matching(prediction, target, valid, self.config.scales).sum(), labelled_B.sum())
        return Loss(
            invariant + self.config.gradient * matching,
            {"coverage": labelled_B.float().mean(), "invariant": invariant.detach(), "gradient": matching.detach()},
        )
