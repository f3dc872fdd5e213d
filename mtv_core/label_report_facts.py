"""What a report of labels says in numbers: `report.json`."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from mtv_core.label_checks import Check
from mtv_core.label_report_scan import Overview


class ExpertFacts(BaseModel, frozen=True, extra="forbid"):
    """An expert, and what it labelled."""

    revision: str = Field(description="that the labels are to have; empty if there are none yet")
    model: str = Field(description="as it was configured when it was accepted; empty if it is not the accepted one")
    license: str = Field(description="of the weights, or of imported labels; empty if nobody knows")
    identity: dict[str, str] = Field(description="commit of the hub, or hash of the folder")
    imported: str = Field("", description="name of the file, if the labels are somebody's own")
    stored: dict[str, int] = Field(description="revision → rows; '' for rows without labels")
    refused: dict[str, int] = Field(description="reason → rows that the revision failed on for good")
    without: int = Field(description="rows that have the revision and no label: failed for good, or not in the import")
    estimated: bool = Field(False, description="whether `without` is reckoned from the sample: to count it would read every depth map")

    @property
    def labelled(self) -> int:
        """Rows that have a label of the revision."""
        return max(self.stored.get(self.revision, 0) - self.without, 0) if self.revision else 0

    @property
    def waiting(self) -> int:
        """Rows that nobody has looked at yet."""
        return self.stored.get("", 0)

    @property
    def stale(self) -> int:
        """Rows with labels of other revisions."""
        return sum(rows for revision, rows in self.stored.items() if revision not in ("", self.revision))


class PhraseFacts(BaseModel, frozen=True, extra="forbid"):
    """A phrase in the sample."""

    phrase: str
    boxes: int
    score: float | None = Field(description="mean of its boxes; None without any")
    asked: int | None = Field(description="pictures in which it was looked for; None: not known")
    found: int = Field(description="pictures in which it was found")


class Boxes(BaseModel, frozen=True, extra="forbid"):
    """Boxes of all rows of one version."""

    number: int
    with_boxes: int = Field(description="rows")
    without: int = Field(description="rows that were looked at and have none")
    mean_score: float | None
    scores: list[int] = Field(description="boxes by score, in even bins from 0 to 1")
    a_row: list[int] = Field(description="rows by their number of boxes; the last is that many or more")

    @classmethod
    def of(cls, overview: Overview) -> Boxes:
        """From a scan."""
        return cls(
            number=overview.num_boxes,
            with_boxes=overview.with_boxes,
            without=int(overview.boxes[0]),
            mean_score=overview.mean_score,
            scores=overview.scores.tolist(),
            a_row=overview.boxes.tolist(),
        )


class Change(BaseModel, frozen=True, extra="forbid"):
    """How much an expert's labels changed since the version before, from 0 (the same)."""

    rows: int = Field(description="of the sample that have a label in both, of different revisions")
    changed: int = Field(description="of which the label is another one")
    mean: float
    highest: float = Field(description="95th percentile")
    amounts: list[int] = Field(description="rows by how much, in even bins from 0 to 1")


class LabelReport(BaseModel, frozen=True, extra="forbid"):
    """Everything the pages show but pictures."""

    table: str = Field(description="name of the table")
    version: int
    tag: str | None
    before: int | None = Field(description="the version that labels are compared with; None: with none")
    written: datetime
    rows: int
    experts: dict[str, ExpertFacts]
    boxes: Boxes | None = Field(description="None: no detector has been here")
    boxes_before: Boxes | None
    sample: int = Field(description="rows of which labels were read: those of smallest uid")
    phrases: list[PhraseFacts] = Field(description="found most in the sample")
    num_phrases: int = Field(description="different ones that were found in the sample")
    never_found: list[PhraseFacts] = Field(description="looked for most in the sample, and never found")
    areas: list[int] = Field(description="boxes of the sample by the side of a square of their share of the picture, even bins from 0 to 1")
    relief: list[int] = Field(
        description="depth maps of the sample by their spread as a share of their largest value, even bins from 0 to 1"
    )
    checks: list[Check]
    changes: dict[str, Change] = Field(description="by expert, where labels were written anew")
    dropped: dict[str, int] = Field(default_factory=dict, description="filter of the detector → boxes that it dropped in the run before")
    pages: dict[str, int] = Field(default_factory=dict, description="page of rows to look at → rows on it")
