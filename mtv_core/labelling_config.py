"""What the label stage is configured by. Imports neither torch nor lance, since the command line reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from mtv_core.budget import FailureBudget
from mtv_core.canary_config import GateConfig
from mtv_core.experts.config import DepthExpertConfig, DetectionExpertConfig, ExpertConfig


class LabelConfig(BaseModel, frozen=True, extra="forbid"):
    """Which experts label the pictures, and when a new revision of one replaces the old one's labels."""

    depth: DepthExpertConfig | None = Field(DepthExpertConfig(), description="the depth expert; null: no depth labels")
    detection: DetectionExpertConfig | None = Field(DetectionExpertConfig(), description="the detection expert; null: no boxes")
    accept: Literal["gate", "immediate"] = Field(
        "gate",
        description="what a configured expert that differs from the accepted one does: 'gate' leaves it to `mtv refresh`, which tries it "
        "on some rows first; 'immediate' makes it the accepted one and labels every row again",
    )
    gate: GateConfig = Field(GateConfig(), description="how `mtv refresh` tries a new revision, and what it has to stand")
    batch_size: int = Field(
        16, ge=1, le=4096, description="pictures an expert sees at once; 16 suits a CPU's caches, a GPU wants 32 and more"
    )
    threads: int = Field(
        1,
        ge=1,
        description="batches a worker computes at once on a CPU, a core each; they share batch_size, and workers share the cores, so 1",
    )
    gpus: float = Field(
        0, ge=0, description="how much of the cluster's resource GPU one fragment's work asks for; 0: it runs on any worker"
    )
    commit_fragments: int = Field(50, ge=1, description="fragments made visible together; a commit costs milliseconds, and a version")
    commit_seconds: float = Field(60, ge=0, description="s after which finished fragments are made visible although they are fewer")
    failures: FailureBudget = Field(
        FailureBudget(), description="how many rows may be refused for good by an expert before labelling stops"
    )
    price_per_hour: float | None = Field(
        None,
        ge=0,
        description="what one worker (a GPU, or a core) costs an hour, in any currency; null: `mtv plan` names no cost",
    )
    allow_mixed: bool = Field(
        False, description="go on to training although some rows could not be labelled for reasons that may pass; their labels are missing"
    )

    def experts(self) -> dict[str, ExpertConfig]:
        """The configured experts by name."""
        found: dict[str, ExpertConfig | None] = {"depth": self.depth, "detection": self.detection}
        return {name: config for name, config in found.items() if config is not None}
