"""What a model is made of. Imports nothing heavy: the command line and the flow read it too."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator


class TextConfig(BaseModel, frozen=True, extra="forbid"):
    """The text tower, a `SiglipTextModel`. It has SigLIP's 64 positions: transformers' pipelines pad its text to them."""

    width: int = Field(768, ge=8, description="of the tokens")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads; divides width")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLPs over width")

    @model_validator(mode="after")
    def _divisible(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError(f"model.text.width ({self.width}) must be a multiple of model.text.heads ({self.heads})")
        return self


class ModelConfig(BaseModel, frozen=True, extra="forbid"):
    """A timm vision transformer and a text tower, in one space of the backbone's width."""

    backbone: str = Field("vit_base_patch16_siglip_224", description="timm name; only a `vit_*_siglip_*` can be exported as SiglipModel")
    backbone_args: dict[str, Any] = Field(
        default_factory=dict, description="what timm is to change in it: patch_size, embed_dim, depth, num_heads, weight_init, …"
    )
    image_size: int = Field(224, ge=16, description="side of the square the model sees, px; a multiple of the patch size")
    activation: Literal["gelu", "gelu_tanh"] = Field(
        "gelu", description="of the vision transformer's MLPs: exact, or the approximation that Google's SigLIP weights were trained with"
    )
    positions: Literal["random", "sincos"] = Field(
        "random",
        description="what learned positions start from; sincos (of ViT-S baselines, MoCo v3) tells places apart from the first step",
    )
    text: TextConfig = Field(default_factory=TextConfig, description="the text tower; it projects to the backbone's width")
    tokenizer: str = Field(
        "blocks:tokenizer", description="folder of a saved tokenizer, hub id, or 'blocks:tokenizer'; pads to 64 without a mask"
    )
    init_scale: float = Field(10.0, gt=0, description="temperature of the sigmoid contrast at the start, not its logarithm (SigLIP: 10)")
    init_bias: float = Field(-10.0, description="bias of its logits at the start (SigLIP: −10; a small batch learns faster from less)")
