"""All objectives of one step in one forward, so that one DDP wraps everything and pictures go through the backbone as few times as can be.

Shapes as in `base`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TypedDict, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mtv_core.model.backbone import pool, tokens
from mtv_core.model.mtv import MTV
from mtv_core.objectives.base import Batch, Loss, Objective, Views
from mtv_core.objectives.config import ObjectivesConfig
from mtv_core.objectives.contrastive import Contrastive
from mtv_core.objectives.depth import Depth, spread_layers
from mtv_core.objectives.distillation import Distillation
from mtv_core.objectives.gram import Gram
from mtv_core.objectives.grounding import Grounding
from mtv_core.objectives.masked import MaskedPatches
from mtv_core.objectives.weighting import static


class Outcome(TypedDict):
    """Of one step on one rank. Averaged over ranks, all of it is the global batch's."""

    loss: Tensor
    """scalar with gradients: what to call backward on."""
    losses: dict[str, Tensor]
    """detached, not weighted, by objective: contrastive, distillation, masked, grounding, depth."""
    metrics: dict[str, Tensor]
    """detached, `<objective>/<metric>`."""


def build(config: ObjectivesConfig, model: MTV) -> dict[str, Objective]:
    """The objectives that are on, with fresh heads.

    Raises:
        ValueError: the depth head is to read a block that the backbone does not have, or heads do not divide its width.
    """
    width, blocks = model.width, len(model.backbone.blocks)
    objectives: dict[str, Objective] = {}
    if config.contrastive is not None:
        objectives["contrastive"] = Contrastive(config.contrastive)
    if config.distillation is not None:
        objectives["distillation"] = Distillation(width, config.distillation)
    if config.masked is not None:
        objectives["masked"] = MaskedPatches(width, config.masked)
    if config.grounding is not None:
        objectives["grounding"] = Grounding(width, config.grounding)
    if config.depth is not None:
        layers = config.depth.layers or spread_layers(blocks)
        if not all(0 <= layer < blocks for layer in layers):
            raise ValueError(f"objectives.depth.layers {list(layers)} must be within 0 … {blocks - 1}, the blocks of the backbone")
        objectives["depth"] = Depth(width, layers, config.depth)
    if config.gram is not None:
        objectives["gram"] = Gram()
    return objectives


