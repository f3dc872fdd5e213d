"""Small models, batches and configurations that the tests of objectives share. Imported by spawned ranks too."""

from __future__ import annotations

import torch

from mtv_core.model.config import ModelConfig, TextConfig
from mtv_core.model.mtv import MTV
from mtv_core.objectives.base import Batch
from mtv_core.objectives.config import (
    ContrastiveConfig,
    DepthConfig,
    DistillationConfig,
    GroundingConfig,
    HeadConfig,
    MaskedConfig,
    ObjectivesConfig,
    TeacherConfig,
)

HEAD = HeadConfig(hidden=16, layers=2, bottleneck=8, prototypes=12)
VOCAB = 40


def config() -> ObjectivesConfig:
    """All objectives on, KoLeo included; weights that differ."""
    return ObjectivesConfig(
        contrastive=ContrastiveConfig(weight=1.0),
        distillation=DistillationConfig(weight=0.5, head=HEAD, koleo=0.1),
        masked=MaskedConfig(weight=0.7, head=HEAD),
        grounding=GroundingConfig(weight=0.9, heads=2, similar=0.9),
        depth=DepthConfig(weight=0.3, layers=(0, 1), width=8, scales=3),
        teacher=TeacherConfig(momentum=0.9),
    )


def model(seed: int = 0) -> MTV:
    """24 px, patches of 8, two blocks; float64, in evaluation mode's absence of dropout."""
    torch.manual_seed(seed)
    arguments = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    small = ModelConfig(backbone_args=arguments, image_size=24, text=TextConfig(width=8, depth=1, heads=2))
    return MTV(small, VOCAB).double()


def batch(size: int = 4, seed: int = 1) -> Batch:
    """Samples with and without labels: sample 0 has no box, sample 1 no depth, the first crop of sample 2 no mask."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    corners = uniform(size, 3, 2, 2).sort(dim=2).values
    box_valid = uniform(size, 3) > 0.3
    box_valid[0] = False
    depth_valid = uniform(size, 12, 12) > 0.2
    depth_valid[1] = False
    masks = uniform(2, size, 9) > 0.6
    masks[:, :, 0] = True
    masks[0, 2] = False
    return Batch(
        pixels=normal(size, 3, 24, 24),
        text_ids=torch.randint(3, VOCAB, (size, 64), generator=g),
        boxes=corners.flatten(2),
        box_valid=box_valid,
        phrase_ids=torch.randint(3, VOCAB, (5, 64), generator=g),
        phrase_index=torch.randint(0, 5, (size, 3), generator=g),
        depth=uniform(size, 12, 12),
        depth_valid=depth_valid,
        global_crops=normal(2, size, 3, 24, 24),
        local_crops=normal(2, size, 3, 16, 16),
        masks=masks,
    )


def part(whole: Batch, rank: int, world: int) -> Batch:
    """The slice of a global batch that a rank sees; phrases are every rank's own list, in another order on each."""
    each = len(whole) // world
    rows = slice(rank * each, (rank + 1) * each)
    order = torch.randperm(len(whole.phrase_ids), generator=torch.Generator().manual_seed(rank))
    return Batch(
        pixels=whole.pixels[rows],
        text_ids=whole.text_ids[rows],
        boxes=whole.boxes[rows],
        box_valid=whole.box_valid[rows],
        phrase_ids=whole.phrase_ids[order],
        phrase_index=order.argsort()[whole.phrase_index[rows]],
        depth=whole.depth[rows],
        depth_valid=whole.depth_valid[rows],
        global_crops=whole.global_crops[:, rows],
        local_crops=whole.local_crops[:, rows],
        masks=whole.masks[:, rows],
    )
