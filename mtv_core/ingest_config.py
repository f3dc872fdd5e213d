"""What ingest does to samples on their way into the table."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, Field

VERSION = 1  # raise it when the same shard gives other rows

# What changes no row: where the work is cut.
_LAYOUT = {"rows_per_fragment"}


class IngestConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and limits. A shard that is in the table is not read again when these change."""

    max_side: int = Field(
        768, ge=16, le=16384, description="px; a larger image is scaled down to this long side, a smaller one stays as received"
    )
    quality: int = Field(92, ge=1, le=100, description="of JPEGs encoded anew; JPEGs that fit pass through untouched")
    max_pixels: int = Field(
        64_000_000, ge=1, le=89_000_000, description="larger images are refused before they are decoded, since a small file may hold a bomb"
    )
    max_bytes: int = Field(
        64 << 20, ge=1, description="of one file of a sample; larger ones are refused unread, which bounds the memory of a worker"
    )
    held_out: float = Field(0.01, ge=0, le=1, description="share of images, by their hash, that no training sees")
    rows_per_fragment: int = Field(
        10_000, ge=1, description="rows of one data file, which is the unit of labelling: small enough to spread, large enough to be few"
    )

    def revision(self) -> str:
        """16 hex digits of what decides which rows a shard gives."""
        document = f"{VERSION} {self.model_dump_json(exclude=_LAYOUT)}"
        return hashlib.sha256(document.encode()).hexdigest()[:16]
