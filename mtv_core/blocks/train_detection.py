"""Training of the tiny OWLv2: a real `Owlv2ForObjectDetection`, on blocks' ground truth.

Three departures from how the big one is trained, all because of size. transformers initialises the class, box and objectness heads
with standard deviation 1, which saturates the sigmoids, so they are re-initialised small, with the class shift at the prior of a positive.
There is no bipartite matching: every token whose patch shows a solid gets that solid's class and box. All phrases of the world are
embedded once a step and are queries of every picture.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    Owlv2TextConfig,
    Owlv2VisionConfig,
)

from mtv_core.blocks.expert_data import NAMES, SIDE, Truth
from mtv_core.blocks.scene import SHAPES
from mtv_core.blocks.tokenizers import query_tokenizer

PATCH = 12
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, the default of OWLv2's processor
QUERIES: tuple[str, ...] = (*NAMES, *SHAPES)
WORDINGS: tuple[str, ...] = ("{}", "a {}", "a photo of a {}", "small {}", "large {}", "the {}")
MIN_COVER = 0.2  # share of a patch that a solid must cover for the patch's token to stand for it


def build(tokenizer: CLIPTokenizer) -> Owlv2ForObjectDetection:
    """The untrained detector, ~1 M parameters."""
    text = Owlv2TextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vision = Owlv2VisionConfig(
        hidden_size=144, intermediate_size=432, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE, patch_size=PATCH
    )
    config = Owlv2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        for head in (model.class_head, model.box_head, model.objectness_head):
            for module in head.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                    nn.init.zeros_(module.bias)
        for last in (model.box_head.dense2, model.objectness_head.dense2, model.class_head.logit_shift, model.class_head.logit_scale):
            nn.init.trunc_normal_(last.weight, std=0.01)
        scale = 10.0
        nn.init.constant_(model.class_head.logit_scale.bias, scale - 1.0)  # ELU + 1
        nn.init.constant_(model.class_head.logit_shift.bias, math.log(0.004) / scale)
        nn.init.constant_(model.objectness_head.dense2.bias, -1.5)
    return model


def processor(tokenizer: CLIPTokenizer) -> Owlv2Processor:
    """What maps pictures and phrases to the detector's inputs, and its outputs to boxes."""
    return Owlv2Processor(Owlv2ImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)


def token_targets(truth: Truth) -> tuple[Tensor, Tensor]:
    """Which solid each token stands for.

    Returns:
        solids [M, T] index of the solid, −1 for none; every solid has at least one token if it is seen at all.
        classes [M, T] index into CLASSES, −1 for none.
    """
    count, grid = len(truth), SIDE // PATCH
    patches = truth.instances.reshape(count, grid, PATCH, grid, PATCH).transpose(0, 1, 3, 2, 4).reshape(count, grid * grid, PATCH * PATCH)
    cover = np.stack([(patches == solid).mean(-1) for solid in range(truth.boxes.shape[1])], axis=-1)  # [M, T, S]
    solids = np.where(cover.max(-1) >= MIN_COVER, cover.argmax(-1), -1)
    best = cover.argmax(1)  # [M, S]
    for solid in range(cover.shape[-1]):
        rows = np.flatnonzero(cover[:, :, solid].max(1) > 0.0)
        solids[rows, best[rows, solid]] = solid
    classes = np.where(solids >= 0, np.take_along_axis(truth.classes, np.maximum(solids, 0), axis=1), -1)
    return torch.from_numpy(solids), torch.from_numpy(classes.astype(np.int64))


