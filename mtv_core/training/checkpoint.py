"""Checkpoints: `checkpoints/step-000000500/{weights,optimizer}.safetensors, state.json`. Nothing is pickled, so loading runs no code.

A checkpoint is written to `checkpoints/partial`, flushed to disk, and renamed. Killed before the rename it leaves a `partial` that the next
one replaces; after it, a whole checkpoint. There is no random state in it: everything random follows from (seed, step or sample).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mtv_core.faults import fault_point

FORMAT = 1
_log = logging.getLogger(__name__)


class TrainState(BaseModel, extra="forbid"):
    """Where a training stands, beside its tensors."""

    format: int = FORMAT
    step: int = Field(0, description="steps done; sample number step × global batch is the next one")
    fingerprint: dict[str, Any] = Field(
        default_factory=dict, description="what a run that goes on from here must have in common with this one"
    )
    skipped: int = Field(0, description="steps left out because they were not finite")
    skipped_in_a_row: int = 0
    window: dict[str, list[float]] = Field(default_factory=dict, description="sums and counts of the metrics window under way")


def save(folder: Path, state: TrainState, system: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Path:
    """Write one checkpoint and drop all but the newest `keep`."""
    partial, final = folder / "partial", folder / f"step-{state.step:09d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_cpu(tensors(system)), partial / "weights.safetensors")
    save_file(_cpu(_moments(system, optimizer)), partial / "optimizer.safetensors")
    (partial / "state.json").write_text(state.model_dump_json(indent=1))
    for file in partial.iterdir():
        flush(file)
    flush(partial)
    fault_point("train.checkpoint_written")
    if final.exists():  # of an attempt that was stopped at this very step; it holds the same
        shutil.rmtree(final)
    partial.rename(final)
    flush(folder)
    fault_point("train.checkpoint_published")
    for old in list(_found(folder))[keep:]:
        shutil.rmtree(old)
    return final


def load(folder: Path, system: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: dict[str, Any]) -> TrainState | None:
    """Put the newest whole checkpoint of a folder into `system` and `optimizer`; None when there is none.

    One that cannot be read (a disk that lost what was flushed) is passed over with a warning for the one before it.

    Args:
        folder: `checkpoints`, or one checkpoint in it.
        system: of the same architecture.
        optimizer: over the same parameters.
        fingerprint: of the run that wants to go on.

    Raises:
        ValueError: the checkpoint is of another run.
    """
    for path in [folder] if (folder / "state.json").is_file() else _found(folder):
        try:
            state = TrainState.model_validate_json((path / "state.json").read_text())
            weights, moments = load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors")
        except (OSError, ValidationError, SafetensorError) as error:
            _log.warning("the checkpoint %s cannot be read (%s); going on from the one before it", path, error)
            continue
        if different := [key for key in {*fingerprint, *state.fingerprint} if fingerprint.get(key) != state.fingerprint.get(key)]:
            raise ValueError(
                f"{path} is a checkpoint of another training: {', '.join(sorted(different))} differ; train in a new folder, "
                "or start from its weights with train.init"
            )
        _restore(system, optimizer, weights, moments)
        return state
    return None


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Its state by name, each tensor once even where modules share it."""
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: own[name].detach() for name in module.state_dict() if name in own}


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, last a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _found(folder: Path) -> Iterator[Path]:
    """Published checkpoints, newest first."""
    yield from sorted(folder.glob("step-*"), reverse=True)


def _cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


def _moments(system: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`<parameter>:<moment>`. Parameters that have not been stepped yet have none."""
    return {
        f"{name}:{key}": value for name, parameter in system.named_parameters() for key, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def _restore(
    system: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, torch.Tensor], moments: dict[str, torch.Tensor]
) -> None:
    own = tensors(system)
    if own.keys() != weights.keys():
        raise ValueError(
            f"the checkpoint's tensors are not this model's: {sorted(own.keys() ^ weights.keys())[:3]}, …; train in a new folder"
        )
    for name, tensor in own.items():
        tensor.copy_(weights[name])
    parameters = dict(system.named_parameters())
    optimizer.state.clear()
    for name, value in moments.items():
        parameter, _, key = name.rpartition(":")
        target = parameters[parameter]
        # The count of steps stays where AdamW put it, on the device of its parameter when fused.
        optimizer.state[target][key] = value.to(target.device)
