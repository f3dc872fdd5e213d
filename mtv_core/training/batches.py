"""Decoded rows → one rank's `Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mtv_core.model.preprocess import MEAN, STD, token_ids
from mtv_core.objectives.base import Batch
from mtv_core.objectives.config import ObjectivesConfig
from mtv_core.objectives.masks import draw_mask
from mtv_core.store.loader import Row
from mtv_core.training import augment
from mtv_core.training.augment import Crop
from mtv_core.training.config import TrainConfig

# Which expert's labels an objective learns from.
EXPERTS = {"grounding": "detection", "depth": "depth"}


def experts_of(objectives: ObjectivesConfig) -> list[str]:
    """The experts whose labels are read."""
    return [EXPERTS[name] for name in objectives.enabled if name in EXPERTS]


class BatchMaker:
    """Crops, labels and tokens of a list of rows. What is random about a sample depends on (seed, epoch, uid) alone.

    Args:
        config: of the training.
        tokenizer: of the text tower.
        patch_size: of the backbone, px.
    """

    def __init__(self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, patch_size: int) -> None:
        self.config, self.views = config, config.views
        self.tokenizer = tokenizer
        self.size = config.model.image_size
        self.large = self.views.global_size or self.size
        self.grid = self.large // patch_size
        self.depth_size = (self.views.depth_size or self.size) if config.objectives.depth is not None else 1
        # Phrases come again and again.
        self._phrase_ids = lru_cache(maxsize=2**16)(lambda phrase: token_ids(tokenizer, [phrase])[0])

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One batch of these rows, in this order."""
        views, B, K, size = self.views, len(rows), self.views.max_boxes, self.size
        G, V = (views.global_crops, views.local_crops) if self.config.uses_crops else (0, 0)
        pixels = torch.empty(B, 3, size, size, dtype=torch.uint8)
        large = torch.empty(G, B, 3, self.large, self.large, dtype=torch.uint8)
        small = torch.empty(V, B, 3, views.local_size, views.local_size, dtype=torch.uint8)
        colours = np.empty((B, G + V, 8), np.float32)
        masks = np.zeros((G, B, self.grid**2), bool)
        depth = np.full((B, self.depth_size, self.depth_size), np.nan, np.float32)
        boxes, box_valid = np.zeros((B, K, 4), np.float32), np.zeros((B, K), bool)
        phrase_index = np.zeros((B, K), np.int64)
        phrases: dict[str, int] = {}
        captions = []
        for b, row in enumerate(rows):
            rng = augment.generator(self.config.seed, row.epoch, row.uid)
            height, width = row.image.shape[1:]
            crop = augment.clean_crop(rng, width, height, views)
            pixels[b] = augment.clean_picture(row.image, crop, size)
            captions.append(row.captions[rng.integers(len(row.captions))])
            for g in range(G):
                large[g, b] = augment.crop_picture(
                    row.image, augment.random_crop(rng, width, height, views.global_scale, views), self.large
                )
                masks[g, b] = draw_mask(rng, self.grid, self.config.objectives.masked)
            for v in range(V):
                local = augment.random_crop(rng, width, height, views.local_scale, views)
                small[v, b] = augment.crop_picture(row.image, local, views.local_size)
            colours[b] = augment.draw_colours(rng, G + V)
            if row.depth is not None and self.config.objectives.depth is not None:
                depth[b] = augment.move_depth(row.depth, crop, width, height, self.depth_size)
            if row.boxes is not None and len(row.boxes) and self.config.objectives.grounding is not None:
                kept, names = self._boxes(row, crop, width, height)
                boxes[b, : len(kept)], box_valid[b, : len(kept)] = kept, True
                phrase_index[b, : len(kept)] = [phrases.setdefault(name, len(phrases)) for name in names]
        valid = np.isfinite(depth)
        drawn = torch.from_numpy(colours).transpose(0, 1)
        return Batch(
            # Divided as in `preprocess.pixel_values`, so that a clean view is the evaluations' bit by bit.
            pixels=(pixels.float() / 255.0 - MEAN) / STD,
            text_ids=token_ids(self.tokenizer, captions),
            boxes=torch.from_numpy(boxes),
            box_valid=torch.from_numpy(box_valid),
            phrase_ids=torch.stack([self._phrase_ids(phrase) for phrase in phrases or [""]]),
            phrase_index=torch.from_numpy(phrase_index),
            depth=torch.from_numpy(np.where(valid, depth, np.float32(0))),
            depth_valid=torch.from_numpy(valid),
            global_crops=augment.recolour(large.flatten(0, 1), drawn[:G].flatten(0, 1), views).view(large.shape),
            local_crops=augment.recolour(small.flatten(0, 1), drawn[G:].flatten(0, 1), views).view(small.shape),
            masks=torch.from_numpy(masks),
        )

    def _boxes(self, row: Row, crop: Crop, width: int, height: int) -> tuple[augment.Floats, list[str]]:
        """The best scored boxes that are still in the crop, and their phrases."""
        assert row.boxes is not None
        assert row.scores is not None
        moved, stays = augment.move_boxes(row.boxes, crop, width, height, self.views.min_box_kept)
        best = [int(k) for k in np.argsort(-row.scores, kind="stable") if stays[k]][: self.views.max_boxes]
        return moved[best], [row.phrases[k] for k in best]
