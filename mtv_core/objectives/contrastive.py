"""Sigmoid contrast of pictures and captions (big_vision `trainers/proj/image_text/siglip.py`; gathered as open_clip's `SigLipLoss`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtv_core.objectives.base import Batch, Loss, Views
from mtv_core.objectives.collective import full, gather, rank

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def sigmoid_contrast(
    left: Float[Tensor, "m d"],
    right: Float[Tensor, "n d"],
    positive: Bool[Tensor, "m n"],
    ignored: Bool[Tensor, "m n"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, " m"]:
    """A row's loss: −Σ_j log σ(z (e^s · cos(left_i, right_j) + b)), z = 1 where positive, −1 elsewhere, over the pairs not ignored.

    The slow truth: for i, for j not ignored[i, j]: loss[i] −= log σ(z_ij (e^s · ⟨l_i, r_j⟩ / |l_i||r_j| + b)).
    """
    logits = F.normalize(full(left), dim=-1) @ F.normalize(full(right), dim=-1).T * log_scale.exp() + bias
    signs = positive.to(logits.dtype) * 2 - 1
    return -(F.logsigmoid(signs * logits) * ~ignored).sum(dim=1)


class Contrastive(nn.Module):
    """This rank's pictures against every rank's captions; a caption equal to the picture's own is no negative of it."""

    name = "contrastive"
    needs = frozenset({"image", "text", "log_scale", "bias"})

    teacher_heads: Mapping[str, nn.Module] = {}

    def forward(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Mean over pictures."""
        assert views.image is not None
        assert views.text is not None
        assert views.log_scale is not None
        assert views.bias is not None
        texts, ids = gather(views.text), gather(batch.text_ids)
        same = (batch.text_ids[:, None] == ids[None]).all(dim=-1)
        own = torch.arange(len(ids), device=ids.device)[None] == rank() * len(batch) + torch.arange(len(batch), device=ids.device)[:, None]
        value = sigmoid_contrast(views.image, texts, own, same & ~own, views.log_scale, views.bias).mean()
        return Loss(value, {"logit_scale": views.log_scale.detach().exp(), "logit_bias": views.bias.detach().clone()})
