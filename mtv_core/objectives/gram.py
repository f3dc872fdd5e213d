"""Gram anchoring (DINOv3, arXiv 2508.10104; `loss/gram_loss.py`): the likeness of patches to each other is held where it once was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from mtv_core.objectives.base import Batch, Loss, Views
from mtv_core.objectives.collective import full

if TYPE_CHECKING:
    from jaxtyping import Float


def gram_distance(patches: Float[Tensor, "c n d"], anchor: Float[Tensor, "c n d"]) -> Float[Tensor, " c"]:
    """Mean square difference of the cosines of all pairs of patches of a crop.

    The slow truth: for crop c: mean over i, j of (cos(patches[c, i], patches[c, j]) − cos(anchor[c, i], anchor[c, j]))².
    """
    own, there = (F.normalize(full(x), dim=-1) for x in (patches, anchor))
    return (own @ own.mT - there @ there.mT).square().mean(dim=(1, 2))


class Gram(nn.Module):
    """Patches of the student's global crops against those of a teacher of some time ago."""

    name = "gram"
    needs = frozenset({"global_patches", "anchor_patches"})
    teacher_heads: Mapping[str, nn.Module] = {}

    def forward(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Mean over crops."""
        assert views.global_patches is not None
        assert views.anchor_patches is not None
        return Loss(gram_distance(views.global_patches.flatten(0, 1), views.anchor_patches.flatten(0, 1)).mean())
