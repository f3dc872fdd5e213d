"""What a training will take, before it is started: parameters, work, memory. One step of two samples is done on the CPU and counted."""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtv_core.model.mtv import create_model
from mtv_core.model.preprocess import TEXT_LENGTH
from mtv_core.model.start import load_start
from mtv_core.objectives.base import Batch
from mtv_core.objectives.system import ObjectiveSystem
from mtv_core.training.config import TrainConfig

_SAMPLES = 2  # what self-supervision needs to tell samples apart
_COPIES = 4  # of a trained parameter, float32: itself, its gradient, AdamW's two moments


class Estimate(BaseModel, frozen=True, extra="forbid"):
    """Of one configuration."""

    parameters: dict[str, int] = Field(description="of backbone, text tower, heads of the objectives, and teacher, which is not trained")
    trained: int = Field(description="parameters with a gradient")
    flop_per_sample: int = Field(description="of a forward and a backward pass with all objectives, multiply and add counted apart")
    steps: int
    global_batch: int
    samples: int = Field(description="that all steps see")
    flop: int = Field(description="of all steps")
    samples_per_rank: int = Field(description="of a step")
    state_bytes: int = Field(description="a rank: weights, gradients, moments of AdamW, teacher")
    activation_bytes: int = Field(
        description="a rank: what a step keeps for its backward pass, in the configured dtype; without kernels' own"
    )


def estimate(config: TrainConfig) -> Estimate:
    """Count. Needs the memory of the model and of two samples, and some seconds of a CPU.

    Raises:
        FileNotFoundError, ValueError: as `create_model` or `load_start`.
    """
    torch.manual_seed(config.seed)
    model, _ = create_model(config.model) if config.init is None else load_start(config.init, config.model)
    system = ObjectiveSystem(model, config.objectives)
    flop, kept = _step(system, _batch(config, model.patch_size, model.text.config.vocab_size))
    trained = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
    parts = {"backbone": model.backbone, "text": model.text, "heads": system.objectives, "teacher": system.teacher}
    each, samples = config.global_batch // config.processes, config.steps * config.global_batch
    width = 2 if config.dtype == "bfloat16" else 4
    return Estimate(
        parameters={name: _count(part) for name, part in parts.items()},
        trained=trained,
        flop_per_sample=flop // _SAMPLES,
        steps=config.steps,
        global_batch=config.global_batch,
        samples=samples,
        flop=flop // _SAMPLES * samples,
        samples_per_rank=each,
        state_bytes=4 * (_COPIES * trained + _count(system) - trained),
        activation_bytes=kept * width * each // _SAMPLES,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _batch(config: TrainConfig, patch: int, vocabulary: int) -> Batch:
    """Noise in the shapes that the loader gives; every box with a phrase of its own, every patch hidden."""
    views, B, size = config.views, _SAMPLES, config.model.image_size
    G, V = (views.global_crops, views.local_crops) if config.uses_crops else (0, 0)
    large, depth = views.global_size or size, views.depth_size or size
    corners = torch.rand(B, views.max_boxes, 2, 2).sort(dim=2).values.flatten(2)
    phrases = B * views.max_boxes
    return Batch(
        pixels=torch.randn(B, 3, size, size),
        text_ids=torch.randint(vocabulary, (B, TEXT_LENGTH)),
        boxes=corners,
        box_valid=torch.ones(B, views.max_boxes, dtype=torch.bool),
        phrase_ids=torch.randint(vocabulary, (phrases, TEXT_LENGTH)),
        phrase_index=torch.arange(phrases).view(B, -1),
        depth=torch.rand(B, depth, depth),
        depth_valid=torch.ones(B, depth, depth, dtype=torch.bool),
        global_crops=torch.randn(G, B, 3, large, large),
        local_crops=torch.randn(V, B, 3, views.local_size, views.local_size),
        masks=torch.ones(G, B, (large // patch) ** 2, dtype=torch.bool),
    )


def _step(system: ObjectiveSystem, batch: Batch) -> tuple[int, int]:
    """Floating-point operations, and numbers kept for the backward pass beside the parameters."""
    known = {parameter.untyped_storage().data_ptr() for parameter in system.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # else a later tensor gets the place of one that is gone

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            alive.append(tensor)
        return tensor

    # The plain attention, whose products the counter sees; a fused one keeps no weights, so they are not counted as kept.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        system(batch)["loss"].backward()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outcome = system(batch)
    del outcome
    return counter.get_total_flops(), sum(kept.values())
