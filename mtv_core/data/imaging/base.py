"""What the image modules hand each other. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Subsampling = Literal["4:2:0", "4:2:2", "4:4:4"]


class BadImageError(ValueError):
    """An image that cannot be stored. `reason` groups, the message explains."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ImageLimits:
    """What is stored, and what is refused. Sizes in px.

    Chroma at half the resolution is the default: a stored picture of 768 px still has 384 px of it, more than training sees, and
    4:4:4 costs a fifth more bytes and a third more time to encode.
    """

    max_side: int  # a larger image is scaled down to this long side
    quality: int  # of JPEGs encoded anew, 1 … 100
    max_pixels: int  # as received; more is refused before anything is decoded
    min_side: int = 1  # as received
    max_aspect: float = math.inf  # long side over short side, as received
    subsampling: Subsampling = "4:2:0"  # of JPEGs encoded anew


@dataclass(frozen=True)
class StoredImage:
    """What goes into the table. Sizes in px."""

    jpeg: bytes
    width: int
    height: int
    phash: int  # 64 bits
    grey: NDArray[np.uint8]  # [32, 32], the small grey picture that the hash is made of
    passthrough: bool  # `jpeg` is what was received, byte for byte
