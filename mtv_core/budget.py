"""How much may fail before a run is stopped: a mistake in the configuration should cost minutes, not the night."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

_NOTHING = "Nothing was committed."


class BudgetExceededError(ValueError):
    """More failed than the budget allows. What is staged is used by the next run."""


class FailureBudget(BaseModel, frozen=True, extra="forbid"):
    """What may fail of a stage. Samples that are only not wanted (duplicates, filters, limits) are no failures."""

    share: float = Field(0.2, ge=0, le=1, description="share of samples, and of shards, that may fail; 1: all of them")
    min_samples: int = Field(1000, ge=1, description="failed samples below which the share is not looked at")
    min_shards: int = Field(10, ge=1, description="failed shards below which the share is not looked at")
    reasons: list[str] | None = Field(None, description="which reasons count; null: all that mean that something is broken")

    def check(
        self, stage: str, failed: Mapping[str, int], total: int, *, pieces: int | None = None, unit: str = "samples", kept: str = _NOTHING
    ) -> None:
        """Stop if too much failed.

        Args:
            stage: whose budget it is, for the message and the name of its key.
            failed: reason → how many.
            total: of how many.
            pieces: shards or fragments that were counted so far, while work goes on; one bad shard does not stop a run of many, so
                nothing is decided below `min_shards` of them. None: all of them.
            unit: samples, shards or rows.
            kept: what became of the work so far, for the message.

        Raises:
            BudgetExceededError: it names the reasons and what to do.
        """
        counted = {reason: number for reason, number in failed.items() if self.reasons is None or reason in self.reasons}
        number = sum(counted.values())
        least = self.min_shards if unit == "shards" else self.min_samples
        if number < least or number <= self.share * total or (pieces is not None and pieces < self.min_shards):
            return
        worst = ", ".join(f"{count} × {reason}" for reason, count in sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))
        raise BudgetExceededError(
            f"{stage} was stopped: {number} of {total} {unit} failed ({worst}), more than {stage}.failures.share = {self.share:g} allows. "
            f"{kept} Look at what they have in common and fix it; or raise {stage}.failures.share and run again, "
            "which goes on from here"
        )
