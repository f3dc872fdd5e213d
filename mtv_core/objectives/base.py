"""What goes into an objective and what comes out.

Shapes: B samples of this rank, S the side of the clean view in px, N its patches, K boxes a sample, P distinct phrases, L = 64 tokens,
G global and V local crops, s the side of a local crop, D the backbone's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass
class Batch:
    """One rank's slice of a global batch. Pixels are float32 −1 … 1. What has no label is there, and marked as not valid."""

    pixels: Tensor
    """float [B, 3, S, S]: the clean view; boxes and depth are of this view."""
    text_ids: Tensor
    """int64 [B, L]."""
    boxes: Tensor
    """float [B, K, 4]: xyxy, 0 … 1 of the clean view. K ≥ 1, the same on all ranks."""
    box_valid: Tensor
    """bool [B, K]."""
    phrase_ids: Tensor
    """int64 [P, L]: distinct phrases of this rank, P ≥ 1 (any text when there is no box)."""
    phrase_index: Tensor
    """int64 [B, K]: row of `phrase_ids`; 0 where there is no box."""
    depth: Tensor
    """float [B, h, w]: inverse depth of the clean view, any scale and shift; 0 where not valid."""
    depth_valid: Tensor
    """bool [B, h, w]."""
    global_crops: Tensor
    """float [G, B, 3, S, S], G ≥ 1: augmented."""
    local_crops: Tensor
    """float [V, B, 3, s, s]; V may be 0."""
    masks: Tensor
    """bool [G, B, N]: True where the student does not see the patch of its global crop."""

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)})


@dataclass
class Views:
    """What the towers made of a batch: computed once, shared by the objectives. None where no objective that is on needs it."""

    image: Tensor | None = None
    """[B, D]: the clean view, pooled."""
    patches: Tensor | None = None
    """[B, N, D]: of the clean view, normalised."""
    layers: list[Tensor] = field(default_factory=list)
    """[B, N, D] each: raw outputs of the blocks the depth head reads."""
    text: Tensor | None = None
    """[B, D]: captions."""
    log_scale: Tensor | None = None
    """scalar: the model's own, of the contrast of pictures and captions."""
    bias: Tensor | None = None
    """scalar: likewise."""
    phrases: Tensor | None = None
    """[P, D]."""
    global_pooled: Tensor | None = None
    """[G, B, D]: masked global crops, by the student."""
    global_patches: Tensor | None = None
    """[G, B, N, D]: likewise."""
    local_pooled: Tensor | None = None
    """[V, B, D]: by the student."""
    teacher_pooled: Tensor | None = None
    """[G, B, D]: whole global crops, by the teacher; no gradient."""
    teacher_patches: Tensor | None = None
    """[G, B, N, D]: likewise."""
    anchor_patches: Tensor | None = None
    """[G, B, N, D]: whole global crops, by the teacher of some time ago; no gradient."""


@dataclass
class Loss:
    """What an objective says of a batch. Averaged over ranks, value and metrics are those of the global batch."""

    value: Tensor
    """scalar: a mean over the global batch's labelled samples, with gradients; 0 when there is none."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """detached scalars: coverage, monitors of collapse."""


class Objective(Protocol):
    """One loss with its heads, an `nn.Module`. `needs` names fields of `Views`."""

    name: str
    needs: frozenset[str]

    @property
    def teacher_heads(self) -> Mapping[str, nn.Module]:
        """Heads that the teacher has an average of."""
        ...

    def __call__(self, views: Views, batch: Batch, teacher_heads: Mapping[str, nn.Module]) -> Loss:
        """Args: what the towers made of the batch, the batch, and the averages of `teacher_heads`."""
        ...
