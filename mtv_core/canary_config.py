"""What an expert's new revision is tried by before its labels replace the old ones. Imports neither torch nor lance."""

from __future__ import annotations

from pydantic import BaseModel, Field


class DepthGate(BaseModel, frozen=True, extra="forbid"):
    """Limits of a depth expert's update. A better expert says other things than the old one; a broken one says nothing of the kind."""

    max_abs_rel: float = Field(
        0.3, ge=0, description="AbsRel of the new maps against the old ones after scale-and-shift alignment: median over the pictures"
    )
    max_abs_rel_p95: float = Field(0.5, ge=0, description="the same: 95th percentile over the pictures")
    min_skill: float = Field(
        0.2, le=1, description="how much better a picture's new map fits its old one than those of other pictures do: 1 - AbsRel / theirs"
    )
    max_constant: float = Field(0.05, ge=0, le=1, description="share of new maps that are the same everywhere, more than of the old ones")


class DetectionGate(BaseModel, frozen=True, extra="forbid"):
    """Limits of a detection expert's update."""

    min_iou: float = Field(0.5, ge=0, le=1, description="mean IoU of old and new boxes that are matched within a phrase")
    min_found: float = Field(0.4, ge=0, le=1, description="share of old boxes that are found again: same phrase, IoU 0.5 or more")
    max_new: float = Field(0.8, ge=0, le=1, description="share of new boxes that no old one was")
    max_none: float = Field(0.3, ge=0, le=1, description="share of pictures without a box, more than with the old labels")
    max_filling: float = Field(0.2, ge=0, le=1, description="share of boxes that fill the picture, more than of the old ones")
    max_ratio: float = Field(4.0, ge=1, description="boxes a picture, new to old or old to new, whichever is more than 1")
    max_broken: float = Field(0.01, ge=0, le=1, description="share of boxes that are none: outside of the picture, empty, not finite")
    max_score_shift: float = Field(0.6, ge=0, le=1, description="difference of the mean scores: training takes boxes by their score")


class GateConfig(BaseModel, frozen=True, extra="forbid"):
    """How a new revision is tried, and who says yes: thresholds, or a person."""

    rows: int = Field(256, ge=1, le=100_000, description="rows that are labelled aside, chosen by the hash in their uid")
    min_compared: int = Field(1, ge=1, description="rows that have an old and a new label; without any nobody can tell what would change")
    max_failed: float = Field(0.02, ge=0, le=1, description="share of rows on which the new expert fails")
    depth: DepthGate = DepthGate()
    detection: DetectionGate = DetectionGate()
    approval: bool = Field(
        False, description="a person decides, whatever the thresholds say: in the Prefect UI, or by `mtv refresh --approve` or `--reject`"
    )
    approval_timeout: float = Field(
        7 * 24 * 3600, gt=0, description="s that a flow waits for that person; then it ends, and nothing has changed"
    )
