"""Which patches the student does not see. NumPy alone: the loader draws them, one generator a sample."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mtv_core.objectives.config import MaskedConfig


def draw_mask(rng: np.random.Generator, grid: int, config: MaskedConfig | None) -> NDArray[np.bool_]:
    """Mask of one crop, bool [grid × grid] row by row: rectangles until the drawn share is hidden (BEiT, as DINOv2 uses it).

    Nothing is hidden with probability 1 − `config.probability`, or when masked prediction is off (None).
    """
    mask = np.zeros((grid, grid), dtype=bool)
    if config is None or rng.random() >= config.probability:
        return mask.reshape(-1)
    wanted = max(1, round(grid * grid * rng.uniform(config.ratio_low, config.ratio_high)))
    while (missing := wanted - int(mask.sum())) > 0:
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        area = rng.uniform(0.3, 1.0) * missing
        height = min(grid, max(1, round(math.sqrt(area * aspect))))
        width = min(grid, max(1, round(math.sqrt(area / aspect))))
        top, left = int(rng.integers(grid - height + 1)), int(rng.integers(grid - width + 1))
        block = mask[top : top + height, left : left + width]
        if block.size - block.sum() <= missing:
            block[...] = True
        else:  # the rectangle is larger than what is left: single patches of it
            free = np.argwhere(~block)
            for row, column in free[rng.permutation(len(free))[:missing]]:
                block[row, column] = True
    return mask.reshape(-1)
