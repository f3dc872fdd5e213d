"""What a box filter is: a rule by name that finds noise among the boxes of a picture. No torch here: configurations are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """The boxes of one picture that are left, best first."""

    boxes: Tensor  # [N, 4] xyxy, normalised by the picture's own width and height
    pixels: Tensor  # [N, 4] the same in px of the stored picture
    scores: Tensor  # [N]
    phrases: Tensor  # [N] index into the phrases asked

    def __getitem__(self, kept: Tensor | slice) -> Boxes:
        """Those of a mask, of indices or of a slice."""
        return Boxes(self.boxes[kept], self.pixels[kept], self.scores[kept], self.phrases[kept])

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def areas(self) -> Tensor:
        """Share of the picture that each box covers, 0..1 [N]."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).prod(dim=-1)

    def iou(self) -> Tensor:
        """Intersection over union of every two, in px [N, N]."""
        from torchvision.ops import box_iou

        return box_iou(self.pixels, self.pixels)


class Filter(BaseModel, frozen=True, extra="forbid"):
    """A rule. Pure: the same boxes always give the same answer."""

    # Whether a box is judged by itself. Such rules come before suppression, so that a box which is dropped suppresses no other;
    # those that compare boxes come after it.
    alone: ClassVar[bool]

    name: str

    def __call__(self, found: Boxes) -> Tensor:
        """Which boxes are kept [N]."""
        raise NotImplementedError
