"""A checkpoint holds all that a run needs to go on bit by bit, is whole or not there, and is of one training; rows of metrics match it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mtv_core.training import checkpoint, metrics
from mtv_core.training.checkpoint import TrainState

FINGERPRINT = {"version": 3, "config.seed": 0}


class Shared(nn.Module):
    """Two names for one layer, a frozen one, and a buffer: what a system of objectives has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("total", torch.zeros(()))


def steps(module: Shared, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        module.frozen(module.again(torch.randn(8, 4))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        module.total += seed


def fresh(seed: int) -> tuple[Shared, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = Shared()
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1, fused=True)


def test_going_on_is_bit_exact(tmp_path: Path) -> None:
    module, optimizer = fresh(0)
    steps(module, optimizer, range(5))
    state = TrainState(step=5, fingerprint=FINGERPRINT, skipped=1, window={"loss": [0.1 + 0.2, 2]})
    checkpoint.save(tmp_path, state, module, optimizer, keep=1)
    steps(module, optimizer, range(5, 9))
    other, its = fresh(1)
    assert checkpoint.load(tmp_path, other, its, FINGERPRINT) == state
    steps(other, its, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_newest_are_kept_and_none_is_none(tmp_path: Path) -> None:
    module, optimizer = fresh(0)
    assert checkpoint.load(tmp_path, module, optimizer, FINGERPRINT) is None
    for step in (1, 20, 300):
        checkpoint.save(tmp_path, TrainState(step=step, fingerprint=FINGERPRINT), module, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000020", "step-000000300"]


def test_a_damaged_one_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, optimizer = fresh(0)
    for step in (1, 2):
        checkpoint.save(tmp_path, TrainState(step=step, fingerprint=FINGERPRINT), module, optimizer, keep=2)
    weights = tmp_path / "step-000000002" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    state = checkpoint.load(tmp_path, module, optimizer, FINGERPRINT)
    assert state is not None
    assert state.step == 1
    assert "cannot be read" in caplog.text


def test_another_training_is_refused(tmp_path: Path) -> None:
    module, optimizer = fresh(0)
    checkpoint.save(tmp_path, TrainState(step=1, fingerprint=FINGERPRINT), module, optimizer, keep=1)
    with pytest.raises(ValueError, match=r"another training: version differ"):
        checkpoint.load(tmp_path, module, optimizer, FINGERPRINT | {"version": 4})
    with pytest.raises(ValueError, match="not this model's"):
        checkpoint.load(tmp_path, nn.Linear(2, 2), optimizer, FINGERPRINT)


def test_rows_after_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    for step in range(10, 60, 10):
        metrics.append(tmp_path, {"step": step, "loss": step / 3})
    with (tmp_path / metrics.NAME).open("a") as file:
        file.write('{"step": 60, "lo')
    metrics.keep_until(tmp_path, 30)
    assert [row["step"] for row in metrics.read(tmp_path)] == [10, 20, 30]
    (tmp_path / "other").mkdir()
    metrics.keep_until(tmp_path / "other", 20, source=tmp_path)
    assert metrics.read(tmp_path / "other") == [{"step": 10, "loss": 10 / 3}, {"step": 20, "loss": 20 / 3}]


def test_a_reader_sees_each_step_once_though_the_file_is_replaced(tmp_path: Path) -> None:
    tail = metrics.Tail(tmp_path)
    assert tail.new() == []
    got = []
    for step in (1, 2, 3):
        metrics.append(tmp_path, {"step": step})
    with (tmp_path / metrics.NAME).open("a") as file:
        file.write('{"step"')
        file.flush()
        got += tail.new()
    metrics.keep_until(tmp_path, 1)
    for step in (2, 3, 4):
        metrics.append(tmp_path, {"step": step})
        got += tail.new()
    assert [row["step"] for row in got] == [1, 2, 3, 4]


def test_window_goes_through_json_unchanged() -> None:
    window = metrics.Window()
    for value in (0.1, 0.2, 0.7):
        window.add({"loss": value})
    resumed = metrics.Window(json.loads(json.dumps(window.sums)))
    window.add({"loss": 1e-9})
    resumed.add({"loss": 1e-9})
    assert window.means() == resumed.means()
    assert window.sums == {}