def losses(
    model: Owlv2ForObjectDetection,
    pixels_BCHW: Tensor,
    queries_QL: Tensor,
    mask_QL: Tensor,
    solids_BT: Tensor,
    classes_BT: Tensor,
    boxes_BS4: Tensor,
) -> dict[str, Tensor]:
    """Loss of a batch by part. Boxes are xyxy, normalised by the padded square."""
    vision = model.owlv2.vision_model(pixel_values=pixels_BCHW).last_hidden_state
    tokens_BTD = model.owlv2.vision_model.post_layernorm(vision)
    # As in `Owlv2ForObjectDetection.image_text_embedder`: patch tokens times the class token, normalised.
    tokens_BTD = model.layer_norm(tokens_BTD[:, 1:] * tokens_BTD[:, :1])
    phrases_QD = model.owlv2.text_projection(model.owlv2.text_model(input_ids=queries_QL, attention_mask=mask_QL).pooler_output)
    phrases_QD = phrases_QD / phrases_QD.norm(dim=-1, keepdim=True)
    logits_BTQ, _ = model.class_head(tokens_BTD, phrases_QD[None].expand(len(tokens_BTD), -1, -1), None)
    target_BTQ = torch.zeros_like(logits_BTQ)
    positive = classes_BT >= 0
    b, t = positive.nonzero(as_tuple=True)
    target_BTQ[b, t, classes_BT[b, t]] = 1.0
    target_BTQ[b, t, len(NAMES) + classes_BT[b, t] % len(SHAPES)] = 1.0
    count = max(1, len(b))
    predicted = (model.box_head(tokens_BTD) + model.box_bias.to(tokens_BTD)).sigmoid()[b, t]
    wanted = boxes_BS4[b, solids_BT[b, t]]
    objectness = model.objectness_head(tokens_BTD.detach())[..., 0]
    return {
        "class": nn.functional.binary_cross_entropy_with_logits(logits_BTQ, target_BTQ, reduction="sum") / count,
        "l1": 5.0 * nn.functional.l1_loss(predicted, box_convert(wanted, "xyxy", "cxcywh"), reduction="sum") / count,
        "giou": 2.0 * generalized_box_iou_loss(box_convert(predicted, "cxcywh", "xyxy"), wanted, reduction="sum") / count,
        "objectness": nn.functional.binary_cross_entropy_with_logits(objectness, positive.float()),
    }


def pixels(rgb: np.ndarray) -> Tensor:
    """[B, H, W, 3] u8 → normalised [B, 3, H, W], as the image processor does at this size."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255.0 - mean) / std


def train(
    truth: Truth,
    folder: Path,
    *,
    steps: int,
    seed: int,
    batch: int = 32,
    lr: float = 1.5e-3,
    log: Callable[[str], None] = print,
    step_hook: Callable[[int, nn.Module, torch.optim.Optimizer], None] | None = None,
) -> None:
    """Train a detector on `truth` and save model and processor to `folder`, fp16 on disk, fp32 when loaded."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = query_tokenizer()
    model = build(tokenizer).train()
    solids, classes = token_targets(truth)
    boxes = torch.from_numpy(truth.boxes)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.03}, {"params": rest, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * s / steps)))
    began = time.perf_counter()
    for step in range(steps):
        rows = rng.integers(len(truth), size=batch)
        # Mirror the square ones: a mirrored scene is a scene.
        rgb, batch_boxes, grid = truth.rgb[rows], boxes[rows].clone(), SIDE // PATCH
        batch_solids, batch_classes = solids[rows].reshape(batch, grid, grid), classes[rows].reshape(batch, grid, grid)
        flip = (rng.random(batch) < 0.5) & (truth.frames[rows, 0] == SIDE)
        if flip.any():
            rgb = np.where(flip[:, None, None, None], rgb[:, :, ::-1], rgb)
            keep = torch.from_numpy(flip)
            mirrored = torch.stack([1 - batch_boxes[..., 2], batch_boxes[..., 1], 1 - batch_boxes[..., 0], batch_boxes[..., 3]], -1)
            batch_boxes = torch.where(keep[:, None, None], mirrored, batch_boxes)
            batch_solids = torch.where(keep[:, None, None], batch_solids.flip(-1), batch_solids)
            batch_classes = torch.where(keep[:, None, None], batch_classes.flip(-1), batch_classes)
        wording = WORDINGS[0] if rng.random() < 0.4 else WORDINGS[int(rng.integers(len(WORDINGS)))]
        queries = tokenizer([wording.format(name) for name in QUERIES], padding="max_length", return_tensors="pt")
        parts = losses(
            model, pixels(rgb), queries["input_ids"], queries["attention_mask"],
            batch_solids.flatten(1), batch_classes.flatten(1), batch_boxes,
        )  # fmt: skip
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log(
                f"detection step {step}: "
                + " ".join(f"{k} {float(v.detach()):.3f}" for k, v in parts.items())
                + f" {time.perf_counter() - began:.0f} s"
            )
    save(model, tokenizer, folder)


def save(model: Owlv2ForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """fp16 on disk with `dtype: float32` in the config: half the size, and a plain `from_pretrained` computes in fp32."""
    model = model.half().eval()
    model.save_pretrained(folder)
    config = Owlv2Config.from_pretrained(folder)
    config.dtype = "float32"
    config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private
    processor(tokenizer).save_pretrained(folder)
