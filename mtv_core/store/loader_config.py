"""How a training reads its rows. Imports nothing heavy."""

from __future__ import annotations

from pydantic import BaseModel, Field


class LoaderConfig(BaseModel, frozen=True, extra="forbid"):
    """Speed and memory of reading; none of it changes which rows come when, or what they look like."""

    take_rows: int = Field(256, ge=1, description="rows fetched at a time by each rank: single rows are 20 times slower")
    prefetch: int = Field(4, ge=1, description="batches made ahead by a thread of each rank")
    decode_threads: int = Field(
        1, ge=1, description="threads of each rank that decode and crop; a core does about 1000 pictures of 224 px a second"
    )
    cache_mb: int = Field(
        256, ge=0, description="memory of each rank for decoded pictures, MB; kept until it is full, so that small tables are decoded once"
    )
