"""What a training takes, against counts made in other ways."""

from __future__ import annotations

import pytest
from training_world import tiny_config
from typer.testing import CliRunner

from flows.cli import app
from mtv_core.model.config import ModelConfig, TextConfig
from mtv_core.model.mtv import create_model
from mtv_core.objectives.config import ObjectivesConfig
from mtv_core.objectives.system import ObjectiveSystem
from mtv_core.training.config import TrainConfig
from mtv_core.training.estimate import estimate

CONTRAST = ObjectivesConfig.model_validate({"distillation": None, "masked": None, "grounding": None, "depth": None})


def test_parameters_and_samples_are_those_of_the_run() -> None:
    config = tiny_config()
    found = estimate(config)
    system = ObjectiveSystem(create_model(config.model)[0], config.objectives)
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    teacher = sum(p.numel() for p in system.teacher.parameters())
    assert found.trained == trained
    assert found.parameters["teacher"] == teacher
    assert found.state_bytes >= 4 * (4 * trained + teacher)
    assert found.samples == config.steps * config.global_batch
    assert found.flop == found.flop_per_sample * found.samples


def test_work_is_two_operations_a_weight_and_token_three_times() -> None:
    """Matrix products of the two towers: 2 × weights × tokens forward, twice that backward."""
    model = ModelConfig(
        backbone_args={"patch_size": 16, "embed_dim": 192, "depth": 4, "num_heads": 3},
        image_size=64,
        text=TextConfig(width=192, depth=4, heads=3),
    )
    found = estimate(TrainConfig(model=model, objectives=CONTRAST, processes=1))
    made, _ = create_model(model)
    weights = {
        tower: sum(p.numel() for name, p in made.named_parameters() if name.startswith(tower) and p.ndim == 2 and "embedding" not in name)
        for tower in ("backbone.blocks", "text")
    }
    expected = 6 * (weights["backbone.blocks"] * 16 + weights["text"] * 64)
    assert expected < found.flop_per_sample < 1.3 * expected  # attention, patches and pooling come on top


def test_memory_grows_with_the_samples_of_a_rank_and_shrinks_with_the_dtype() -> None:
    config = tiny_config()
    base = estimate(config)
    double = estimate(config.model_copy(update={"global_batch": 2 * config.global_batch}))
    half = estimate(config.model_copy(update={"dtype": "bfloat16"}))
    assert double.activation_bytes == pytest.approx(2 * base.activation_bytes, rel=1e-6)
    assert half.activation_bytes == pytest.approx(base.activation_bytes / 2, rel=1e-6)
    alone = estimate(config.model_copy(update={"objectives": CONTRAST}))
    assert alone.flop_per_sample < base.flop_per_sample
    assert alone.activation_bytes < base.activation_bytes
    assert alone.parameters["teacher"] == 0


def test_the_command_needs_no_table() -> None:
    result = CliRunner().invoke(app, ["train", "--dry-run", "-t", "/nowhere/at/all"])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines() if line[:1].isalpha()] == ["parameters", "steps", "work", "memory"]
