"""What ingest does to samples on their way into the table. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, Field

from mtv_core.budget import FailureBudget
from mtv_core.data.captions import CaptionConfig
from mtv_core.data.dedup_config import DecontaminateConfig, DedupConfig
from mtv_core.data.filters import DEFAULT, FilterConfig
from mtv_core.data.images import ImageLimits

VERSION = 2  # raise it when the same shard gives other rows

# What changes nothing of what a worker makes of a shard: where the work is cut, and what the committer decides.
_NOT_STAGED = {"rows_per_fragment", "verify", "dedup", "decontaminate", "failures"}


class IngestConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and limits. A shard that is in the table is not read again when these change: `mtv failures --retry` tries its refusals."""

    max_side: int = Field(
        768, ge=16, le=16384, description="px; a larger image is scaled down to this long side, a smaller one keeps its size"
    )
    quality: int = Field(
        92, ge=1, le=100, description="of JPEGs encoded anew; JPEGs that fit, with nothing behind their end, pass through untouched"
    )
    subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = Field(
        "4:2:0",
        description="of the colours of JPEGs encoded anew; 4:4:4 keeps those of small things, for 20 % more bytes and 13 % more time",
    )
    max_pixels: int = Field(
        64_000_000, ge=1, le=89_000_000, description="larger images are refused before they are decoded, since a small file may hold a bomb"
    )
    max_bytes: int = Field(
        64 << 20, ge=1, description="of one file of a sample; larger ones are refused unread, which bounds the memory of a worker"
    )
    min_side: int = Field(8, ge=1, description="px; an image with a shorter side is refused: tracking pixels, rules, icons")
    max_aspect: float = Field(
        20.0, ge=1, description="long side over short side; beyond it an image is a rule or a banner, and a bomb when it is scaled"
    )
    captions: CaptionConfig = Field(CaptionConfig(), description="which captions are kept, and in which form")
    filters: list[FilterConfig] = Field(
        list(DEFAULT), description="what else a sample has to pass, in this order; each says how many it took"
    )
    dedup: DedupConfig = Field(DedupConfig(), description="which rows count as the same picture")
    decontaminate: DecontaminateConfig = Field(
        DecontaminateConfig(), description="evaluation sets whose pictures never become training data"
    )
    held_out: float = Field(0.01, ge=0, le=1, description="share of images, by their hash, that no training sees")
    verify: Literal["stat", "content"] = Field(
        "stat",
        description="how a changed shard is noticed: by size and time or etag; or by reading every shard again and comparing its samples",
    )
    failures: FailureBudget = Field(FailureBudget(), description="how much may fail before the stage stops")
    rows_per_fragment: int = Field(
        10_000, ge=1, description="rows of one data file, which is the unit of labelling: small enough to spread, large enough to be few"
    )

    def revision(self) -> str:
        """16 hex digits of what decides which rows a shard gives."""
        document = f"{VERSION} {self.model_dump_json(exclude=_NOT_STAGED)}"
        return hashlib.sha256(document.encode()).hexdigest()[:16]

    def limits(self) -> ImageLimits:
        """What images are held to."""
        return ImageLimits(
            max_side=self.max_side,
            quality=self.quality,
            subsampling=self.subsampling,
            max_pixels=self.max_pixels,
            min_side=self.min_side,
            max_aspect=self.max_aspect,
        )
