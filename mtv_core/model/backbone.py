"""A timm vision transformer, and its forward pass with patches hidden and layers kept.

Shapes: B pictures, N patches, D width, S side in px.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mtv_core.model.config import ModelConfig


def make_backbone(config: ModelConfig) -> VisionTransformer:
    """The timm transformer a configuration names, with weights of torch's global generator.

    Raises:
        ValueError: timm has no such model, cannot make it like this, or it is no VisionTransformer.
    """
    arguments = {"img_size": config.image_size, "num_classes": 0, "pretrained": False} | config.backbone_args
    if arguments["img_size"] != config.image_size:
        raise ValueError("the size of pictures is model.image_size; leave img_size out of model.backbone_args")
    if not config.backbone.startswith("vit_"):
        raise ValueError(f"model.backbone {config.backbone!r} is no vision transformer of timm's; take a `vit_*`")
    try:
        # Crops have sizes of their own: positions are interpolated where a picture is not image_size.
        # Not timm's "gelu_tanh", a class of its own, which the export does not know.
        activation: dict[str, Any] = (
            {"act_layer": functools.partial(nn.GELU, approximate="tanh")} if config.activation == "gelu_tanh" else {}
        )
        backbone = timm.create_model(config.backbone, dynamic_img_size=True, **activation, **arguments)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm cannot make model.backbone {config.backbone!r} with {arguments}: {error}") from error
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f"model.backbone {config.backbone!r} is a {type(backbone).__name__}; take a plain `vit_*`")
    if config.image_size % backbone.patch_embed.patch_size[0]:
        raise ValueError(
            f"model.image_size ({config.image_size}) must be a multiple of the patch size ({backbone.patch_embed.patch_size[0]})"
        )
    if config.positions == "sincos":
        _start_from_sincos(backbone)
    return backbone


def _start_from_sincos(backbone: VisionTransformer) -> None:
    """Sines and cosines of row and column (Vaswani's frequencies, half of the width each), at the size that patches start with."""
    grid, width = backbone.patch_embed.grid_size[0], backbone.embed_dim
    if width % 4 or backbone.pos_embed is None or backbone.pos_embed.shape[1] != grid * grid:
        raise ValueError("model.positions: sincos needs a backbone with learned positions of patches alone and a width that 4 divides")
    angles = torch.arange(grid)[:, None] / 10000.0 ** (torch.arange(width // 4) / (width // 4))
    place = torch.cat([angles.sin(), angles.cos()], dim=1)  # [grid, width / 2]
    both = torch.cat([place[:, None].expand(-1, grid, -1), place[None].expand(grid, -1, -1)], dim=-1)
    with torch.no_grad():
        backbone.pos_embed.copy_(0.3 * both.reshape(1, grid * grid, width))


def tokens(
    vit: VisionTransformer,
    pixels_B3SS: Tensor,
    mask: tuple[Tensor, Tensor] | None = None,
    keep: tuple[Sequence[int], dict[int, Tensor]] | None = None,
) -> Tensor:
    """All tokens after the last block, normalised: prefix tokens (SigLIP has none), then patches.

    Args:
        pixels_B3SS: −1 … 1.
        mask: bool [B, N], and the token [D] that stands where it is True, before positions are added.
        keep: blocks whose raw outputs to put into the dictionary.
    """
    x_BHWD = vit.patch_embed(pixels_B3SS)
    if mask is not None:
        hidden_BN, token_D = mask
        x_BHWD = torch.where(hidden_BN.view(*x_BHWD.shape[:3], 1), token_D.to(x_BHWD.dtype), x_BHWD)
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(x_BHWD)))
    for index, block in enumerate(vit.blocks):
        x = block(x)
        if keep is not None and index in keep[0]:
            keep[1][index] = x
    out: Tensor = vit.norm(x)
    return out


def pool(vit: VisionTransformer, tokens_BND: Tensor) -> Tensor:
    """[B, D] of what `tokens` returned, by the backbone's own pooling."""
    pooled: Tensor = vit.forward_head(tokens_BND, pre_logits=True)
    return pooled
