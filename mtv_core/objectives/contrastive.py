"""Sigmoid contrast of pictures and captions (big_vision `trainers/proj/image_text/siglip.py`).

Each rank compares its pictures with every rank's captions. They come to it gathered, or one rank's after the other around a ring, in which
no rank ever holds more than two ranks' captions (both as open_clip's `SigLipLoss` has them); and they are compared in chunks, of which only
one is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtv_core.objectives.base import Batch, Loss, Views
from mtv_core.objectives.collective import full, gather, rank, shift, world_size
from mtv_core.objectives.config import ContrastiveConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


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


def paired_contrast(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    alike: Int[Tensor, " n"],
    log_scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    ring: bool = False,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over this rank's pictures of `sigmoid_contrast` with the captions of all ranks, of which its own is the positive one.

    The gradient is found on the way forward, pair by pair, so that no logits are kept: memory is b × chunk numbers, whatever the number of
    ranks. It cannot be differentiated twice. On a ring the gradient of a caption comes home with it, so every rank's loss has to be
    multiplied by the same number before it is summed up.

    Args:
        images: this rank's; they need not be normalised.
        texts: this rank's; row i belongs to picture i.
        alike: of the captions of all ranks in rank order; equal numbers are equal captions, which are no negatives of each other.
        log_scale, bias: of the logits.
        ring: pass captions around instead of gathering them; the same on all ranks.
        chunk: captions that are compared at once; None: all that are there.
    """
    left, right = F.normalize(full(images), dim=-1), F.normalize(full(texts), dim=-1)
    if not ring:
        right = gather(right)
    loss: Tensor = _Paired.apply(left, right, alike, log_scale, bias, ring, chunk or len(right))
    return loss


class _Paired(torch.autograd.Function):
    """`paired_contrast` of unit vectors; on a ring `right` is this rank's alone."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, alike: Tensor, log_scale: Tensor, bias: Tensor, ring: bool, chunk: int) -> Tensor:
        rows, wanted = len(left), any(ctx.needs_input_grad)
        scale = log_scale.exp().to(left.dtype)
        own = rank() * rows + torch.arange(rows, device=left.device)
        total, to_scale, to_bias = (left.new_zeros(()) for _ in range(3))
        to_left, to_right = torch.zeros_like(left), torch.zeros_like(right)

        def compare(texts: Tensor, to_texts: Tensor, first: int) -> None:
            nonlocal total, to_scale, to_bias
            for start in range(0, len(texts), chunk):
                part = texts[start : start + chunk]
                column = first + start + torch.arange(len(part), device=left.device)
                cosines = left @ part.T
                positive = own[:, None] == column
                signs = positive.to(left.dtype) * 2 - 1
                logits = signs * (cosines * scale + bias.to(left.dtype))
                ignored = (alike[own][:, None] == alike[column]) & ~positive
                total -= F.logsigmoid(logits).masked_fill(ignored, 0.0).sum()
                if wanted:
                    slope = (-signs * torch.sigmoid(-logits)).masked_fill(ignored, 0.0)  # of the loss by the logit
                    to_left.addmm_(slope, part)
                    to_texts[start : start + chunk].addmm_(slope.T, left)
                    to_scale += (slope * cosines).sum()
                    to_bias += slope.sum()

        # Half precision is for the towers: logits are differences of large numbers.
        with torch.autocast(left.device.type, enabled=False):
            if ring:
                for owner, texts, to_texts in _around(right, to_right):
                    compare(texts, to_texts, owner * rows)
            else:
                compare(right, to_right, 0)
        ctx.save_for_backward(to_left * (scale / rows), to_right * (scale / rows), to_scale * (scale / rows), to_bias / rows)
        ctx.dtypes = (log_scale.dtype, bias.dtype)
        return total / rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        to_left, to_right, to_scale, to_bias = (grads[0] * gradient for gradient in ctx.saved_tensors)
        return to_left, to_right, None, to_scale.to(ctx.dtypes[0]), to_bias.to(ctx.dtypes[1]), None, None


def _around(mine: Tensor, gradient: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(rank, its rows, their gradient so far) of every rank, this one first; `gradient` ends with what all ranks added to it."""
    rows, sums = mine, gradient
    for step in range(world_size()):
        yield (rank() - step) % world_size(), rows, sums
        if world_size() > 1:
            rows, sums = shift(rows), shift(sums)
    if sums is not gradient:
        gradient.copy_(sums)


class Contrastive(nn.Module):
    """This rank's pictures against every rank's captions; a caption equal to the picture's own is no negative of it."""

    name = "contrastive"
    needs = frozenset({"image", "text", "log_scale", "bias"})

    teacher_heads: Mapping[str, nn.Module] = {}

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Mean over pictures."""
        assert views.image is not None
        assert views.text is not None
        assert views.log_scale is not None
        assert views.bias is not None
        _, alike = torch.unique(gather(batch.text_ids), dim=0, return_inverse=True)
        config = self.config
        value = paired_contrast(
            views.image, views.text, alike, views.log_scale, views.bias, ring=config.exchange == "ring", chunk=config.chunk
        )
        return Loss(value, {"logit_scale": views.log_scale.detach().exp(), "logit_bias": views.bias.detach().clone()})
