"""The image tower as a timm checkpoint: `timm.create_model('local-dir:FOLDER', pretrained=True)`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from mtv_core.model.mtv import MTV
from mtv_core.model.preprocess import MEAN, STD


def write(model: MTV, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` in the layout of timm's hub folders, with the preprocessing of the training."""
    side = model.config.image_size
    save_for_hf(
        model.backbone,
        str(folder),
        safe_serialization=True,
        data_config={
            "input_size": (3, side, side),
            "mean": (MEAN,) * 3,
            "std": (STD,) * 3,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
        },
    )


@torch.inference_mode()
def max_error(model: MTV, folder: Path) -> float:
    """Largest difference of the pooled vectors of noise, relative to their longest entry."""
    with tempfile.TemporaryDirectory() as scratch:  # timm reads what follows local-dir: as a URL, so a # or ? of a path would end it
        link = Path(scratch) / "timm"
        link.symlink_to(folder.absolute())
        loaded = timm.create_model(f"local-dir:{link}", pretrained=True).eval()
    side = model.config.image_size
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    expected = model.eval().backbone(pixels)
    return float((loaded(pixels) - expected).abs().max()) / max(1.0, float(expected.abs().max()))