class ObjectiveSystem(nn.Module):
    """Model, teacher and objectives. `forward` gives the losses; call `update_teacher` after each step of the optimiser.

    An objective that has not begun costs nothing, and gives its heads a gradient of None once `release` is called: no optimiser moves them.
    """

    def __init__(self, model: MTV, config: ObjectivesConfig) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.objectives = nn.ModuleDict(cast(dict[str, nn.Module], build(config, model)))
        self.needs = frozenset().union(*(objective.needs for _, objective in self._named()))
        self.teacher = nn.ModuleDict()
        if self.needs & {"teacher_pooled", "teacher_patches", "anchor_patches"}:
            if config.teacher.average == "all":
                self.teacher["backbone"] = copy.deepcopy(model.backbone)
            if "anchor_patches" in self.needs:
                self.teacher["anchor"] = copy.deepcopy(model.backbone)
            for name, objective in self._named():
                if objective.teacher_heads:
                    self.teacher[name] = nn.ModuleDict({key: copy.deepcopy(head) for key, head in objective.teacher_heads.items()})
        self.teacher.requires_grad_(False)
        self._freeze_unused()
        self.train()

    def _named(self) -> list[tuple[str, Objective]]:
        return [(name, cast(Objective, module)) for name, module in self.objectives.items()]

    @property
    def _teaching(self) -> VisionTransformer:
        """The backbone that sets targets."""
        if "backbone" not in self.teacher:
            return self.model.backbone
        return cast(VisionTransformer, self.teacher["backbone"])

    def _freeze_unused(self) -> None:
        """DDP waits for the gradient of every parameter that asks for one: what no objective uses asks for none."""
        if not self.needs & {"text", "phrases"}:
            self.model.text.requires_grad_(False)
        if "log_scale" not in self.needs:
            self.model.logit_scale.requires_grad_(False)
            self.model.logit_bias.requires_grad_(False)
        if not self.needs & {"image", "global_pooled", "local_pooled"} and self.model.backbone.attn_pool is not None:
            self.model.backbone.attn_pool.requires_grad_(False)
        if not self.needs - {"layers", "phrases", "text"}:
            self.model.backbone.norm.requires_grad_(False)

    def train(self, mode: bool = True) -> ObjectiveSystem:
        """The teacher has no dropout."""
        super().train(mode)
        self.teacher.eval()
        return self

    def weights(self, done: float) -> dict[str, float]:
        """The weights of the objectives that have begun when this share of all steps is done."""
        found = {name: getattr(self.config, name).weight_at(done) for name, _ in self._named()}
        return {name: weight for name, weight in found.items() if weight}

    def forward(self, batch: Batch, done: float = 1.0) -> Outcome:
        """The losses of a batch, of the objectives that have begun when this share of all steps is done."""
        weights = self.weights(done)
        views = self._look(batch, weights)
        results: dict[str, Loss] = {}
        for name, objective in self._named():
            if name not in weights:
                continue
            heads = cast(Mapping[str, nn.Module], self.teacher[name]) if name in self.teacher else {}
            results[name] = objective(views, batch, heads)
        losses = {name: result.value for name, result in results.items()}
        loss = static(losses, weights)
        if len(weights) < len(self.objectives):  # DDP waits for the gradient of every parameter
            loss = loss + 0.0 * torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum()
        return Outcome(
            loss=loss,
            losses={name: loss.detach() for name, loss in losses.items()},
            metrics={f"{name}/{key}": value for name, result in results.items() for key, value in result.metrics.items()},
        )

    def release(self, done: float) -> None:
        """Take their gradients of zero from heads of objectives that have not begun; after gradients were averaged over ranks."""
        weights = self.weights(done)
        for name, objective in self.objectives.items():
            if name not in weights:
                for parameter in objective.parameters():
                    parameter.grad = None

    def _look(self, batch: Batch, begun: Collection[str] | None = None) -> Views:
        """Every tower once for every size of picture: masked global crops go through together with the clean view if they have its size."""
        begun = self.objectives.keys() if begun is None else begun
        needs = frozenset().union(*(objective.needs for name, objective in self._named() if name in begun))
        views, model, prefix = (
            Views(log_scale=self.model.logit_scale, bias=self.model.logit_bias),
            self.model,
            self.model.backbone.num_prefix_tokens,
        )
        clean, crops = bool(needs & {"image", "patches", "layers"}), bool(needs & {"global_pooled", "global_patches"})
        G, B, V = len(batch.global_crops), len(batch), len(batch.local_crops)
        kept: dict[int, Tensor] = {}
        layers = cast(Depth, self.objectives["depth"]).layers if "layers" in needs else ()
        token = cast(MaskedPatches, self.objectives["masked"]).mask_token if "masked" in begun else None

        def student(pixels: Tensor, hidden: Tensor) -> Tensor:
            return tokens(model.backbone, pixels, None if token is None else (hidden, token), (layers, kept))

        clean_x = crops_x = None
        if clean and crops and batch.pixels.shape[-1] == batch.global_crops.shape[-1]:
            whole, masks = torch.cat([batch.pixels, batch.global_crops.flatten(0, 1)]), batch.masks.flatten(0, 1)
            clean_x, crops_x = student(whole, torch.cat([masks.new_zeros(B, masks.shape[1]), masks])).split([B, G * B])
        else:
            # Crops first: what is kept of the layers must be the clean view's.
            if crops:
                crops_x = student(batch.global_crops.flatten(0, 1), batch.masks.flatten(0, 1))
            if clean:
                clean_x = tokens(model.backbone, batch.pixels, keep=(layers, kept))
        if clean_x is not None:
            views.patches = clean_x[:, prefix:]
            views.image = pool(model.backbone, clean_x) if "image" in needs else None
            views.layers = [kept[layer][:B, prefix:] for layer in layers]
        if crops_x is not None:
            views.global_patches = crops_x[:, prefix:].unflatten(0, (G, B))
            views.global_pooled = pool(model.backbone, crops_x).unflatten(0, (G, B)) if "global_pooled" in needs else None
        if V and "local_pooled" in needs:
            views.local_pooled = pool(model.backbone, tokens(model.backbone, batch.local_crops.flatten(0, 1))).unflatten(0, (V, B))
        if needs & {"teacher_pooled", "teacher_patches"}:
            with torch.no_grad():
                teacher = self._teaching
                seen = tokens(teacher, batch.global_crops.flatten(0, 1))
                views.teacher_patches = seen[:, prefix:].unflatten(0, (G, B))
                views.teacher_pooled = pool(teacher, seen).unflatten(0, (G, B))
        if "anchor_patches" in needs:
            with torch.no_grad():
                anchored = tokens(cast(VisionTransformer, self.teacher["anchor"]), batch.global_crops.flatten(0, 1))
                views.anchor_patches = anchored[:, prefix:].unflatten(0, (G, B))
        texts = [batch.text_ids] * ("text" in needs) + [batch.phrase_ids] * ("phrases" in needs)
        if texts:
            embedded = model.encode_text(torch.cat(texts))
            views.text = embedded[:B] if "text" in needs else None
            views.phrases = embedded[-len(batch.phrase_ids) :] if "phrases" in needs else None
        return views

    @torch.no_grad()
    def update_teacher(self, step: int = 1) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · student; in some steps the anchor becomes it. The same on every rank.

        Args:
            step: the number of steps done.
        """
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.teacher["backbone"], self.model.backbone)] if "backbone" in self.teacher else []
        for name, objective in self._named():
            pairs += [(cast(nn.ModuleDict, self.teacher[name])[key], head) for key, head in objective.teacher_heads.items()]
        averages: list[Tensor] = [p for average, _ in pairs for p in average.parameters()]
        students: list[Tensor] = [p for _, student in pairs for p in student.parameters()]
        if averages:
            torch._foreach_lerp_(averages, students, 1.0 - self.config.teacher.momentum)
        if self.config.gram is not None and step % self.config.gram.every == 0:
            self.teacher["anchor"].load_state_dict(self.teacher["backbone"].state_dict())
