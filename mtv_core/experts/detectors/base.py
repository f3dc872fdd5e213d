"""What a detector is: pictures and the phrases asked of each → boxes in the picture's own coordinates, before anything is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Every box a detector proposes in one picture, with the phrase that fits it best. On the CPU, float32."""

    boxes: Tensor  # [N, 4] xyxy, normalised by the picture's own width and height, clipped to it
    scores: Tensor  # [N] 0..1
    phrases: Tensor  # [N] index into the phrases asked


class Detector(Protocol):
    """One architecture. Its constructor takes (config, weights, device, dtype) and loads the model."""

    processor: Any
    model: Any

    def __call__(self, images: Sequence[Image.Image], phrases_of: Sequence[Sequence[str]]) -> list[Candidates]:
        """What is proposed for each RGB picture when its own phrases, one at least, are asked. Under inference mode.

        Raises whatever the model raises.
        """
        ...
