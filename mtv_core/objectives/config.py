"""Which objectives a model is trained on, and how. Imports nothing heavy. Leaving one out (null) is how an ablation is made."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator


class ObjectiveConfig(BaseModel, frozen=True, extra="forbid"):
    """What all objectives have."""

    weight: float = Field(1.0, gt=0, description="of its loss in the sum; null the objective to leave it out")
    start: float = Field(
        0.0, ge=0, lt=1, description="share of all steps before it begins, and costs nothing (SigLIP 2 adds self-supervision at 0.8)"
    )
    warmup: float = Field(0.0, ge=0, le=1, description="share of all steps over which its weight then grows from 0")

    def weight_at(self, done: float) -> float:
        """Its weight when this share of all steps is done; 0 before it begins."""
        if done < self.start:
            return 0.0
        return self.weight * min(1.0, (done - self.start) / self.warmup) if self.warmup else self.weight


class ContrastiveConfig(ObjectiveConfig, frozen=True):
    """Sigmoid contrast of pictures and captions (SigLIP). Neither field changes the loss, but for the order of its sums."""

    exchange: Literal["gather", "ring"] = Field(
        "gather", description="how captions come to all ranks: all at once, or one rank's after the other, which needs less memory"
    )
    chunk: int | None = Field(
        None, ge=1, description="captions that a rank compares with its pictures at once, for memory; null: all that are there"
    )


class HeadConfig(BaseModel, frozen=True, extra="forbid"):
    """Projection head of self-distillation: an MLP, a bottleneck, weight-normed prototypes (DINOv2)."""

    hidden: int = Field(2048, ge=8, description="width of the MLP")
    layers: int = Field(3, ge=1, description="linear layers of the MLP, the bottleneck's included")
    bottleneck: int = Field(256, ge=4, description="width of the unit vectors that are compared with prototypes")
    prototypes: int = Field(32768, ge=2, description="what the teacher sorts views into (TIPS: 32k)")


class SelfDistillationConfig(ObjectiveConfig, frozen=True):
    """What the self-distillation of whole views and of masked patches share."""

    head: HeadConfig = Field(default_factory=HeadConfig, description="each objective has a head of its own")
    student_temperature: float = Field(0.1, gt=0, description="DINOv2: 0.1")
    # Fixed: a schedule would move the loss for reasons that are not learning.
    teacher_temperature: float = Field(0.07, gt=0, description="below the student's, so that targets are sharper (DINOv2 ends at 0.07)")
    sinkhorn_iterations: int = Field(
        3, ge=1, description="Sinkhorn-Knopp rounds that spread the batch over prototypes, over all ranks (DINOv2: 3)"
    )


class DistillationConfig(SelfDistillationConfig, frozen=True):
    """Self-distillation of pooled views: local and masked global crops match the teacher's other global crops (DINO)."""

    koleo: float = Field(0.0, ge=0, description="weight of the spread of embeddings over the sphere, per global crop (DINOv2: 0.1)")


class MaskedConfig(SelfDistillationConfig, frozen=True):
    """Prediction of the teacher's patches where the student saw a mask (iBOT)."""

    probability: float = Field(0.5, ge=0, le=1, description="share of global crops that are masked at all (DINOv2: 0.5)")
    ratio_low: float = Field(0.1, ge=0, le=1, description="least share of patches hidden in a masked crop")
    ratio_high: float = Field(0.5, ge=0, le=1, description="largest share (DINOv2: 0.5; TIPS hides 0.75)")
    visible: float = Field(
        0.0, ge=0, description="weight of the patches of a masked crop that are not hidden, beside those that are (TIPSv2 predicts both)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> MaskedConfig:
        if self.ratio_low > self.ratio_high:
            raise ValueError(f"masked.ratio_low ({self.ratio_low}) is above masked.ratio_high ({self.ratio_high})")
        return self


class GroundingConfig(ObjectiveConfig, frozen=True):
    """Contrast of boxes and their phrases (CLOC), on the detection expert's labels."""

    heads: int = Field(1, ge=1, description="attention heads of the prompter; divides the backbone's width (CLOC: 1)")
    similar: float | None = Field(
        None, gt=0, le=1, description="also ignore negatives whose phrases' embeddings are this close (CLOC: 0.9, of a trained tower)"
    )
    init_scale: float = Field(10.0, gt=0, description="temperature of its logits at the start")
    init_bias: float = Field(-10.0, description="bias of its logits at the start")


class DepthConfig(ObjectiveConfig, frozen=True):
    """Inverse depth up to scale and shift, on the depth expert's labels (MiDaS)."""

    layers: tuple[int, ...] | None = Field(None, description="blocks the head reads, 0 is the first; null: four, evenly spread")
    width: int = Field(128, ge=8, description="channels of the head")
    gradient: float = Field(0.5, ge=0, description="weight of multi-scale gradient matching (MiDaS: 0.5)")
    scales: int = Field(4, ge=1, description="of gradient matching, each half the one before (MiDaS: 4)")


class GramConfig(ObjectiveConfig, frozen=True):
    """Gram anchoring: which patches of a crop are like each other stays as an earlier teacher has it (DINOv3)."""

    every: int = Field(10_000, ge=1, description="steps after which the anchor becomes the teacher of that moment (DINOv3: 10 000)")


class TeacherConfig(BaseModel, frozen=True, extra="forbid"):
    """The moving average of the student that sets the targets of distillation and masked prediction."""

    momentum: float = Field(
        0.994, ge=0, lt=1, description="share of the old teacher kept at each step, constant (DINOv3: 0.994; shorter runs want less)"
    )
    average: Literal["all", "heads"] = Field(
        "all", description="what is averaged: backbone and heads, or heads alone on the student's own backbone, which saves a copy (TIPSv2)"
    )


class ObjectivesConfig(BaseModel, frozen=True, extra="forbid"):
    """All of them by default; `null` leaves one out."""

    contrastive: ContrastiveConfig | None = Field(default_factory=ContrastiveConfig, description="pictures and captions")
    distillation: DistillationConfig | None = Field(default_factory=DistillationConfig, description="views and the teacher's views")
    masked: MaskedConfig | None = Field(default_factory=MaskedConfig, description="hidden patches and the teacher's patches")
    grounding: GroundingConfig | None = Field(default_factory=GroundingConfig, description="boxes and phrases")
    depth: DepthConfig | None = Field(default_factory=DepthConfig, description="inverse depth")
    gram: GramConfig | None = Field(None, description="likeness of patches; off unless asked for")
    teacher: TeacherConfig = Field(default_factory=TeacherConfig, description="of distillation and masked prediction")

    @model_validator(mode="after")
    def _some(self) -> ObjectivesConfig:
        if not self.enabled:
            raise ValueError("every objective is null: there is nothing to train on; keep at least one")
        if all(getattr(self, name).start > 0 for name in self.enabled):
            raise ValueError("every objective has a start above 0: there is nothing to train on before; let one start at 0")
        if self.gram is not None and self.teacher.average == "heads":
            raise ValueError(
                "gram anchors to a teacher's backbone, which teacher.average: heads does not keep; set it to all, or null gram"
            )
        return self

    @property
    def enabled(self) -> tuple[str, ...]:
        """Names of the objectives that are on, in the order their losses are reported."""
        return tuple(
            name for name in ("contrastive", "distillation", "masked", "grounding", "depth", "gram") if getattr(self, name) is not None
        )
