"""What protocols are measured on. Shapes: M pictures of side S, C classes, T texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Facet:
    """A property that classes share, 'colour' say: its values, and which value each class has."""

    values: tuple[str, ...]
    of_class: NDArray[np.int64]  # [C] index into values


@dataclass(frozen=True)
class Classification:
    """Pictures of one class each."""

    name: str
    pictures: NDArray[np.uint8]  # [M, S, S, 3] sRGB
    labels: NDArray[np.int64]  # [M] index of the class
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]  # of each class, averaged
    facets: Mapping[str, Facet]


@dataclass(frozen=True)
class Retrieval:
    """Pictures and texts, each text true of one picture."""

    name: str
    pictures: NDArray[np.uint8]  # [M, S, S, 3] sRGB
    texts: tuple[str, ...]
    picture_of_text: NDArray[np.int64]  # [T]; every picture has one text at least


@dataclass(frozen=True)
class DenseSplit:
    """Pictures with a depth and a class for every pixel."""

    pictures: NDArray[np.uint8]  # [M, S, S, 3] sRGB
    depth: NDArray[np.float32]  # [M, S, S] metres
    valid: NDArray[np.bool_]  # [M, S, S] where there is a depth
    segments: NDArray[np.uint8]  # [M, S, S] index into the set's classes


@dataclass(frozen=True)
class Dense:
    """Depth and segmentation: what probes are trained on, and what they are measured on."""

    name: str
    train: DenseSplit
    val: DenseSplit
    classes: tuple[str, ...]
    max_depth: float  # metres; beyond it there is nothing
