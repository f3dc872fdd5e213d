"""Pictures and texts to tensors, exactly as `SiglipImageProcessor` (torchvision backend) and a SigLIP text pipeline make them.

Evaluation and export share this, so that a number of ours holds for the exported folder too; exporting checks the equality.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvf
from transformers import PreTrainedTokenizerBase

MEAN = STD = 0.5
TEXT_LENGTH = 64  # what transformers' zero-shot pipeline pads SigLIP text to


def pixel_values(images: Sequence[Image.Image | NDArray[np.uint8]], size: int) -> torch.Tensor:
    """Squash to a square, scale to −1…1.

    Args:
        images: PIL pictures of any mode, or uint8 [H, W, 3] arrays.
        size: side of the square in pixels.

    Returns:
        float32 [B, 3, size, size].
    """
    resized = []
    for image in images:
        array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous()
        # Resizing the bytes, rounding, and only then going to float is what the processor does.
        resized.append(tvf.resize(tensor, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True))
    return (torch.stack(resized).float() / 255.0 - MEAN) / STD


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> torch.Tensor:
    """int64 [B, 64]: always padded to the full length and never masked, since SigLIP pools the last position."""
    encoded = tokenizer(list(texts), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded["input_ids"]
    return ids
