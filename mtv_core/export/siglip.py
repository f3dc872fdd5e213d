"""A folder that `SiglipModel` and its processor load with nothing of ours installed, and the proof that it answers as the trained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from mtv_core.export import convert
from mtv_core.model.mtv import MTV
from mtv_core.model.preprocess import MEAN, STD, TEXT_LENGTH, pixel_values, token_ids

TOLERANCE = 1e-5
_BICUBIC = 3  # PIL's number, which processors' files hold
_TEXTS = ("a red sphere", "a photo of a large blue cube left of a small green cone", "THIS is Nothing like it, été 漢字 12.5 %", "")


def write(model: MTV, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and the processor's and tokenizer's files.

    Raises:
        ValueError: the backbone has no exact counterpart.
    """
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = convert.siglip_config(model.backbone, model.text.config, special)
    state = convert.siglip_state(model.backbone.state_dict(), model.text.state_dict(), model.logit_scale, model.logit_bias)
    with torch.device("meta"):  # its own initial weights are not wanted
        exported = SiglipModel(config)
    exported = exported.to_empty(device="cpu")
    missing, unexpected = exported.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert not missing, missing  # buffers of positions are not in any state, and not saved
    exported.save_pretrained(folder)
    side = model.config.image_size
    images = SiglipImageProcessor(
        size={"height": side, "width": side}, resample=_BICUBIC, image_mean=[MEAN] * 3, image_std=[STD] * 3, do_convert_rgb=True
    )
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


def samples(side: int) -> list[Image.Image]:
    """Pictures of several sizes, shapes and modes, the same every time."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 3 * side).astype(np.uint8)
    waves = (127.5 + 127.5 * np.sin(np.arange(2 * side)[:, None] / 5 + np.arange(side) / 3)).astype(np.uint8)
    return [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 256, (side // 2 + 1, 2 * side + 3, 3), dtype=np.uint8)),
        Image.fromarray(np.stack([np.tile(ramp, (side, 1))] * 3, axis=-1)),
        Image.fromarray(waves),  # grey
        Image.fromarray(rng.integers(0, 256, (side, side, 4), dtype=np.uint8), mode="RGBA").convert("P"),
    ]


@torch.inference_mode()
def max_error(model: MTV, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """Largest difference between the folder, as transformers alone loads it, and the trained model, each with its own preprocessing.

    Of pictures' and texts' unit vectors and of logits, absolute; of the vectors before normalisation, relative to the longest entry.
    """
    exported = SiglipModel.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = model.eval()
    pictures = samples(model.config.image_size)
    inputs = processor(
        text=list(_TEXTS), images=pictures, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    theirs = exported(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    image = model.encode_image(pixel_values(pictures, model.config.image_size))
    text = model.encode_text(token_ids(tokenizer, _TEXTS))
    unit_image, unit_text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
    logits = unit_image @ unit_text.T * model.logit_scale.exp() + model.logit_bias
    return max(
        _relative(theirs.vision_model_output.pooler_output, image),
        _relative(theirs.text_model_output.pooler_output, text),
        _absolute(theirs.image_embeds, unit_image),
        _absolute(theirs.text_embeds, unit_text),
        _absolute(theirs.logits_per_image, logits),
    )


def _absolute(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def _relative(found: Tensor, expected: Tensor) -> float:
    return _absolute(found, expected) / max(1.0, float(expected.abs().max()))
