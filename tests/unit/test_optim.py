"""Schedule, decay and the guard against steps that are not finite."""

import itertools
import math

import pytest
import torch
from torch import nn
from training_world import tiny_config

from mtv_core.model.mtv import create_model
from mtv_core.training import optim
from mtv_core.training.config import OptimConfig


def test_schedule_rises_to_the_peak_and_falls_to_the_end() -> None:
    config = OptimConfig(lr=1.0, end_lr=0.1, warmup_steps=10)
    rates = [optim.learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert rates[55] == pytest.approx(0.55, abs=0.02)  # half-way down in the middle
    assert 0.1 < rates[-1] < 0.102


def test_wsd_stays_at_the_peak_and_falls_at_the_end() -> None:
    config = OptimConfig(lr=1.0, end_lr=0.1, warmup_steps=10, schedule="wsd", decay_share=0.25)
    rates = [optim.learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10:76] == [1.0] * 66
    assert rates[76:] == pytest.approx([0.1 + 0.9 * (1 - math.sqrt(done / 25)) for done in range(1, 25)])
    # What a longer run does until then is the same.
    longer = [optim.learning_rate(step, 200, config) for step in range(1, 77)]
    assert longer == rates[:76]


def test_layer_decay_slows_the_first_blocks() -> None:
    model, _ = create_model(tiny_config().model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {names[p]: group["lr_scale"] for group in optim.parameter_groups(model, 0.1, 0.5) for p in group["params"]}
    depth = len(model.backbone.blocks)
    assert set(scales) == set(names.values())
    for name, scale in scales.items():
        if name.startswith("backbone.blocks."):
            assert scale == 0.5 ** (depth - int(name.split(".")[2])), name
        else:
            assert scale == (0.5 ** (depth + 1) if name.startswith(("backbone.patch_embed", "backbone.pos_embed")) else 1.0), name
    optimizer = optim.adamw(model, OptimConfig(layer_decay=0.5))
    optim.set_learning_rate(optimizer, 0.2)
    assert {round(group["lr"] / group["lr_scale"], 12) for group in optimizer.param_groups} == {0.2}


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_runs_learn_at_every_step(steps: int, schedule: str) -> None:
    config = OptimConfig.model_validate({"lr": 1.0, "warmup_steps": 1000, "schedule": schedule})
    rates = [optim.learning_rate(step, steps, config) for step in range(1, steps + 1)]
    assert min(rates) > 0
    assert max(rates) == 1


def test_only_matrices_decay() -> None:
    model, _ = create_model(tiny_config().model)
    model.logit_bias.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, others = ([names[p] for p in group["params"]] for group in optim.parameter_groups(model, 0.1))
    assert "backbone.blocks.0.attn.qkv.weight" in decayed
    assert "backbone.patch_embed.proj.weight" in decayed
    assert {"backbone.pos_embed", "backbone.attn_pool.latent", "backbone.norm.weight", "backbone.norm.bias", "logit_scale"} <= set(others)
    assert any(name.endswith("position_embedding.weight") for name in others)
    assert len(decayed) + len(others) == len(names) - 1  # the frozen bias is in neither


def test_adamw_is_the_textbook_step() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).view(2, 3))
    before = layer.weight.detach().clone()
    config = OptimConfig(lr=0.1, weight_decay=0.5, beta1=0.9, beta2=0.98)
    optimizer = optim.adamw(layer, config)
    layer.weight.grad = torch.full((2, 3), 3.0)
    layer.bias.grad = torch.zeros(2)
    bias = layer.bias.detach().clone()
    optimizer.step()
    # The first step's corrected moments are g and g²: it goes lr against the sign of g, after the decay.
    assert torch.allclose(layer.weight.detach(), before * (1 - 0.1 * 0.5) - 0.1, atol=1e-6)
    assert torch.equal(layer.bias.detach(), bias)


def test_guard_counts_and_stops() -> None:
    guard = optim.Guard(limit=2)
    assert guard.keep(1, 1.0, 1.0)
    assert not guard.keep(2, math.nan, 1.0)
    assert not guard.keep(3, 1.0, math.inf)
    assert guard.keep(4, 1.0, 1.0)
    assert guard.skipped == 2
    resumed = optim.Guard(2, skipped=2, in_a_row=2)
    with pytest.raises(optim.NotFiniteError, match=r"step 5: 3 steps in a row .* lower train.optim.lr"):
        resumed.keep(5, math.nan, math.nan)
