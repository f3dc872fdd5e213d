"""The weights a training starts from: a model folder of MTV's own, or any `SiglipModel` (SigLIP, SigLIP 2 at a fixed size, MTV's release).

The architecture is what the configuration says. A picture size other than the weights' own is met by resizing position embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase, SiglipConfig, SiglipModel

from mtv_core.model.config import ModelConfig
from mtv_core.model.mtv import MTV, load_model, load_tokenizer
from mtv_core.model.preprocess import TEXT_LENGTH

State = dict[str, Tensor]
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # transformers' names → `model.activation`


def load_start(source: str | Path, config: ModelConfig) -> tuple[MTV, PreTrainedTokenizerBase]:
    """A model as configured, with the weights and the tokenizer of another one.

    Args:
        source: model folder of a training, folder or hub id of a `SiglipModel`.
        config: the architecture; `tokenizer`, `activation` and what the contrast starts from are the source's.

    Raises:
        FileNotFoundError: there is no model at `source`.
        ValueError: it is no `SiglipModel`, or not of the configured architecture.
    """
    if (Path(source) / "model.json").is_file():
        start, tokenizer = load_model(source)
        state, facts = start.state_dict(), start.config
        config = config.model_copy(update={"activation": facts.activation})
        vocabulary, said = start.text.config.vocab_size, f"model.backbone: {facts.backbone}, model.text: {facts.text.model_dump()}"
    else:
        siglip = _siglip(source)
        vision, text = _towers(siglip.config)
        state, tokenizer = from_siglip(siglip.state_dict()), load_tokenizer(source)
        config = config.model_copy(update={"activation": _ACTIVATIONS[vision.hidden_act]})
        vocabulary, said = text.vocab_size, _described(siglip.config)
    model = MTV(config, vocabulary)
    state["backbone.pos_embed"] = _resized(state["backbone.pos_embed"], model)
    names = {name.removeprefix("text.text_model."): name for name in model.state_dict()}  # a level that some versions of transformers have
    try:
        model.load_state_dict({names.get(name, name): value for name, value in state.items()})
    except RuntimeError as error:
        problems = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(
            f"train.init ({source}) is not of the architecture that train.model describes ({problems}). It is {said}"
        ) from None
    return model, tokenizer


def _siglip(source: str | Path) -> SiglipModel:
    """The model with its weights in float32. Only safetensors are read: nothing is unpickled."""
    try:
        config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"train.init: there is no model at {source}; give the model/ folder of a run, or a SiglipModel's folder or hub id ({error})"
        ) from error
    if not isinstance(config, SiglipConfig):
        raise ValueError(f"train.init ({source}) is a {config.model_type!r}; a training starts from a SiglipModel ('siglip') or MTV's own")
    vision, text = _towers(config)
    odd = {
        f"its pictures are seen with {vision.hidden_act}": vision.hidden_act not in _ACTIVATIONS,
        f"its texts are read with {text.hidden_act}": text.hidden_act != "gelu_pytorch_tanh",
        f"its texts have {text.max_position_embeddings} positions": text.max_position_embeddings != TEXT_LENGTH,
        "its layers are normalised with another epsilon than 1e-6": {vision.layer_norm_eps, text.layer_norm_eps} != {1e-6},
    }
    if why := [said for said, holds in odd.items() if holds]:
        raise ValueError(f"train.init ({source}) cannot be continued: {'; '.join(why)}")
    try:
        return SiglipModel.from_pretrained(str(source), dtype=torch.float32, use_safetensors=True)
    except OSError as error:
        raise FileNotFoundError(f"train.init ({source}) has no model.safetensors ({error})") from error


def _towers(config: SiglipConfig) -> tuple[Any, Any]:
    """Configurations of the vision and the text tower."""
    return config.vision_config, config.text_config


def _described(config: SiglipConfig) -> str:
    """What to configure."""
    vision, text = _towers(config)
    return (
        f"a vision transformer of width {vision.hidden_size}, {vision.num_hidden_layers} blocks, {vision.num_attention_heads} heads, "
        f"patches of {vision.patch_size} px, and train.model.text: {{width: {text.hidden_size}, depth: {text.num_hidden_layers}, heads: "
        f"{text.num_attention_heads}, mlp_ratio: {text.intermediate_size / text.hidden_size:g}}}"
    )


def _resized(positions: Tensor, model: MTV) -> Tensor:
    """Position embeddings at the model's own grid (bicubic, as timm does it)."""
    backbone = model.backbone
    prefix = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    if positions.shape[1] == model.grid**2 + prefix:
        return positions
    resized: Tensor = resample_abs_pos_embed(positions, [model.grid, model.grid], num_prefix_tokens=prefix)
    return resized


def from_siglip(state: Mapping[str, Tensor]) -> State:
    """`state_dict()` of a `SiglipModel` → that of `MTV`: the reverse of `export.convert.siglip_state`."""
    out = {f"text.{key.removeprefix('text_model.')}": value for key, value in state.items() if key.startswith("text_model.")}
    out |= {f"backbone.{key}": value for key, value in _vision({k.removeprefix("vision_model."): v for k, v in state.items()}).items()}
    return out | {"logit_scale": state["logit_scale"].reshape(()), "logit_bias": state["logit_bias"].reshape(())}


def _vision(state: Mapping[str, Tensor]) -> State:
    """Keys and shapes of timm's ViT with an attention pool."""
    pairs = {"embeddings.patch_embedding": "patch_embed.proj", "post_layernorm": "norm", "head.layernorm": "attn_pool.norm"}
    pairs |= {"head.attention.out_proj": "attn_pool.proj", "head.mlp.fc1": "attn_pool.mlp.fc1", "head.mlp.fc2": "attn_pool.mlp.fc2"}
    layers = sorted({int(key.split(".")[2]) for key in state if key.startswith("encoder.layers.")})
    names = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    pairs |= {f"encoder.layers.{layer}.{source}": f"blocks.{layer}.{target}" for layer in layers for source, target in names.items()}
    kinds = ("weight", "bias")
    out: dict[str, Any] = {f"{target}.{kind}": state[f"{source}.{kind}"] for source, target in pairs.items() for kind in kinds}
    out["pos_embed"] = state["embeddings.position_embedding.weight"][None]
    out["attn_pool.latent"] = state["head.probe"]
    for kind in kinds:
        for layer in layers:
            parts = [state[f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            out[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
        query, keys_values = state[f"head.attention.in_proj_{kind}"].tensor_split([len(state["head.layernorm.weight"])])
        out[f"attn_pool.q.{kind}"], out[f"attn_pool.kv.{kind}"] = query, keys_values
    return out
