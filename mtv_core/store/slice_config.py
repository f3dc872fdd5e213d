"""Which rows of a table: a condition, a share, a number. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from fractions import Fraction

from pydantic import BaseModel, Field, field_validator

UID_BITS = 128


class SliceConfig(BaseModel, frozen=True, extra="forbid"):
    """Part of a table's rows, chosen without copying them. By default all of them.

    A row is in it or not by its own columns and uid, wherever it lies. uids are hashes, so fractions are fair samples; a smaller fraction
    lies inside a larger one, and fewer rows (`limit`) inside more, after growth and compaction too.
    """

    where: str | None = Field(
        None, description="SQL condition over the table's columns, for example width >= 256 and source = 'cc12m'; null: every row"
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of the rows, those whose uid is below it; a smaller share lies inside a larger one"
    )
    limit: int | None = Field(
        None, ge=1, description="rows at most, those of the smallest uids of what where and fraction leave; null: no limit"
    )

    @field_validator("where")
    @classmethod
    def _blank(cls, where: str | None) -> str | None:
        return (where or "").strip() or None

    @property
    def whole(self) -> bool:
        """Whether it is every row."""
        return self == SliceConfig()

    @property
    def uid_bound(self) -> int:
        """Rows of the fraction are those whose uid, a number of 128 bits, is below this one."""
        return int(Fraction(self.fraction) * 2**UID_BITS)

    @property
    def digest(self) -> str:
        """8 hex digits that stand for this slice."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    def __str__(self) -> str:
        """For people: "where width > 9, fraction 0.1, limit 100"; "all rows"."""
        parts = [f"{name} {value}" for name, value in self.model_dump(exclude_defaults=True).items()]
        return ", ".join(parts) or "all rows"
