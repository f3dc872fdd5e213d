"""Linear depth: metres for every pixel from frozen patch features.

Shapes: M pictures, B of a batch, K bins, g × g patches, S × S pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mtv_core.evaluation import probe
from mtv_core.evaluation.base import Encoder, ProtocolCard
from mtv_core.evaluation.datasets.base import Dense
from mtv_core.evaluation.statistics import over_seeds

BINS = 64
MIN_DEPTH = 1e-3  # metres
LR, WEIGHT_DECAY, DROPOUT = 1e-1, 1e-4, 0.0


def expected_depth(logits_BKgg: Tensor, max_depth: float) -> Tensor:
    """Depth [B, 1, g, g] in metres: the mean of K even depths, weighted by relu(logit) + 0.1 (AdaBins' linear norm, as in DINOv3)."""
    weight = logits_BKgg.relu() + 0.1
    bins = torch.linspace(MIN_DEPTH, max_depth, logits_BKgg.shape[1])
    return torch.einsum("bkhw,k->bhw", weight, bins).div(weight.sum(1)).unsqueeze(1)


def sig_loss(predicted: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """√(var d + 0.15 mean² d) with d the difference of the logarithms at the valid pixels (AdaBins' scale-invariant loss)."""
    difference = torch.log(predicted[valid] + 1e-3) - torch.log(true[valid] + 1e-3)
    return torch.sqrt(difference.var() + 0.15 * difference.mean() ** 2)


def depth_metrics(predicted_MSS: Tensor, true_MSS: Tensor, valid_MSS: Tensor) -> dict[str, float]:
    """RMSE in metres, AbsRel, and the share of pixels within a factor 1.25: of each picture's valid pixels, then averaged over pictures."""
    keep = valid_MSS.flatten(1).float()
    count = keep.sum(1)
    seen = count > 0
    predicted, true = predicted_MSS.flatten(1).clamp_min(MIN_DEPTH), true_MSS.flatten(1).clamp_min(MIN_DEPTH)

    def mean(values: Tensor) -> Tensor:
        return (values * keep).sum(1)[seen] / count[seen]

    return {
        "rmse": float(mean((predicted - true) ** 2).sqrt().mean()),
        "abs_rel": float(mean((predicted - true).abs() / true).mean()),
        "delta1": float(mean((torch.maximum(predicted / true, true / predicted) < 1.25).float()).mean()),
    }


class LinearDepth:
    """RMSE, AbsRel and δ1 of a linear probe, over seeds."""

    name = "depth_probe"
    compared = {"rmse": False, "abs_rel": False, "delta1": True}  # noqa: RUF012

    def __init__(self, data: Dense, *, seeds: int, steps: int, examples: int = 4, threads: int = 1) -> None:
        self.data, self.seeds, self.steps, self.examples, self.threads = data, seeds, steps, examples, threads
        self.card = ProtocolCard(
            name="linear depth",
            version=1,
            dataset=data.name,
            follows="dinov3 eval/depth: BatchNorm and 1×1 on the last normalised layer, frozen; even bins, SigLoss; "
            "AdamW, weight decay 1e-4, batch 16; each picture's error, then the mean",
            ours=f"{BINS} bins (for 256), {steps} steps at {LR} (for 38 400 at 3e-4), whole pictures, no augmentation or flip averaging, "
            f"trained on every third pixel of every third row; {seeds} seeds, t interval over them",
        )
        self._heads: dict[str, list[probe.LinearHead]] = {}

    def heads(self, encoder: Encoder) -> list[probe.LinearHead]:
        """One trained probe a seed; trained once a model."""
        if encoder.name not in self._heads:
            features = encoder.patches(self.data.train.pictures)
            depth, valid = (probe.thin(torch.from_numpy(maps)) for maps in (self.data.train.depth, self.data.train.valid))

            def loss(chosen: Tensor, logits: Tensor) -> Tensor:
                predicted = probe.enlarge(expected_depth(logits, self.data.max_depth), depth.shape[-1])[:, 0]
                return sig_loss(predicted, depth[chosen], valid[chosen])

            def train_one(seed: int) -> probe.LinearHead:
                return probe.train(features, BINS, loss, steps=self.steps, lr=LR, weight_decay=WEIGHT_DECAY, seed=seed, dropout=DROPOUT)

            self._heads[encoder.name] = probe.train_seeds(train_one, self.seeds, self.threads)
        return self._heads[encoder.name]

    def predict(self, head: probe.LinearHead, features_MggD: Tensor) -> Tensor:
        """float32 [M, S, S], metres."""
        side = self.data.val.depth.shape[-1]
        with torch.inference_mode():
            parts = [probe.enlarge(expected_depth(head(part), self.data.max_depth), side)[:, 0] for part in features_MggD.split(32)]
        return torch.cat(parts)

    def __call__(self, encoder: Encoder) -> Iterator[tuple[str, float]]:
        """Mean over seeds, deviation and interval."""
        features = encoder.patches(self.data.val.pictures)
        true, valid = torch.from_numpy(self.data.val.depth), torch.from_numpy(self.data.val.valid)
        measured = [depth_metrics(self.predict(head, features), true, valid) for head in self.heads(encoder)]
        for metric in measured[0]:
            estimate = over_seeds([of_seed[metric] for of_seed in measured])
            yield metric, estimate.mean
            yield f"{metric}_std", estimate.std
            yield f"{metric}_ci95", estimate.ci

    def figures(self, encoder: Encoder, folder: Path) -> Iterator[tuple[str, Path]]:
        """Predicted beside true depth of the first pictures, by the probe of seed 0."""
        from mtv_core.evaluation import plots

        val, n = self.data.val, self.examples
        predicted = self.predict(self.heads(encoder)[0], encoder.patches(val.pictures)[:n]).numpy()
        path = folder / "depth_probe.png"
        yield "depth_probe", plots.depths(val.pictures[:n], predicted, val.depth[:n], val.valid[:n], path)
