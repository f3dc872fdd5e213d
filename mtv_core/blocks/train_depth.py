"""Training of the tiny Depth Anything: a real `DepthAnythingForDepthEstimation` over a DINOv2 backbone, on blocks' ground truth.

It predicts disparity, `SCALE` / metres, 0 in the sky, as Depth Anything V2's relative models do. Two things differ from training a big one:
the head's last bias starts above zero, since its ReLU dies otherwise, and the loss is plain (relative L1, and L1 on gradients, without the
scale-and-shift invariance that mixing datasets asks for): the world has one scale.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

from mtv_core.blocks.expert_data import SIDE, Truth

PATCH = 12
SCALE = 4.0  # metres at which the disparity is 1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as Depth Anything's processor has them


def build() -> DepthAnythingForDepthEstimation:
    """The untrained model, ~0.8 M parameters."""
    backbone: Any = Dinov2Config(  # type: ignore[call-arg]  # out_indices is a property that the constructor takes
        image_size=SIDE, patch_size=PATCH, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, mlp_ratio=3,
        layerscale_value=0.5, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=PATCH, reassemble_hidden_size=128, reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[24, 32, 48, 48], fusion_hidden_size=24, head_hidden_size=12, depth_estimation_type="relative",
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        # transformers' 0.02 is meant for fine-tuning from DINOv2; convolutions from scratch want their fan-in.
        for part in (model.neck, model.head):
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        model.head.conv3.weight.mul_(0.02)  # so that the bias decides at first
        assert model.head.conv3.bias is not None
        nn.init.constant_(model.head.conv3.bias, 1.0)
    return model


def processor() -> DPTImageProcessor:
    """What the model's pictures go through: the longer side near 96 px, the aspect kept, both sides multiples of the patch."""
    return DPTImageProcessor(
        size={"height": SIDE, "width": SIDE}, keep_aspect_ratio=True, ensure_multiple_of=PATCH, image_mean=list(MEAN), image_std=list(STD)
    )


def pixels(rgb: np.ndarray) -> Tensor:
    """[B, H, W, 3] u8 → normalised [B, 3, H, W]."""
    return (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255.0 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]


def losses(predicted_BHW: Tensor, target_BHW: Tensor) -> dict[str, Tensor]:
    """Relative L1 of disparities, and L1 of their differences to the next pixel at three strides. Sky has disparity 0."""
    weight = torch.where(target_BHW > 0, 1.0 / (target_BHW + 0.1), 1.0)
    error = predicted_BHW - target_BHW
    gradient = [((error[:, :, s:] - error[:, :, :-s]).abs().mean() + (error[:, s:] - error[:, :-s]).abs().mean()) for s in (1, 4, 12)]
    return {"l1": (error.abs() * weight).mean(), "gradient": 0.5 * torch.stack(gradient).sum()}


def train(
    truth: Truth,
    folder: Path,
    *,
    steps: int,
    seed: int,
    batch: int = 16,
    lr: float = 1e-3,
    log: Callable[[str], None] = print,
) -> None:
    """Train on `truth` and save model and processor to `folder`, fp16 on disk, fp32 when loaded."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build().train()
    model.head.activation2 = nn.LeakyReLU(0.05)  # a ReLU that cannot die; at the end the real one, which the loss has made nearly equal
    sizes, group = np.unique(truth.frames, axis=0, return_inverse=True)
    groups = [np.flatnonzero(group == i) for i in range(len(sizes))]
    share = np.array([len(rows) for rows in groups]) / len(truth)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * s / steps)))
    began = time.perf_counter()
    for step in range(steps):
        which = int(rng.choice(len(groups), p=share))  # a batch has frames of one size
        rows, (width, height) = rng.choice(groups[which], size=batch), sizes[which]
        rgb, depth = truth.rgb[rows, :height, :width], truth.depth[rows, :height, :width]
        if rng.random() < 0.5:  # a mirrored scene is a scene
            rgb, depth = rgb[:, :, ::-1].copy(), depth[:, :, ::-1].copy()
        target = SCALE / torch.from_numpy(depth).float()
        parts = losses(model(pixel_values=pixels(rgb)).predicted_depth, target)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log(
                f"depth step {step}: "
                + " ".join(f"{k} {float(v.detach()):.3f}" for k, v in parts.items())
                + f" {time.perf_counter() - began:.0f} s"
            )
    model.head.activation2 = nn.ReLU()
    save(model, folder)


def save(model: DepthAnythingForDepthEstimation, folder: Path) -> None:
    """fp16 on disk with `dtype: float32` in the config: half the size, and a plain `from_pretrained` computes in fp32."""
    model.half().eval().save_pretrained(folder)
    config = DepthAnythingConfig.from_pretrained(folder)
    config.dtype = "float32"
    config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private
    processor().save_pretrained(folder)
