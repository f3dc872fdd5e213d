"""A timm SigLIP vision transformer and a `SiglipTextModel`, as the state of one `SiglipModel`.

The two libraries name the same computation differently: timm fuses query, key and value of the blocks into `qkv`; its `AttentionPoolLatent`
keeps `q` and `kv` apart where transformers uses `nn.MultiheadAttention` with all three in `in_proj`. (timm `layers/attention_pool.py`,
transformers `models/siglip/modeling_siglip.py`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import SiglipConfig, SiglipTextConfig, SiglipVisionConfig

State = dict[str, torch.Tensor]


def refusal(backbone: nn.Module) -> str | None:
    """Why a backbone has no exact `SiglipModel` counterpart, or None when it has one. Works on the meta device."""
    if not isinstance(backbone, VisionTransformer):
        return f"it is a {type(backbone).__name__}, not a timm VisionTransformer"
    block: Any = backbone.blocks[0]
    problems = {
        "it has a class token": backbone.cls_token is not None,
        "it has register tokens": backbone.reg_token is not None,
        "it has no learned position embedding": backbone.pos_embed is None,
        "it normalises before the blocks": not isinstance(backbone.norm_pre, nn.Identity),
        "it does not normalise after the blocks": not isinstance(backbone.norm, nn.LayerNorm),
        "it does not pool with an attention head (global_pool='map')": not isinstance(backbone.attn_pool, AttentionPoolLatent),
        "it has a classifier or norm after pooling": not (
            isinstance(backbone.fc_norm, nn.Identity) and isinstance(backbone.head, nn.Identity)
        ),
        "its blocks scale their layers": not isinstance(getattr(block, "ls1", nn.Identity()), nn.Identity),
        "its attention normalises queries and keys": not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity),
        "its attention has no fused qkv with a bias": getattr(getattr(block.attn, "qkv", None), "bias", None) is None,
        "its MLP is not the plain one": not hasattr(block.mlp, "fc1") or not isinstance(block.mlp.act, nn.GELU),
    }
    return next((reason for reason, holds in problems.items() if holds), None)


def vision_config(backbone: VisionTransformer) -> SiglipVisionConfig:
    """The vision tower's configuration, read off the backbone itself."""
    reason = refusal(backbone)
    if reason is not None:
        raise ValueError(
            f"this backbone cannot become a SiglipModel: {reason}. Use a timm `vit_*_siglip_*`, or leave 'siglip' out of export.formats."
        )
    block: Any = backbone.blocks[0]
    height, width = backbone.patch_embed.img_size
    assert height == width, "MTV trains on square pictures"
    return SiglipVisionConfig(
        hidden_size=backbone.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(backbone.blocks),
        num_attention_heads=block.attn.num_heads,
        num_channels=backbone.patch_embed.proj.in_channels,
        image_size=height,
        patch_size=backbone.patch_embed.patch_size[0],
        # timm's SigLIP checkpoints differ here (`gelu` or `gelu_tanh`); transformers takes either.
        hidden_act="gelu_pytorch_tanh" if block.mlp.act.approximate == "tanh" else "gelu",
        layer_norm_eps=block.norm1.eps,
    )


def siglip_config(backbone: VisionTransformer, text: SiglipTextConfig, special_ids: Mapping[str, int]) -> SiglipConfig:
    """Configuration of the pair; `special_ids` (bos, eos and pad `…_token_id`) are the tokenizer's, the class defaults being CLIP's."""
    keys: dict[str, Any] = text.to_dict() | dict(special_ids)
    for generated in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        keys.pop(generated, None)
    return SiglipConfig(text_config=keys, vision_config=vision_config(backbone).to_dict())


def _split(state: Mapping[str, torch.Tensor], source: str, target: str, names: tuple[str, ...]) -> State:
    """Cut a fused projection into equal parts along its outputs."""
    return {
        f"{target}.{name}.{kind}": part
        for kind in ("weight", "bias")
        for name, part in zip(names, state[f"{source}.{kind}"].chunk(len(names)), strict=True)
    }


def _copy(state: Mapping[str, torch.Tensor], source: str, target: str) -> State:
    return {f"{target}.{kind}": state[f"{source}.{kind}"] for kind in ("weight", "bias")}


def vision_state(state: Mapping[str, torch.Tensor]) -> State:
    """`state_dict()` of a timm SigLIP ViT → keys and shapes of `SiglipModel.vision_model`, without that prefix."""
    out = _copy(state, "patch_embed.proj", "embeddings.patch_embedding")
    out["embeddings.position_embedding.weight"] = state["pos_embed"][0]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for index in range(depth):
        block, layer = f"blocks.{index}", f"encoder.layers.{index}"
        out |= _copy(state, f"{block}.norm1", f"{layer}.layer_norm1") | _copy(state, f"{block}.norm2", f"{layer}.layer_norm2")
        out |= _split(state, f"{block}.attn.qkv", f"{layer}.self_attn", ("q_proj", "k_proj", "v_proj"))
        out |= _copy(state, f"{block}.attn.proj", f"{layer}.self_attn.out_proj")
        out |= _copy(state, f"{block}.mlp.fc1", f"{layer}.mlp.fc1") | _copy(state, f"{block}.mlp.fc2", f"{layer}.mlp.fc2")
    out |= _copy(state, "norm", "post_layernorm")
    out["head.probe"] = state["attn_pool.latent"]
    for kind in ("weight", "bias"):  # q, k, v in this order
        out[f"head.attention.in_proj_{kind}"] = torch.cat([state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"]])
    out |= _copy(state, "attn_pool.proj", "head.attention.out_proj") | _copy(state, "attn_pool.norm", "head.layernorm")
    return out | _copy(state, "attn_pool.mlp.fc1", "head.mlp.fc1") | _copy(state, "attn_pool.mlp.fc2", "head.mlp.fc2")


def siglip_state(
    backbone: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor], logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> State:
    """The whole `SiglipModel`. `logit_scale` is the logarithm, as both sides keep it."""
    state = {f"vision_model.{key}": value for key, value in vision_state(backbone).items()}
    state |= {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text.items()}
    state |= {"logit_scale": logit_scale.reshape(1), "logit_bias": logit_bias.reshape(1)}
    return {key: value.detach().float().cpu().contiguous() for key, value in state.items()}
