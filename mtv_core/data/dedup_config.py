"""Which rows count as the same picture, and which pictures never become training data. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, Field

from mtv_core.data.sources.config import Sources

MAX_THRESHOLD = 12  # bits of 64; two pictures that have nothing to do with each other are 32 apart, and a few in a million pairs below 12


class PlaceholderConfig(BaseModel, frozen=True, extra="forbid"):
    """When a picture that comes again and again stands for others that are missing: "image not available", "login required"."""

    min_copies: int = Field(
        20,
        ge=2,
        description="of one picture, counted over the table's whole history; a photo posted again rarely gets there with other words each "
        "time, a placeholder gets to hundreds. Either way no more than one row is at stake",
    )
    different: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the copies whose captions differ, to be exceeded: copies of a page repeat its caption, "
        "a placeholder comes with the captions of all that it stands for",
    )


class DedupConfig(BaseModel, frozen=True, extra="forbid"):
    """Exact duplicates (sha256 of the image as received) always go; these are the others. A row of the table always stays."""

    near_threshold: int | None = Field(
        4,
        ge=0,
        le=MAX_THRESHOLD,
        description="bits of the 64-bit perceptual hash that may differ in near duplicates. 4 finds 88–97 % of re-encoded, resized or "
        "converted copies and 82 % of those cropped by 1 % a side (2: 72–91 and 50 %), and took no unrelated photo; of scenes drawn alike "
        "it takes 1 in 700 (2: 1 in 4000, 6: 1 in 100). null keeps near duplicates",
    )
    placeholders: PlaceholderConfig | None = Field(PlaceholderConfig(), description="refuse placeholder pictures, all copies; null: do not")


class DecontaminateConfig(BaseModel, frozen=True, extra="forbid"):
    """Evaluation sets whose pictures never become training data."""

    sets: Sources = Field([], description="of the same formats as training data; captions are not needed")
    threshold: int | None = Field(
        8,
        ge=0,
        le=MAX_THRESHOLD,
        description="bits that may differ from an evaluation image. Wider than between training images: a row lost costs nothing, a leak "
        "falsifies a result; 8 finds 95–100 % of copies, and 92 % of those cropped by 2 % a side. null: only the very same bytes",
    )
    pairs: int = Field(24, ge=0, description="closest pairs shown in the gallery, those just beyond the threshold among them")
    margin: int = Field(4, ge=0, le=8, description="bits beyond the threshold that the gallery looks at")
