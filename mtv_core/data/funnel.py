"""The way of samples from the shards into the table: how many each step took, in order, so that the numbers add up."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from mtv_core import reasons
from mtv_core.data.filters import Filter
from mtv_core.data.stats import IngestStats
from mtv_core.reasons import Reason

RECEIVED, AGAIN, ROWS = "received", "rows already", "rows added"


class Step(BaseModel, frozen=True, extra="forbid"):
    """One step of the funnel."""

    name: str
    lost: int = Field(description="samples that this step took")
    left: int = Field(description="samples after it")
    reasons: dict[str, int] = Field(default_factory=dict, description="reason → samples")


def describe(error: str, stage: str = "ingest") -> Reason:
    """What a reason means and what to do, those of filters included."""
    known, _, label = error.partition(":")
    for one in Filter.__subclasses__():
        if one.reason == known and known not in reasons.REASONS:
            name = f"{one.model_fields['name'].default} {label}".rstrip()
            what = f"the filter {name} does not want it: {(one.__doc__ or '').strip().split('. ')[0].rstrip('.')}"
            return Reason(f"filter {name}", what, "change or drop the filter in `ingest.filters` and retry, or leave it", False)
    return reasons.describe(error, stage)


def funnel(stats: IngestStats, filters: Sequence[Filter] = ()) -> list[Step]:
    """Steps in order: received, whole, readable, captions, each configured filter, duplicates, leaks, taken down, errors, rows.

    The last step has what came into the table; what remains of the difference to the step before was a row already.
    """
    names = [one.step for one in filters]
    order = [
        reasons.SAMPLE, reasons.IMAGE, reasons.CAPTIONS, *dict.fromkeys(names),
        reasons.EXACT, reasons.NEAR, reasons.PLACEHOLDER, reasons.LEAK, reasons.FORGOTTEN, reasons.UNKNOWN,
    ]  # fmt: skip
    lost: dict[str, dict[str, int]] = {}
    for reason, number in sorted(stats.refused.items(), key=lambda pair: (-pair[1], pair[0])):
        lost.setdefault(describe(reason).step, {})[reason] = number
    order[-1:-1] = sorted(step for step in lost if step not in order)  # filters of another configuration
    steps = [Step(name=RECEIVED, lost=0, left=stats.received)]
    for name in order:
        found = lost.get(name, {})
        if found or name not in (reasons.FORGOTTEN, reasons.UNKNOWN):
            steps.append(Step(name=name, lost=sum(found.values()), left=steps[-1].left - sum(found.values()), reasons=found))
    if stats.again:
        steps.append(Step(name=AGAIN, lost=stats.again, left=steps[-1].left - stats.again))
    return [*steps, Step(name=ROWS, lost=0, left=stats.added)]
