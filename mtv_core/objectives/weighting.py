"""How losses become one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def static(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight · loss."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
