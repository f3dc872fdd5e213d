"""MTV: a SigLIP vision transformer and text tower, trained by more than their contrast.

Shapes: B pictures or texts, N patches, D the backbone's width, S the side of a picture in px, L = 64 tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, SiglipTextConfig, SiglipTextModel

from mtv_core.model.backbone import make_backbone, pool, tokens
from mtv_core.model.config import ModelConfig
from mtv_core.model.preprocess import TEXT_LENGTH

FORMAT = 1  # of model.json
_EMBEDDED = Path(__file__).parent.parent / "blocks" / "weights"


class MTV(nn.Module):
    """Both towers and the two scalars of their contrast; what is exported. Heads that only training needs belong to the objectives."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config)
        text = config.text
        self.text = SiglipTextModel(
            SiglipTextConfig(
                vocab_size=vocab_size,
                hidden_size=text.width,
                intermediate_size=round(text.width * text.mlp_ratio),
                num_hidden_layers=text.depth,
                num_attention_heads=text.heads,
                max_position_embeddings=TEXT_LENGTH,
                projection_size=self.width,
                # Never used, and the defaults are ids of CLIP's vocabulary, which a smaller one does not have.
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        # transformers hands out models in evaluation mode, timm in training mode.
        self.train()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.init_scale)))
        self.logit_bias = nn.Parameter(torch.tensor(config.init_bias))

    @property
    def width(self) -> int:
        """D, of patches and of both embeddings."""
        return self.backbone.embed_dim

    @property
    def patch_size(self) -> int:
        """Side of a patch, px."""
        return int(self.backbone.patch_embed.patch_size[0])

    @property
    def grid(self) -> int:
        """Patches along a side of a picture of the configured size."""
        return self.config.image_size // self.patch_size

    def encode_image(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, D], not normalised: what `SiglipModel.get_image_features` pools. Pixels are −1 … 1."""
        return self.pool(self.tokens(pixels_B3SS))

    def encode_text(self, ids_BL: Tensor) -> Tensor:
        """[B, D], not normalised; ids from `preprocess.token_ids`, padded to 64 and never masked."""
        pooled: Tensor = self.text(input_ids=ids_BL).pooler_output
        return pooled

    def patch_features(self, pixels_B3SS: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Features of the patches, row by row from the top left.

        Args:
            pixels_B3SS: −1 … 1; S is any multiple of the patch size, positions are interpolated.
            layers: blocks (0 is the first) to take the raw outputs of; None: the last one's, normalised.

        Returns:
            [B, N, D], or one of them for every layer asked for, in that order.
        """
        prefix = self.backbone.num_prefix_tokens
        if layers is None:
            return self.tokens(pixels_B3SS)[:, prefix:]
        kept: dict[int, Tensor] = {}
        self.tokens(pixels_B3SS, keep=(layers, kept))
        return [kept[layer][:, prefix:] for layer in layers]

    def tokens(
        self,
        pixels_B3SS: Tensor,
        mask: tuple[Tensor, Tensor] | None = None,
        keep: tuple[Sequence[int], dict[int, Tensor]] | None = None,
    ) -> Tensor:
        """`backbone.tokens` of this model: [B, prefix + N, D]."""
        return tokens(self.backbone, pixels_B3SS, mask, keep)

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """[B, D] of what `tokens` returned."""
        return pool(self.backbone, tokens_BND)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer by folder, hub id or 'blocks:tokenizer'.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it has no padding token.
    """
    source = _EMBEDDED / str(name).removeprefix("blocks:") if str(name).startswith("blocks:") else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"there is no tokenizer at {name!s}; give a folder with tokenizer.json, a hub id, or 'blocks:tokenizer' ({error})"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer {name!s} has no padding token; SigLIP pads every text to {TEXT_LENGTH}")
    return tokenizer


def create_model(config: ModelConfig) -> tuple[MTV, PreTrainedTokenizerBase]:
    """A model with weights drawn from torch's global generator, and its tokenizer. Seed first."""
    tokenizer = load_tokenizer(config.tokenizer)
    return MTV(config, len(tokenizer)), tokenizer


def save_model(model: MTV, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write `model.safetensors`, `model.json` and `tokenizer/`. Weights come last: a folder that has them is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    facts: dict[str, Any] = {"format": FORMAT, "vocab_size": model.text.config.vocab_size, "config": model.config.model_dump(mode="json")}
    (folder / "model.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    partial = folder / ".model.safetensors.partial"
    save_file(state, partial)
    partial.replace(folder / "model.safetensors")
    return folder


def load_model(folder: str | Path) -> tuple[MTV, PreTrainedTokenizerBase]:
    """What `save_model` wrote, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: the folder has no model.
        ValueError: it was written by a version that this one does not read.
    """
    folder = Path(folder)
    if not (folder / "model.json").is_file() or not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (model.json and model.safetensors); give the model/ folder of a finished training"
        )
    facts = json.loads((folder / "model.json").read_text())
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{folder}/model.json has format {facts.get('format')}, this version reads {FORMAT}; load it with the version that wrote it"
        )
    model = MTV(ModelConfig.model_validate(facts["config"]), facts["vocab_size"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), load_tokenizer(folder / "tokenizer")
