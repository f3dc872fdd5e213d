"""What a training's log says when it goes wrong, and that it says nothing when it does not."""

from __future__ import annotations

from typing import Any

import objectives_cases as cases
import pytest
import torch

from mtv_core.objectives.config import DistillationConfig, ObjectivesConfig
from mtv_core.objectives.system import ObjectiveSystem
from mtv_core.training import alarms
from mtv_core.training.config import AlarmConfig

ALONE: dict[str, Any] = {"contrastive": None, "masked": None, "grounding": None, "depth": None}


def said(row: dict[str, Any], before: list[dict[str, Any]], objectives: ObjectivesConfig | None = None) -> list[str]:
    return alarms.look(row, before, objectives or cases.config(), AlarmConfig())


def test_a_loss_that_jumps() -> None:
    before = [{"step": step, "loss/depth": 1.0 + 0.1 * (step % 2), "loss/contrastive": -3.0} for step in range(10)]
    assert said({"loss/depth": 2.0, "loss/contrastive": -2.0}, before) == []
    [alarm] = said({"loss/depth": 2.3, "loss/contrastive": -3.0}, before)
    assert alarm.startswith("loss spike: depth is 2.3, 2 times the 1.05 of the last 10 rows")
    assert said({"loss/depth": 2.3}, before[:4]) == []  # too few to tell
    assert said({"loss/masked": 50.0}, before) == []  # it has only begun


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_features_that_are_all_the_same(who: str) -> None:
    healthy = {"distillation/teacher_spread": 0.8, "distillation/student_spread": 0.5}
    assert said(healthy, []) == []
    [alarm] = said({**healthy, f"distillation/{who}_spread": 0.02}, [])
    assert f"collapse: {who}'s features" in alarm


def train(temperature: float, steps: int) -> list[str]:
    """What is said after some steps of self-distillation alone, on batches of 8."""
    head = cases.HEAD
    objectives = ObjectivesConfig(**ALONE, distillation=DistillationConfig(head=head, teacher_temperature=temperature))
    system = ObjectiveSystem(cases.model(), objectives).double()
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=1e-3)
    for step in range(1, steps + 1):
        out = system(cases.batch(8, seed=step))
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        system.update_teacher(step)
    row = {name: value.item() for name, value in out["metrics"].items()}
    return said(row, [], objectives)


def test_a_collapse_that_is_provoked_is_named() -> None:
    assert train(0.07, 1) == []
    [alarm] = train(2.0, 30)
    assert alarm.startswith("collapse: distillation's teacher says ")
    assert alarm.endswith("lower train.objectives.distillation.teacher_temperature")
