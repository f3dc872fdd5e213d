"""Retrieval: texts of a picture, and the picture of a text, among all of the set. Shapes: M pictures, T texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtv_core.evaluation.base import Encoder, ProtocolCard
from mtv_core.evaluation.datasets.base import Retrieval as RetrievalData
from mtv_core.evaluation.statistics import wilson

DEPTHS = (1, 5, 10)


def ranks(similarity_QK: Tensor, right_QK: Tensor) -> Tensor:
    """Place, from 0, of each query's best right candidate: how many wrong ones are at least as similar.

    Ties count against the model, so one that gives every candidate the same similarity finds nothing.
    """
    best = similarity_QK.masked_fill(~right_QK, -torch.inf).amax(1, keepdim=True)
    return ((similarity_QK >= best) & ~right_QK).sum(1)


class Retrieval:
    """R@1, 5 and 10 in both directions."""

    name = "retrieval"
    compared = {"i2t_r1": True, "t2i_r1": True}  # noqa: RUF012

    def __init__(self, data: RetrievalData, examples: int = 4) -> None:
        self.data = data
        self.examples = examples
        self.card = ProtocolCard(
            name="image-text retrieval",
            version=1,
            dataset=data.name,
            follows="CLIP_benchmark zeroshot_retrieval: cosine, R@K, a hit is any of a picture's texts",
            ours="ties count as misses; Wilson interval over queries",
        )
        self._right = torch.from_numpy(data.picture_of_text)[None, :] == torch.arange(len(data.pictures))[:, None]  # [M, T]

    def similarity(self, encoder: Encoder) -> Tensor:
        """Cosine of every picture with every text, [M, T]."""
        return encoder.images(self.data.pictures) @ encoder.texts(self.data.texts).T

    def __call__(self, encoder: Encoder) -> Iterator[tuple[str, float]]:
        """Recalls, and what guessing gives for R@1."""
        similarity = self.similarity(encoder)
        for direction, scores, right in (("i2t", similarity, self._right), ("t2i", similarity.T, self._right.T)):
            places = ranks(scores, right)
            for depth in DEPTHS:
                share = float((places < depth).float().mean())
                yield f"{direction}_r{depth}", share
                yield f"{direction}_r{depth}_ci95", wilson(share, len(places))
        yield "chance_r1", float(self._right.float().mean())  # the same in both directions

    def figures(self, encoder: Encoder, folder: Path) -> Iterator[tuple[str, Path]]:
        """The three pictures found first for a few texts, evenly taken from the set."""
        from mtv_core.evaluation import plots

        similarity = self.similarity(encoder).T
        shown = np.linspace(0, len(self.data.texts) - 1, min(self.examples, len(self.data.texts))).astype(int)
        rows = []
        for text in shown.tolist():
            found = similarity[text].topk(min(3, similarity.shape[1])).indices.tolist()
            right = int(self.data.picture_of_text[text])
            rows.append(
                (self.data.texts[text], [(self.data.pictures[index], index == right) for index in found], self.data.pictures[right])
            )
        yield "retrieval", plots.retrieved(rows, folder / "retrieval.png")
