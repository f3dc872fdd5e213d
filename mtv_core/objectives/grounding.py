"""Contrast of regions and phrases (CLOC): a prompter embeds a box, SigLIP's loss compares it with phrases. No box is regressed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtv_core.model.heads import Prompter
from mtv_core.objectives.base import Batch, Loss, Views
from mtv_core.objectives.collective import full, gather, labelled_mean, rank
from mtv_core.objectives.config import GroundingConfig
from mtv_core.objectives.contrastive import sigmoid_contrast

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

BUCKETS = 4096  # token ids modulo this; two that fall together can only make a negative ignored


def alike(left: Int[Tensor, "m l"], right: Int[Tensor, "n l"]) -> Bool[Tensor, "m n"]:
    """Whether all tokens of one phrase are in the other, as of 'a red cube' and 'a small red cube', which are no negatives of each other.

    The slow truth: set(left_i) <= set(right_j) or set(left_i) >= set(right_j).
    """

    def bag(ids: Tensor) -> Tensor:
        return torch.zeros(len(ids), BUCKETS, device=ids.device).scatter_(1, ids % BUCKETS, 1.0)

    left_bag, right_bag = bag(left), bag(right)
    common = left_bag @ right_bag.T
    return (common == left_bag.sum(dim=1)[:, None]) | (common == right_bag.sum(dim=1)[None])


class Grounding(nn.Module):
    """This rank's regions against the phrases of every rank's regions."""

    name = "grounding"
    needs = frozenset({"patches", "phrases"})
    teacher_heads: Mapping[str, nn.Module] = {}

    def __init__(self, width: int, config: GroundingConfig) -> None:
        super().__init__()
        self.config = config
        self.prompter = Prompter(width, config.heads)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.init_scale)))
        self.bias = nn.Parameter(torch.tensor(config.init_bias))

    def forward(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Mean over the regions of the global batch; a picture without a box counts nothing."""
        assert views.patches is not None
        assert views.phrases is not None
        valid_R = batch.box_valid.flatten()
        regions_RD = self.prompter(views.patches, batch.boxes).flatten(0, 1)
        index_R = batch.phrase_index.flatten()
        ids_AL, valid_A = gather(batch.phrase_ids[index_R]), gather(valid_R)
        phrases_AD = gather(views.phrases[index_R])
        own_RA = torch.arange(len(valid_A), device=valid_A.device)[None] == (
            rank() * len(valid_R) + torch.arange(len(valid_R), device=valid_A.device)[:, None]
        )
        similar_RA = alike(batch.phrase_ids, ids_AL)[index_R]
        if self.config.similar is not None:
            unit_RD = F.normalize(full(views.phrases.detach()), dim=-1)[index_R]
            similar_RA |= unit_RD @ F.normalize(full(phrases_AD.detach()), dim=-1).T > self.config.similar
        ignored_RA = (similar_RA & ~own_RA) | ~valid_A[None] | ~valid_R[:, None]
        losses_R = sigmoid_contrast(regions_RD, phrases_AD, own_RA, ignored_RA, self.log_scale, self.bias)
        with torch.no_grad():
            considered = ~ignored_RA & ~own_RA
            ignored_share = labelled_mean((similar_RA & ~own_RA & valid_A[None] & valid_R[:, None]).sum(1).float().sum(), valid_R.sum())
            negatives = labelled_mean(considered.sum().float(), valid_R.sum())
        return Loss(
            labelled_mean(losses_R.sum(), valid_R.sum()),
            {"coverage": batch.box_valid.any(dim=1).float().mean(), "negatives": negatives, "alike": ignored_share},
        )
