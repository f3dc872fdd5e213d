"""Linear segmentation: a class for every pixel from frozen patch features. Shapes: M pictures, K classes, g × g patches, S × S pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mtv_core.evaluation import probe
from mtv_core.evaluation.base import Encoder, ProtocolCard
from mtv_core.evaluation.datasets.base import Dense
from mtv_core.evaluation.statistics import over_seeds

LR, WEIGHT_DECAY, DROPOUT = 1e-2, 1e-3, 0.1


def confusion(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """Counts [K true, K predicted] over all pixels of two maps of one shape."""
    index = true.flatten().long() * classes + predicted.flatten().long()
    return torch.bincount(index, minlength=classes * classes).reshape(classes, classes)


def mean_iou(counts_KK: Tensor) -> float:
    """Intersection over union, averaged over the classes that are in the truth."""
    hits = counts_KK.diagonal().double()
    union = (counts_KK.sum(0) + counts_KK.sum(1)).double() - hits
    present = counts_KK.sum(1) > 0
    return float((hits[present] / union[present]).mean())


class LinearSegmentation:
    """mIoU and pixel accuracy of a linear probe, over seeds."""

    name = "segmentation_probe"
    compared = {"miou": True, "accuracy": True}  # noqa: RUF012

    def __init__(self, data: Dense, *, seeds: int, steps: int, examples: int = 4, threads: int = 1) -> None:
        self.data, self.seeds, self.steps, self.examples, self.threads = data, seeds, steps, examples, threads
        self.card = ProtocolCard(
            name="linear segmentation",
            version=1,
            dataset=data.name,
            follows="dinov3 eval/segmentation: BatchNorm, dropout 0.1 and 1×1 on the last normalised layer, frozen; "
            "AdamW, weight decay 1e-3, batch 16",
            ours=f"{steps} steps at {LR} (for 40 000 at 1e-3), whole pictures, no augmentation, no class ignored, "
            f"trained on every third pixel of every third row; {seeds} seeds, t interval over them",
        )
        self._heads: dict[str, list[probe.LinearHead]] = {}

    def heads(self, encoder: Encoder) -> list[probe.LinearHead]:
        """One trained probe a seed; trained once a model."""
        if encoder.name not in self._heads:
            features = encoder.patches(self.data.train.pictures)
            targets = probe.thin(torch.from_numpy(self.data.train.segments)).long()

            def loss(chosen: Tensor, logits: Tensor) -> Tensor:
                return nn.functional.cross_entropy(probe.enlarge(logits, targets.shape[-1]), targets[chosen])

            def train_one(seed: int) -> probe.LinearHead:
                return probe.train(
                    features, len(self.data.classes), loss, steps=self.steps, lr=LR, weight_decay=WEIGHT_DECAY, seed=seed, dropout=DROPOUT
                )

            self._heads[encoder.name] = probe.train_seeds(train_one, self.seeds, self.threads)
        return self._heads[encoder.name]

    def predict(self, head: probe.LinearHead, features_MggD: Tensor) -> Tensor:
        """uint8 [M, S, S]: the class of every pixel."""
        side = self.data.val.segments.shape[-1]
        with torch.inference_mode():
            parts = [probe.enlarge(head(part), side).argmax(1).to(torch.uint8) for part in features_MggD.split(32)]
        return torch.cat(parts)

    def __call__(self, encoder: Encoder) -> Iterator[tuple[str, float]]:
        """Mean over seeds, deviation and interval."""
        true = torch.from_numpy(self.data.val.segments)
        features = encoder.patches(self.data.val.pictures)
        counts = [confusion(self.predict(head, features), true, len(self.data.classes)) for head in self.heads(encoder)]
        measured = {
            "miou": [mean_iou(of_seed) for of_seed in counts],
            "accuracy": [float(of_seed.diagonal().sum() / of_seed.sum()) for of_seed in counts],
        }
        for metric, values in measured.items():
            estimate = over_seeds(values)
            yield metric, estimate.mean
            yield f"{metric}_std", estimate.std
            yield f"{metric}_ci95", estimate.ci

    def figures(self, encoder: Encoder, folder: Path) -> Iterator[tuple[str, Path]]:
        """Predicted beside true segments of the first pictures, by the probe of seed 0."""
        from mtv_core.evaluation import plots

        val, n = self.data.val, self.examples
        predicted = self.predict(self.heads(encoder)[0], encoder.patches(val.pictures)[:n]).numpy()
        path = folder / "segmentation_probe.png"
        yield "segmentation_probe", plots.segments(val.pictures[:n], predicted, val.segments[:n], self.data.classes, path)
