"""What is exported, and in which form. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from mtv_core.store.slice_config import SliceConfig

Format = Literal["webdataset", "parquet", "hf"]
Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


class DatasetExportConfig(BaseModel, frozen=True, extra="forbid"):
    """One copy of a table's rows for other programs."""

    format: Format = Field(
        description="webdataset: tars of jpg, txt, json, depth.npy; parquet: files that `datasets` shows with images; hf: what "
        "`datasets.load_from_disk` opens"
    )
    out: str = Field(description="folder or URI (s3://…, gs://…) to write to; new, empty, or of an earlier try of the same export")
    data: SliceConfig = Field(default_factory=SliceConfig, description="which rows; a limit counts over the exported splits together")
    split: Literal["all", "train", "held_out"] = Field("all", description="which split; each is kept in files of its own")
    columns: tuple[str, ...] | None = Field(None, description="which columns, beside uid; null: all, labels included")
    shard_size: int = Field(10_000, ge=1, description="rows a file")

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are asked for."""
        return SPLITS if self.split == "all" else (self.split,)
