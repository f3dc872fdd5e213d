"""Masked patch prediction (iBOT, as in DINOv2 `loss/ibot_patch_loss.py`): say what the teacher sees where the student sees a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mtv_core.objectives.base import Batch, Loss, Views
from mtv_core.objectives.collective import labelled_mean
from mtv_core.objectives.config import MaskedConfig
from mtv_core.objectives.distillation import cross_entropy, make_head, sinkhorn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def crop_mean(losses: Float[Tensor, " hidden"], mask: Bool[Tensor, "c n"]) -> Float[Tensor, ""]:
    """Sum over crops of the mean over a crop's hidden patches; `losses` are those of `mask`'s True, in its order."""
    weights = (1.0 / mask.sum(dim=1).clamp(min=1)).to(losses.dtype)
    return (losses * weights[:, None].expand_as(mask)[mask]).sum()


class MaskedPatches(nn.Module):
    """Every hidden patch is sorted into prototypes as the teacher, who sees the whole crop, sorts it."""

    name = "masked"
    needs = frozenset({"global_patches", "teacher_patches"})

    def __init__(self, width: int, config: MaskedConfig) -> None:
        super().__init__()
        self.config = config
        self.head = make_head(width, config.head)
        self.mask_token = nn.Parameter(torch.zeros(width))

    @property
    def teacher_heads(self) -> Mapping[str, nn.Module]:
        """Heads the teacher keeps an average of."""
        return {"head": self.head}

    def forward(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Mean over a crop's hidden patches, with `visible` × that over the others, then over the crops that have any hidden."""
        assert views.global_patches is not None
        assert views.teacher_patches is not None
        config, mask_CN = self.config, batch.masks.flatten(0, 1)
        crops = mask_CN.any(dim=1)
        # Of the crops that have any hidden patch: those, or all.
        asked_CN = crops[:, None].expand_as(mask_CN) if config.visible else mask_CN
        with torch.no_grad():
            logits_MK = teacher_heads["head"](views.teacher_patches.flatten(0, 1)[asked_CN])
            target_MK = sinkhorn(logits_MK, config.teacher_temperature, config.sinkhorn_iterations)
        losses_M = cross_entropy(self.head(views.global_patches.flatten(0, 1)[asked_CN]), target_MK, config.student_temperature)
        hidden_M = mask_CN[asked_CN]
        value = crop_mean(losses_M[hidden_M], mask_CN)
        if config.visible:
            value = value + config.visible * crop_mean(losses_M[~hidden_M], asked_CN & ~mask_CN)
        entropy = -(target_MK * target_MK.clamp(min=1e-12).log()).sum()
        return Loss(
            labelled_mean(value, crops.sum()),
            {"target_entropy": labelled_mean(entropy, asked_CN.sum()), "coverage": crops.float().mean()},
        )
