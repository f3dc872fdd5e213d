"""What an evaluation is: a protocol with a version, that yields (metric, value) for a frozen model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor


class ProtocolCard(BaseModel, frozen=True, extra="forbid"):
    """Name and version of a protocol: numbers are comparable when both, and the data set, are equal."""

    name: str
    version: int = Field(ge=1, description="raised with every change that can change a number")
    dataset: str = Field(description="what it was measured on, with sizes")
    follows: str = Field(description="the public protocol it is after")
    ours: str = Field(description="where it differs from that")

    @property
    def tag(self) -> str:
        """`name/v1 on dataset`, for tables and model cards."""
        return f"{self.name}/v{self.version} on {self.dataset}"


class Encoder(Protocol):
    """A frozen model. Asking twice for the same pictures costs once.

    Shapes: M pictures of side S, T texts, D features, g × g patches.
    """

    name: str

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        """uint8 [M, S, S, 3] → unit vectors [M, D]."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """T texts → unit vectors [T, D]."""
        ...

    def patches(self, pictures: NDArray[np.uint8]) -> Tensor:
        """uint8 [M, S, S, 3] → features of the last, normalised layer [M, g, g, D]."""
        ...


class Evaluator(Protocol):
    """One protocol on one data set.

    Metrics are named without the protocol, which the suite puts before them. A metric `x` may come with `x_std` (over seeds) and `x_ci95`
    (half the width of its 95 % interval); what guessing gives is named `chance…` or `…_chance`.
    """

    name: str
    card: ProtocolCard
    compared: dict[str, bool]  # metric that a model is compared by → whether higher is better

    def __call__(self, encoder: Encoder) -> Iterator[tuple[str, float]]:
        """Measure a model."""
        ...

    def figures(self, encoder: Encoder, folder: Path) -> Iterator[tuple[str, Path]]:
        """Draw what a measured model does."""
        ...
