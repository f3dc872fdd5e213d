"""How a model is trained. Imports nothing heavy: the command line and the flow read it too."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from mtv_core.model.config import ModelConfig
from mtv_core.objectives.config import ObjectivesConfig
from mtv_core.store.loader_config import LoaderConfig
from mtv_core.store.slice_config import SliceConfig

# Fields that change how fast a step is, never what it computes: a run goes on under other values of them. The number of processes is one
# of them up to the rounding of sums, since the global batch stays the same.
FREE = frozenset(
    {"processes", "threads", "device", "max_restarts", "checkpoint_every", "keep_checkpoints", "collective_timeout", "loader", "alarms"}
)


class ViewsConfig(BaseModel, frozen=True, extra="forbid"):
    """How a picture becomes one clean view with its labels and several augmented crops."""

    clean_scale: tuple[float, float] = Field(
        (1.0, 1.0), description="share of the picture's area the clean view shows, drawn from here; 1: all of it, squashed to a square"
    )
    clean_flip: float = Field(
        0.0, ge=0, le=1, description="probability that the clean view is mirrored; captions that say 'left of' want 0"
    )
    max_boxes: int = Field(8, ge=1, description="boxes a picture that grounding sees, the best scored first (CLOC draws 4)")
    min_box_kept: float = Field(
        0.3, ge=0, le=1, description="a box of which less than this share is inside the clean view is not there (ours)"
    )
    depth_size: int | None = Field(None, ge=8, description="side of the depth target, px; null: that of the clean view")
    global_crops: int = Field(2, ge=1, description="large crops, seen by teacher and student (DINOv2: 2)")
    global_size: int | None = Field(
        None, ge=8, description="side of a large crop, px, a multiple of the patch size; null: model.image_size; smaller is cheaper"
    )
    global_scale: tuple[float, float] = Field((0.32, 1.0), description="share of the area of a global crop (DINOv2)")
    local_crops: int = Field(8, ge=0, description="small crops, seen by the student alone (DINOv2: 8)")
    local_size: int = Field(96, ge=8, description="side of a local crop, px; a multiple of the patch size (DINOv2: 96 of 224)")
    local_scale: tuple[float, float] = Field((0.05, 0.32), description="share of the area of a local crop (DINOv2)")
    aspect: float = Field(4 / 3, ge=1, description="a crop's width over height is drawn from 1/aspect … aspect, evenly in its logarithm")
    flip: float = Field(0.5, ge=0, le=1, description="probability that a crop is mirrored")
    jitter: float = Field(0.8, ge=0, le=1, description="probability that a crop's colours change (DINOv2: 0.8)")
    brightness: float = Field(0.4, ge=0, lt=1, description="factor 1 ± this (DINOv2: 0.4)")
    contrast: float = Field(0.4, ge=0, lt=1, description="factor 1 ± this (DINOv2: 0.4)")
    saturation: float = Field(0.2, ge=0, lt=1, description="factor 1 ± this (DINOv2: 0.2)")
    hue: float = Field(
        0.1, ge=0, le=0.5, description="turns of the colour wheel, ± this; captions that name colours want little (DINOv2: 0.1)"
    )
    grayscale: float = Field(0.2, ge=0, le=1, description="probability that a crop loses its colours (DINOv2: 0.2)")
    blur: float = Field(0.5, ge=0, le=1, description="probability that a crop is blurred (DINOv2: 1, 0.1 and 0.5)")
    blur_sigma: tuple[float, float] = Field(
        (0.1, 2.0), description="of the blur, px of a crop of 224; smaller crops scale it down (DINOv2)"
    )

    @field_validator("clean_scale", "global_scale", "local_scale")
    @classmethod
    def _share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"must be two shares of an area, 0 < low ≤ high ≤ 1, not {value}")
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _positive(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"must be 0 < low ≤ high, not {value}")
        return value


class OptimConfig(BaseModel, frozen=True, extra="forbid"):
    """AdamW under a warm-up and a schedule. Learning rates are as they stand here, whatever the batch size."""

    lr: float = Field(5e-4, gt=0, description="peak learning rate (COSMOS: 5e-4 at a batch of 1024)")
    end_lr: float = Field(0.0, ge=0, description="learning rate that the schedule ends at")
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine",
        description="after the warm-up: half a cosine, or warm-up-stable-decay, which stays at the peak and falls at the end, so that a "
        "run can be prolonged from a checkpoint before the fall (arXiv 2405.18392)",
    )
    decay_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="wsd: share of all steps over which the rate falls, as 1 − √ of what is done of them (arXiv 2405.18392: 0.2)",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from each block of the backbone to the one before it; 1: none (BEiT: 0.65 … 0.9)",
    )
    warmup_steps: int = Field(1000, ge=0, description="steps of linear warm-up from 0; at most half of all steps are used")
    weight_decay: float = Field(
        0.04, ge=0, description="of matrices; biases, norms, embeddings of positions and scalars have none (DINOv3: 0.04)"
    )
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1, description="below AdamW's 0.999, as contrast wants it (COSMOS: 0.98)")
    eps: float = Field(1e-8, gt=0)
    clip: float | None = Field(1.0, gt=0, description="greatest norm of the gradient of all parameters; null: no clipping")
    max_skipped: int = Field(
        20, ge=1, description="steps in a row whose loss or gradient may be not finite and are left out, before the run stops"
    )


class AlarmConfig(BaseModel, frozen=True, extra="forbid"):
    """From when on a training's log says that it goes wrong."""

    spike: float = Field(2.0, gt=1, description="a loss of this many times its median over the last 20 rows")
    spread: float = Field(
        0.1, ge=0, le=1, description="features of teacher or student whose standard deviation over a batch, times √width, is below this"
    )
    information: float = Field(
        0.1, ge=0, description="the teacher's targets say less than this of a view, in nats: log of the prototypes less their entropy"
    )


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """A training from a tagged table: what, on what, how long, on what machine."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="backbone, text tower, picture size")
    objectives: ObjectivesConfig = Field(default_factory=ObjectivesConfig, description="losses and their weights, the teacher")
    data: SliceConfig = Field(
        default_factory=SliceConfig, description="which rows of the tag's training split; a slice is chosen, not copied"
    )
    views: ViewsConfig = Field(default_factory=ViewsConfig, description="clean view and crops")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="AdamW, schedule, clipping")
    alarms: AlarmConfig = Field(default_factory=AlarmConfig, description="when the log says that a training goes wrong")
    loader: LoaderConfig = Field(default_factory=LoaderConfig, description="how rows are read")
    steps: int = Field(10_000, ge=1, description="optimiser steps in all")
    global_batch: int = Field(1024, ge=2, description="samples a step, over all processes; a multiple of processes")
    seed: int = Field(0, ge=0, lt=2**31, description="of initial weights, order of rows, crops and masks")
    init: str | None = Field(
        None,
        description="what the run starts from: model folder of a run, folder or hub id of a SiglipModel; null: weights drawn from the seed",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of activations; bfloat16 (autocast) on GPUs that have it, weights stay float32"
    )
    processes: int = Field(2, ge=1, description="ranks on this machine: one a GPU, or a few on the CPU")
    threads: int = Field(1, ge=1, description="torch threads of a rank on the CPU")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there are enough GPUs for the processes, else cpu")
    log_every: int = Field(10, ge=1, description="steps of a window: one row of metrics.jsonl and one log line each")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints; what a kill loses at most")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    max_restarts: int = Field(2, ge=0, description="times torchrun starts the ranks again after one died, before the run fails")
    collective_timeout: int = Field(600, ge=10, description="seconds that ranks wait for each other before they give up")

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.global_batch % self.processes:
            raise ValueError(f"train.global_batch ({self.global_batch}) must be a multiple of train.processes ({self.processes})")
        if self.objectives.distillation is not None and self.views.global_crops + self.views.local_crops < 2:
            raise ValueError(
                "distillation compares crops: give it views.global_crops ≥ 2 or views.local_crops ≥ 1, or null objectives.distillation"
            )
        return self

    @property
    def uses_crops(self) -> bool:
        """Whether an objective that is on looks at augmented crops."""
        objectives = self.objectives
        return any(one is not None for one in (objectives.distillation, objectives.masked, objectives.gram))

    def fixed(self) -> dict[str, object]:
        """The fields that a resumed run must share with the run it continues."""
        return self.model_dump(mode="json", exclude=set(FREE))
