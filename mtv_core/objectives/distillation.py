"""Self-distillation of pooled views: DINO, with Sinkhorn-Knopp in the place of centring, as DINOv2 has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtv_core.model.heads import PrototypeHead
from mtv_core.objectives.base import Batch, Loss, Views
from mtv_core.objectives.collective import all_max, all_sum, full, gather, rank
from mtv_core.objectives.config import DistillationConfig, HeadConfig

if TYPE_CHECKING:
    from jaxtyping import Float


def make_head(width: int, config: HeadConfig) -> PrototypeHead:
    """A head as configured, on features of `width`."""
    return PrototypeHead(width, config.hidden, config.layers, config.bottleneck, config.prototypes)


@torch.no_grad()
def sinkhorn(logits: Float[Tensor, "m k"], temperature: float, iterations: int) -> Float[Tensor, "m k"]:
    """Spread the samples of all ranks evenly over prototypes: each row sums to 1, each column to (samples / k), nearly.

    The slow truth, on all ranks' rows at once: Q = exp(logits / temperature); `iterations` times: Q /= column sums · k; Q /= row sums · m;
    Q · m. Ranks may have different numbers of rows, also none. (DINOv2 `loss/dino_clstoken_loss.py`)
    """
    scaled = full(logits) / temperature
    largest = scaled.max() if scaled.numel() else scaled.new_tensor(-torch.inf)
    q = (scaled - all_max(largest)).exp()
    for _ in range(iterations):
        # No prototype is so far from every sample that its column underflows to 0: cosines are within −1 … 1.
        q = q / all_sum(q.sum(dim=0, keepdim=True))
        q = q / q.sum(dim=1, keepdim=True)
    return q


def cross_entropy(student: Float[Tensor, "*m k"], target: Float[Tensor, "*m k"], temperature: float) -> Float[Tensor, "*m"]:
    """−Σ_k target · log softmax(student / temperature)."""
    return -(target * F.log_softmax(full(student) / temperature, dim=-1)).sum(dim=-1)


def koleo(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """−mean log of the distance of each unit vector to the nearest other of all ranks (Sablayrolles 2018; DINOv2 `loss/koleo_loss.py`)."""
    own = F.normalize(full(features), dim=-1)
    every = gather(own)
    with torch.no_grad():
        cosines = own @ every.T
        here = torch.arange(len(own), device=own.device)
        cosines[here, rank() * len(own) + here] = -torch.inf
        nearest = cosines.argmax(dim=1)
    return -((own - every[nearest]).norm(dim=-1) + 1e-8).log().mean()


def spread(features: Tensor) -> Tensor:
    """Standard deviation of unit features over a batch, times √D: 1 when they fill the sphere, 0 when they have collapsed to a point."""
    unit = F.normalize(full(features.detach()), dim=-1)
    return unit.std(dim=0, correction=0).square().sum().sqrt()


class Distillation(nn.Module):
    """Local crops and the other, masked, global crops of a sample match what the teacher says of a whole global crop."""

    name = "distillation"
    needs = frozenset({"global_pooled", "local_pooled", "teacher_pooled"})

    def __init__(self, width: int, config: DistillationConfig) -> None:
        super().__init__()
        self.config = config
        self.head = make_head(width, config.head)

    @property
    def teacher_heads(self) -> Mapping[str, nn.Module]:
        """Heads the teacher keeps an average of."""
        return {"head": self.head}

    def forward(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Mean over samples and over the pairs of a student's and a teacher's view that are not one crop.

        Raises:
            ValueError: there is one global crop and no local one, so there is no such pair.
        """
        assert views.global_pooled is not None
        assert views.teacher_pooled is not None
        config, crops = self.config, len(views.teacher_pooled)
        with torch.no_grad():
            logits_GBK = teacher_heads["head"](views.teacher_pooled)
            target_GBK = sinkhorn(logits_GBK.flatten(0, 1), config.teacher_temperature, config.sinkhorn_iterations).view_as(logits_GBK)
        students = views.global_pooled if views.local_pooled is None else torch.cat([views.global_pooled, views.local_pooled])
        # A crop is not compared with itself: with one global crop, only local ones are students.
        first = crops if crops == 1 else 0
        if len(students) == first:
            raise ValueError("self-distillation needs two views of a sample: set at least two global crops, or local crops")
        student_SBK = self.head(students[first:])
        terms = [
            cross_entropy(student, target_GBK[t], config.student_temperature).mean()
            for s, student in enumerate(student_SBK, start=first)
            for t in range(crops)
            if s != t
        ]
        value = torch.stack(terms).mean()
        metrics = {
            "target_entropy": -(target_GBK * target_GBK.clamp(min=1e-12).log()).sum(dim=-1).mean(),
            "teacher_spread": spread(views.teacher_pooled[0]),
            "student_spread": spread(views.global_pooled[0]),
        }
        if config.koleo:
            spreading = torch.stack([koleo(crop) for crop in views.global_pooled]).mean()
            value = value + config.koleo * spreading
            metrics["koleo"] = spreading.detach()
        return Loss(value, metrics)
