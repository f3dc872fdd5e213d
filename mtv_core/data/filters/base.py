"""What a filter is: a predicate on a sample that was received and is fit to store, with its options as fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Missing = Literal["keep", "refuse"]


@dataclass(frozen=True)
class Received:
    """A sample as filters see it. Sizes of the upright image as received, in px; `captions` cleaned, the first is the one that counts."""

    key: str
    width: int
    height: int
    num_bytes: int  # of the image file
    format: str  # of the image file: 'JPEG', 'PNG', …
    captions: list[str]
    url: str | None = None
    license: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)  # the sample's own JSON
    grey: NDArray[np.uint8] | None = None  # [32, 32]; only for filters that need pixels

    def seen(self, grey: NDArray[np.uint8]) -> Received:
        """The same sample after its image was decoded."""
        return replace(self, grey=grey)

    @property
    def caption(self) -> str:
        """The caption that counts."""
        return self.captions[0] if self.captions else ""


class Filter(BaseModel, frozen=True, extra="forbid"):
    """A predicate. Pure: the same sample always gives the same answer, whatever came before it."""

    reason: ClassVar[str]  # what the rejects call it, before the label
    needs_pixels: ClassVar[bool] = False  # asked after decoding, which is dear

    name: str
    label: str | None = Field(
        None, pattern=r"^[\w.-]{1,40}$", description="tells two filters of one name apart, in the reasons of refusals and in the report"
    )

    @property
    def told_apart_by(self) -> str:
        """The label, or what a filter takes for one; may be empty."""
        return self.label or ""

    @property
    def error(self) -> str:
        """What a refusal says: the reason, and the label behind a colon."""
        return f"{self.reason}:{self.told_apart_by}" if self.told_apart_by else self.reason

    @property
    def step(self) -> str:
        """Of the funnel."""
        return f"filter {self.name} {self.told_apart_by}".rstrip()

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it, in words."""
        raise NotImplementedError


def within(value: float, minimum: float | None, maximum: float | None) -> bool:
    """Whether a value is between two bounds, either of which may be missing. NaN never is."""
    return not math.isnan(value) and (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def bounds(minimum: float | None, maximum: float | None) -> str:
    """'at least 3', 'at most 5', 'between 3 and 5'."""
    if minimum is None:
        return f"at most {maximum:g}"
    return f"at least {minimum:g}" if maximum is None else f"between {minimum:g} and {maximum:g}"


def check_bounds(minimum: float | None, maximum: float | None) -> None:
    """Refuse bounds that keep everything or nothing.

    Raises:
        ValueError: both are missing, or they are the wrong way round.
    """
    if minimum is None and maximum is None:
        raise ValueError("give minimum, maximum or both: without a bound the filter does nothing")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise ValueError(f"minimum ({minimum:g}) is more than maximum ({maximum:g}): no sample would pass")
