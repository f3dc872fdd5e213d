"""Zero-shot classification: the class whose averaged prompt is nearest to the picture.

Shapes: M pictures, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mtv_core.evaluation.base import Encoder, ProtocolCard
from mtv_core.evaluation.datasets.base import Classification
from mtv_core.evaluation.statistics import wilson


def class_vectors(encoder: Encoder, prompts: tuple[tuple[str, ...], ...]) -> Tensor:
    """Unit vectors [C, D]: the mean of the unit vectors of a class's prompts, normalised again."""
    flat = encoder.texts([prompt for of_class in prompts for prompt in of_class])
    parts = flat.split([len(of_class) for of_class in prompts])
    return nn.functional.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


def restricted(similarity_MC: Tensor, labels_M: Tensor, given_C: Tensor) -> Tensor:
    """Similarities with every class that differs from the true one in a facet put out of the running, by −∞."""
    return similarity_MC.masked_fill(given_C[None, :] != given_C[labels_M][:, None], -torch.inf)


class ZeroShot:
    """Top-1 over all classes, and each facet's with another given: 'shape given colour' is among the classes of the right colour."""

    name = "zero_shot"

    def __init__(self, data: Classification) -> None:
        self.data = data
        self.card = ProtocolCard(
            name="zero-shot classification",
            version=1,
            dataset=data.name,
            follows="CLIP_benchmark zeroshot_classification: mean of the prompts' embeddings, cosine, top-1",
            ours="classes and prompts are the data set's; also restricted to the classes that share a facet; Wilson interval over pictures",
        )
        self.compared = {"top1": True} | {f"{asked}_given_{given}": True for asked, given in self._pairs()}

    def _pairs(self) -> list[tuple[str, str]]:
        return [(asked, given) for asked in self.data.facets for given in self.data.facets if asked != given]

    def similarity(self, encoder: Encoder) -> Tensor:
        """Cosine of every picture with every class, [M, C]."""
        return encoder.images(self.data.pictures) @ class_vectors(encoder, self.data.prompts).T

    def __call__(self, encoder: Encoder) -> Iterator[tuple[str, float]]:
        """Shares of pictures that are classified right, with what guessing gives."""
        similarity = self.similarity(encoder)
        labels = torch.from_numpy(self.data.labels)
        yield from self._accuracy("top1", similarity, labels)
        yield "top5", float((similarity.topk(min(5, similarity.shape[1]), dim=1).indices == labels[:, None]).any(1).float().mean())
        for asked, given in self._pairs():
            kept = restricted(similarity, labels, torch.from_numpy(self.data.facets[given].of_class))
            yield from self._accuracy(f"{asked}_given_{given}", kept, labels)

    def _accuracy(self, metric: str, similarity: Tensor, labels: Tensor) -> Iterator[tuple[str, float]]:
        share = float((similarity.argmax(1) == labels).float().mean())
        chance = float((1.0 / torch.isfinite(similarity).sum(1)).mean())
        yield metric, share
        yield f"{metric}_ci95", wilson(share, len(labels))
        yield ("chance" if metric == "top1" else f"{metric}_chance"), chance
        yield f"{metric}_times_chance", share / chance

    def figures(self, encoder: Encoder, folder: Path) -> Iterator[tuple[str, Path]]:
        """Which facet is taken for which, the class being chosen among all."""
        from mtv_core.evaluation import plots

        predicted = self.similarity(encoder).argmax(1).numpy()
        panels = []
        for name, facet in self.data.facets.items():
            counts = torch.zeros(len(facet.values), len(facet.values), dtype=torch.long)
            counts.index_put_(
                (torch.from_numpy(facet.of_class[self.data.labels]), torch.from_numpy(facet.of_class[predicted])),
                torch.ones(len(predicted), dtype=torch.long),
                accumulate=True,
            )
            panels.append((name, facet.values, counts.numpy()))
        yield "zero_shot_confusion", plots.confusion(panels, folder / "zero_shot_confusion.png")
