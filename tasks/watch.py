"""Watch: which experts have changed since a table accepted them, and whether a refresh is at it already.

What is compared is the table with the experts as they are now, never with what was seen last time. So each look makes up for events that
were lost while the server was down, and for refreshes that died half-way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from mtv_core import experts as core
from mtv_core.experts import source
from mtv_core.experts.config import ExpertConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.report import plain
from mtv_core.settings import resolve
from mtv_core.store import locks
from mtv_core.store.accepted import Accepted, Rejected
from mtv_core.store.label_state import LabelState
from mtv_core.store.table import Table
from tasks import experts

EVENT = "mtv.expert.updated"
FLOW, REFRESH = "mtv", "refresh-labels"
_LOOKED_AT = 200  # unfinished refreshes, the latest; Prefect gives no more at once


class ExpertUpdate(BaseModel, frozen=True, extra="forbid"):
    """What started a refresh by itself: an expert whose revision is another than the labels'."""

    expert: str = Field(description="the only expert that is looked at")
    revision: str = Field(description="its revision when the event was sent; if it is another by now, that one is tried")
    accepted: str = Field("", description="the revision that the table accepted then")


@dataclass
class Look:
    """What one look at a table found, by expert."""

    updates: list[ExpertUpdate] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # experts that could not be looked up


def look(uri: str, config: LabelConfig, storage_options: Mapping[str, str] | None = None, *, pinned: bool = False) -> Look:
    """Compare the experts with a table. Loads no weights and changes nothing; one that cannot be looked up does not hide the others.

    Args:
        uri: of the table.
        config: names the experts, registered models too.
        storage_options: of the table.
        pinned: announce also experts that cannot change by themselves: the configuration names another one than the table accepted.

    Raises:
        FileNotFoundError: there is no table.
    """
    table, found = Table.open(uri, storage_options), Look()
    state = table.label_state()
    accepted, rejected = table.accepted(state.dataset), table.rejected(state.dataset)
    for name, expert in config.experts().items():
        known = accepted.get(name)
        if known is None:
            found.said[name] = "the table has no labels of it yet: the first labelling accepts what is configured"
            continue
        if "imported" in known.source:
            found.said[name] = f"its labels were imported ({known.source['model']}), and no model replaces them by itself"
            continue
        try:
            revision = core.revision(name, experts.fetched(expert))
        except (ValueError, OSError) as error:
            found.problems.append(f"{name}: {plain(error)}")
            continue
        found.said[name], announce = _compare(table, state, expert, revision, known, rejected.get(name, []), name, pinned)
        if announce:
            found.updates.append(ExpertUpdate(expert=name, revision=revision, accepted=known.revision))
    return found


def _compare(
    table: Table, state: LabelState, expert: ExpertConfig, revision: str, known: Accepted, rejected: list[Rejected], name: str, pinned: bool
) -> tuple[str, bool]:
    """What there is to say, and whether it is to be announced."""
    if revision == known.revision:
        behind = sum(rows for stored, rows in state.counts(name).items() if stored not in ("", revision))
        if not behind:
            return f"revision {revision}, as accepted", False
        if writers := locks.at_work(table):
            return f"{behind} rows have labels of earlier revisions, and {writers[0]} is at work", False
        return f"revision {revision} is accepted, but {behind} rows have labels of earlier ones: a refresh ended half-way", True
    refused = next((one for one in rejected if one.revision == revision), None)
    if refused is not None:
        return f"revision {revision} was refused on {refused.at[:10]} ({refused.reason}); `mtv refresh --force` tries it again", False
    if is_pinned(expert) and not pinned:
        return f"the configuration names {expert.model}, revision {revision}, accepted is {known.revision}: `mtv refresh` tries it", False
    return f"revision {revision}, accepted is {known.revision}", True


def is_pinned(expert: ExpertConfig) -> bool:
    """Whether what is configured stays what it is: an embedded expert, a commit of the hub, a version of a registered model."""
    if expert.model.startswith(experts.REGISTRY):
        return "@" not in expert.model
    return expert.model.startswith(source.BLOCKS) or re.fullmatch(r"[0-9a-f]{40}", expert.revision) is not None


def unfinished(table: str, update: ExpertUpdate, but: UUID | None = None) -> str | None:
    """The refresh that this very update has started and that has not ended: it waits, works, or is suspended until a person answers.

    Args:
        table: absolute URI.
        update: which one.
        but: a flow run that asks for itself: only those that were there before it count, and of these only those that have begun.

    Returns:
        'NAME (Suspended)', None if there is none.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterName,
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    begun = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
    wanted = begun if but else [StateType.SCHEDULED, *begun]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[REFRESH])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=wanted))),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_LOOKED_AT,
        )
    me = next((run for run in runs if run.id == but), None)
    for run in runs:
        earlier = me is None or (run.created is not None and me.created is not None and (run.created, run.id) < (me.created, me.id))
        if run.id != but and earlier and _is_of(run.parameters, table, update):
            return f"{run.name} ({run.state_name})"
    return None


def _is_of(parameters: Mapping[str, Any], table: str, update: ExpertUpdate) -> bool:
    given, where = parameters.get("update"), parameters.get("table")
    if not isinstance(given, Mapping) or not isinstance(where, Mapping):
        return False
    return (given.get("expert"), given.get("revision")) == (update.expert, update.revision) and resolve(str(where.get("uri"))) == table
