"""A trained model as the protocols see it: frozen, in batches, every picture once. Shapes as in `base`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mtv_core.model.mtv import MTV
from mtv_core.model.preprocess import pixel_values, token_ids


class ModelEncoder:
    """Features of an `MTV`, kept in memory by the content of what they are of."""

    def __init__(self, name: str, model: MTV, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64, threads: int = 1) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.threads = threads  # batches that are computed at the same time
        self._kept: dict[tuple[str, str], Tensor] = {}

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        """uint8 [M, S, S, 3] → unit vectors [M, D]."""
        return self._remember(
            "images", pictures, lambda: nn.functional.normalize(self._pictures(self.model.encode_image, pictures), dim=-1)
        )

    def texts(self, texts: Sequence[str]) -> Tensor:
        """T texts → unit vectors [T, D]."""

        def encode(part: slice) -> Tensor:
            return self.model.encode_text(token_ids(self.tokenizer, texts[part]))

        return nn.functional.normalize(self._batched(encode, len(texts)), dim=-1)

    def patches(self, pictures: NDArray[np.uint8]) -> Tensor:
        """uint8 [M, S, S, 3] → features of the last, normalised layer [M, g, g, D]."""
        return self._remember("patches", pictures, lambda: self._pictures(self._grid, pictures))

    def _grid(self, pixels: Tensor) -> Tensor:
        features_BND = self.model.patch_features(pixels)
        assert isinstance(features_BND, Tensor)
        side = math.isqrt(features_BND.shape[1])
        return features_BND.reshape(len(features_BND), side, side, -1)

    def _pictures(self, function: Callable[[Tensor], Tensor], pictures: NDArray[np.uint8]) -> Tensor:
        size = self.model.config.image_size
        return self._batched(lambda part: function(pixel_values(list(pictures[part]), size)), len(pictures))

    def _batched(self, function: Callable[[slice], Tensor], count: int) -> Tensor:
        def run(start: int) -> Tensor:
            with torch.inference_mode():  # is of the thread that enters it
                return function(slice(start, start + self.batch_size))

        with ThreadPoolExecutor(self.threads) as pool:
            return torch.cat([part.clone() for part in pool.map(run, range(0, count, self.batch_size))])  # cloned: probes train on it

    def _remember(self, kind: str, pictures: NDArray[np.uint8], compute: Callable[[], Tensor]) -> Tensor:
        key = (kind, hashlib.sha256(np.ascontiguousarray(pictures).data).hexdigest())
        if key not in self._kept:
            found = compute()
            if not torch.isfinite(found).all():
                raise ValueError(
                    f"the {self.name.rstrip('/')} model gives values that are no numbers: its training diverged; lower train.optim.lr"
                )
            self._kept[key] = found
        return self._kept[key]
