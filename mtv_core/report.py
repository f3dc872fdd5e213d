"""What a stage says of its work: reports that add up, refusals that are rows, references that stages exchange."""

from __future__ import annotations

import errno
import os
from enum import StrEnum

from pydantic import BaseModel, Field

_HINTS = {
    errno.ENOSPC: " (free some space, or choose another place: MTV_HOME, table.uri)",
    errno.EROFS: " (choose a place you may write: MTV_HOME, table.uri)",
    errno.EACCES: " (check the permissions, or choose another place: MTV_HOME, table.uri)",
}


def plain(error: BaseException) -> str:
    """What a person has to know of an error, in one line: no number of the operating system's without what to do about it."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        place = f": {error.filename}" if error.filename else ""
        theirs = error.strerror == os.strerror(error.errno)  # else the words are ours and say what to do already
        return f"{error.strerror}{place}{_HINTS.get(error.errno, '') if theirs else ''}"
    text = " ".join(str(error).split())
    return text if text and isinstance(error, (ValueError, OSError, RuntimeError)) else f"{type(error).__name__}: {text}"


class RejectClass(StrEnum):
    """Who has to act on a refusal: nobody (retry), the data's owner, or us."""

    TRANSIENT = "transient"
    DATA = "data"
    BUG = "bug"


class Reject(BaseModel, frozen=True, extra="forbid"):
    """One refusal, one row of `rejects.lance`. Idempotent on (shard, key, stage, revision)."""

    uid: str | None = Field(None, description="uid of the sample, where its bytes could be read")
    shard: str = Field(description="id of the shard it came from")
    key: str = Field(description="key of the sample in its shard; empty when the shard itself is refused")
    location: str = Field("", description="where a person finds it: URI of the shard and member")
    stage: str = Field(description="ingest, depth, detection, …")
    reject_class: RejectClass = RejectClass.DATA
    error: str = Field(description="short name of the reason, for grouping: 'NoCaption'")
    message: str = Field(description="what happened, and what to do")
    revision: str = Field("", description="revision of the expert, or of the ingest configuration")
    survivor: str | None = Field(None, description="uid of the row kept instead, for duplicates")
    attempt: int = 1


class StageReport(BaseModel, frozen=True, extra="forbid"):
    """A mergeable account of one stage or one piece of it: the whole is `sum(parts, start=StageReport())`.

    `seconds` adds up work over workers; wall time is the flow's to measure.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_rejected: int = 0
    rows_skipped: int = Field(0, description="already done by an earlier run")
    bytes_written: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = Field(default_factory=dict, description="named counts: reasons, fragments, files, …")

    def __add__(self, other: StageReport) -> StageReport:
        counts = dict(self.counts)
        for name, count in other.counts.items():
            counts[name] = counts.get(name, 0) + count
        return StageReport(
            rows_in=self.rows_in + other.rows_in,
            rows_out=self.rows_out + other.rows_out,
            rows_rejected=self.rows_rejected + other.rows_rejected,
            rows_skipped=self.rows_skipped + other.rows_skipped,
            bytes_written=self.bytes_written + other.bytes_written,
            seconds=self.seconds + other.seconds,
            counts=counts,
        )


class StageRef(BaseModel, frozen=True, extra="forbid"):
    """What a stage hands to the next: where its output is, and which state of it. Never the data itself."""

    stage: str
    run_id: str = Field(description="the run that did the work, which a rerun that reuses it does not change")
    uri: str = Field(description="table or folder the stage wrote")
    version: int | None = Field(None, description="version of the Lance table")
    tag: str | None = Field(None, description="immutable name of exactly these rows and labels")
    revisions: dict[str, str] = Field(default_factory=dict, description="expert → revision of the labels")
    metrics: dict[str, float] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict, description="name → URI of what else was made")
    report: StageReport = Field(default_factory=StageReport)
