"""What a training is asked for and what it answers. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mtv_core.training.config import TrainConfig

JOB, RESULT, LOG = "train.json", "train_result.json", "train.log"


class TrainJob(BaseModel, frozen=True, extra="forbid"):
    """One training; `train.json` in its folder."""

    folder: Path = Field(description="where it writes: metrics.jsonl, train.log, checkpoints/, init/, model/")
    table_uri: str
    version: int = Field(description="of the table")
    tag: str | None = Field(None, description="name of that version; checked against it")
    config: TrainConfig
    resume_from: str | None = Field(None, description="checkpoints/ of another run of the same work, to go on from")
    storage_options: dict[str, str] = Field(default_factory=dict)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What two trainings must share for one to go on from the other's checkpoint: same rows, same configuration but for speed."""
        return {"version": self.version, "tag": self.tag, **{f"config.{key}": value for key, value in self.config.fixed().items()}}


class TrainResult(BaseModel, frozen=True, extra="forbid"):
    """A finished training; `train_result.json` in its folder, written last."""

    steps: int
    model_folder: Path
    baseline_folder: Path = Field(description="the model before its first step")
    metrics: dict[str, float] = Field(description="the last row of metrics.jsonl")
    seconds: float = Field(description="of wall time, of the attempt that finished it")
    fingerprint: dict[str, Any] = Field(default_factory=dict, description="of the job")
