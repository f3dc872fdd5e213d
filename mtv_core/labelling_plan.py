"""What a labelling run would do, and what it would cost: revisions, stale rows and fragments. Changes nothing, loads no weights.

Where nothing is stale no data file is opened: the manifest says it (`store.label_state`). Times, bytes and costs are what the last run of
the expert took, multiplied (`store.rates`); before there was one, they are unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from mtv_core.labelling_accept import in_force, is_imported, look_up
from mtv_core.labelling_config import LabelConfig
from mtv_core.store import rates
from mtv_core.store.accepted import Rejected
from mtv_core.store.label_state import LabelState
from mtv_core.store.labels import StalePlan
from mtv_core.store.rates import Rate
from mtv_core.store.table import Table


class Work(BaseModel, frozen=True, extra="forbid"):
    """Rows to label with a revision, and what that takes if it goes as in the last run."""

    revision: str
    num_stale: int = Field(description="rows to label")
    num_fragments: int = Field(description="fragments that have such rows; no other is opened")
    seconds: float | None = Field(description="s until all is labelled, with as many workers as then; None: never measured")
    bytes_to_write: int | None = Field(description="of the label files; None: never measured")
    cost: float | None = Field(description="in the currency of label.price_per_hour; None: no price, or never measured")
    rate: Rate | None = Field(description="what the estimates are made of: the last run of the revision, else of another one")


class ExpertPlan(BaseModel, frozen=True, extra="forbid"):
    """Where one expert's labels stand, and what a run would do."""

    tracked: str = Field(description="revision the configuration resolves to now")
    accepted: str | None = Field(description="revision the table's labels are to have; None as long as no row has any")
    imported: str | None = Field(None, description="name of the file, where the accepted labels are somebody's own: no model is asked")
    unresolved: str | None = Field(None, description="why the configured model cannot be looked up; the accepted labels stay")
    target: str = Field(description="revision a run would label with")
    stored: dict[str, int] = Field(description="revision → rows that have its labels; '' for rows without any")
    rejected: list[Rejected] = Field(description="revisions that were tried and refused, the latest last")
    stale: Work = Field(description="what `mtv label` would do, with the revision `target`")
    proposal: Work | None = Field(description="what accepting the tracked revision would take; None where it is the target")

    @property
    def num_stale(self) -> int:
        """Rows a run would label."""
        return self.stale.num_stale

    @property
    def proposed(self) -> bool:
        """Whether the configured expert waits for being accepted."""
        return self.tracked != self.target

    @property
    def refusal(self) -> Rejected | None:
        """That the tracked revision was refused before."""
        return next((one for one in self.rejected if one.revision == self.tracked), None)


def revisions(config: LabelConfig, table: Table | None = None) -> dict[str, str]:
    """Expert → revision the configuration resolves to now. Loads nothing.

    Args:
        config: the experts.
        table: whose labels are meant, if it is known: with `accept: gate` an expert that is not there is no mistake where the table has
            labels of an accepted one, whose revision is named instead. It may not exist yet.

    Raises:
        FileNotFoundError, ValueError, OSError: an expert is not there, has no weights, cannot be read, or its licence has to be accepted.
    """
    known = in_force(table, table.label_state()) if table is not None and table.exists() else {}
    return {name: one.revision for name, one in look_up(config, known).items()}


def plan(table_uri: str, config: LabelConfig, storage_options: Mapping[str, str] | None = None) -> dict[str, ExpertPlan]:
    """What a run would do, by expert; changes nothing.

    Raises:
        FileNotFoundError, ValueError, OSError: as `revisions`, or there is no table.
    """
    table = Table(table_uri, storage_options)
    state = table.label_state()
    accepted, rejected = in_force(table, state), table.rejected(state.dataset)
    plans = {}
    for name, one in look_up(config, accepted).items():
        tracked, known = one.revision, accepted[name].revision if name in accepted else None
        own = accepted[name].source["imported"] if name in accepted and is_imported(accepted[name]) else None
        target = known if known is not None and config.accept == "gate" else tracked
        plans[name] = ExpertPlan(
            tracked=tracked,
            accepted=known,
            imported=own["file"] if own else None,
            unresolved=one.unresolved,
            target=target,
            stored=state.counts(name),
            rejected=rejected.get(name, []),
            stale=estimate(table, _stale(state, name, target, own if target == known else None), config.price_per_hour),
            proposal=estimate(table, state.stale(name, tracked), config.price_per_hour) if tracked != target else None,
        )
    return plans


def _stale(state: LabelState, name: str, target: str, own: Mapping[str, Any] | None) -> StalePlan:
    """Rows to label; over labels that an import keeps, only those without any."""
    return state.unlabelled(name, target) if own and own["keep_others"] else state.stale(name, target)


def estimate(table: Table, stale: StalePlan, price_per_hour: float | None = None) -> Work:
    """What it takes to label what is stale, if it goes as the last run of the expert did; `price_per_hour` is of one worker."""
    rows, seconds, size, cost = stale.num_stale, None, None, None
    rate = rates.last(table, stale.expert, stale.revision) if rows else None
    if rows == 0:  # needs no measurement
        seconds, size, cost = 0.0, 0, 0.0 if price_per_hour is not None else None
    elif rate is not None:
        seconds = rows / rate.rows_per_second
        size = round(rows * rate.bytes_written / rate.rows)
        cost = None if price_per_hour is None else seconds / 3600 * rate.workers * price_per_hour
    return Work(
        revision=stale.revision,
        num_stale=rows,
        num_fragments=len(stale.fragments),
        seconds=seconds,
        bytes_to_write=size,
        cost=cost,
        rate=rate,
    )
