"""What a labelling run would do, and what it would cost: revisions, stale rows and fragments. Changes nothing, loads no weights."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from mtv_core import experts
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table


class ExpertPlan(BaseModel, frozen=True, extra="forbid"):
    """Where one expert's labels stand, and what a run would do."""

    tracked: str = Field(description="revision the configuration resolves to now")
    accepted: str | None = Field(description="revision the table's labels are to have; None before the first labelling")
    target: str = Field(description="revision a run would label with")
    stored: dict[str, int] = Field(description="revision → rows that have its labels; '' for rows without any")
    num_stale: int = Field(description="rows a run would label")

    @property
    def proposed(self) -> bool:
        """Whether the configured expert waits for being accepted."""
        return self.tracked != self.target


def revisions(config: LabelConfig) -> dict[str, str]:
    """Expert → revision the configuration resolves to now. Loads nothing.

    Raises:
        FileNotFoundError, ValueError: an expert is not there, has no weights, or its licence has to be accepted.
    """
    return {name: experts.revision(name, expert) for name, expert in config.experts().items()}


def plan(table_uri: str, config: LabelConfig, storage_options: Mapping[str, str] | None = None) -> dict[str, ExpertPlan]:
    """What a run would do, by expert; changes nothing.

    Raises:
        FileNotFoundError, ValueError: as `revisions`, or there is no table.
    """
    table = Table.open(table_uri, storage_options)
    accepted, counts, total = table.accepted(), table.label_counts(), table.num_rows
    plans = {}
    for name, tracked in revisions(config).items():
        known = accepted[name].revision if name in accepted else None
        target = known if known is not None and config.accept == "gate" else tracked
        stored = counts.get(name, {"": total})
        plans[name] = ExpertPlan(tracked=tracked, accepted=known, target=target, stored=stored, num_stale=total - stored.get(target, 0))
    return plans
