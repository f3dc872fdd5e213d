"""Refresh, here and now: what is proposed is tried and decided on, then what is stale is labelled. Knows nothing of Prefect.

    plan → canary → gate → accept or refuse → relabel

Every step can be run again: a canary that is there is not made twice, what is accepted stays accepted, and labels that are not stale are
not made again. So a refresh that is killed anywhere ends as one that was not, when it is run again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import BaseModel

from mtv_core import canary as core
from mtv_core.canary import Canary
from mtv_core.canary_gate import undecided
from mtv_core.executor import Progress
from mtv_core.faults import fault_point
from mtv_core.labelling_plan import ExpertPlan
from mtv_core.report import StageRef
from tasks import label as label_stage
from tasks.cluster import on_demand
from tasks.run import Run

Answer = Literal["approve", "refuse"]  # of a person


class Decision(BaseModel, frozen=True, extra="forbid"):
    """What became of a canary."""

    expert: str
    revision: str
    verdict: Literal["accepted", "refused", "waiting"]
    reason: str


def plans(run: Run) -> dict[str, ExpertPlan]:
    """Where the labels stand, by expert. Changes nothing, loads no weights; raises as `mtv_core.labelling_plan.plan`."""
    from mtv_core import labelling_plan

    return labelling_plan.plan(run.table, run.label_config, run.config.table.storage_options)


def proposed(run: Run, *, names: Collection[str] | None = None, force: bool = False) -> list[str]:
    """The experts whose tracked revision waits for being accepted; arguments and errors as of `mtv_core.canary.try_out`."""
    return core.proposed(run.table, run.label_config, run.config.table.storage_options, force=force, names=names)


def seen(run: Run, *, names: Collection[str] | None = None, force: bool = False) -> list[Canary]:
    """The canaries that are there of what is proposed, even if rows were appended since: what a person has looked at.

    Arguments and errors as of `mtv_core.canary.try_out`.
    """
    return core.latest(run.table, run.label_config, run.config.table.storage_options, force=force, names=names)


def canaries(run: Run, progress: Progress, *, names: Collection[str] | None = None, force: bool = False) -> list[Canary]:
    """Try what is proposed. Without anything to try no cluster is started. Arguments and errors as of `mtv_core.canary.try_out`."""
    left = proposed(run, names=names, force=force)
    if not left:
        return []
    with on_demand(run.config.compute) as executor:
        return core.try_out(run.table, run.label_config, executor, progress, run.config.table.storage_options, force=force, names=left)


def why_a_person(run: Run, canary: Canary) -> str:
    """Why a person has to decide on a canary, and not the thresholds; empty if they can."""
    if run.label_config.gate.approval:
        return "label.gate.approval: a person decides"
    return f"{canary.reason}; what is measured does not tell, so a person decides" if undecided(canary.checks) else ""


def waiting(canary: Canary, why: str) -> Decision:
    """That nothing was decided."""
    return Decision(expert=canary.expert, revision=canary.revision, verdict="waiting", reason=why)


def decide(run: Run, canary: Canary, answer: Answer | None = None, reason: str = "") -> Decision:
    """Accept or refuse a canary's revision: as a person says, else as the thresholds do, unless `why_a_person`. Repeated, it does nothing.

    Args:
        run: whose `label.gate` is asked.
        canary: what was tried.
        answer: of a person; it counts more than the thresholds.
        reason: of a person.

    Raises:
        ValueError: the expert, or what is accepted, has changed since the canary.
        OSError: as `mtv_core.canary.accept` and `reject`.
    """
    options = run.config.table.storage_options
    if answer is None and (why := why_a_person(run, canary)):
        return waiting(canary, why)
    said = " ".join(reason.split())
    if answer == "approve" or (answer is None and canary.passed):
        core.accept(run.table, canary, run.label_config, options)
        fault_point("refresh.accepted")
        checks = f"although checks failed: {canary.reason}" if not canary.passed else f"{len(canary.checks)} checks passed"
        by_person = f"by a person{f' ({said})' if said else ''}, " if answer else ""
        return Decision(expert=canary.expert, revision=canary.revision, verdict="accepted", reason=f"{by_person}{checks}")
    said = f"by a person: {said or 'no reason given'}" if answer else canary.reason
    core.reject(run.table, canary, said, options)
    return Decision(expert=canary.expert, revision=canary.revision, verdict="refused", reason=said)


def relabel(run: Run, progress: Progress) -> StageRef:
    """Label what is stale and tag the table; where nothing is, no cluster is started and no weights are loaded. Raises as `mtv label`."""
    return label_stage.label(run, "", progress)


def changed(ref: StageRef) -> bool:
    """Whether a relabelling labelled anything."""
    return bool(ref.report.rows_out or ref.report.rows_rejected)


def refusals(plans: dict[str, ExpertPlan], names: Sequence[str] | None) -> list[str]:
    """Why tracked revisions are not proposed again, a line each."""
    return [
        f"{name}: revision {one.tracked} was refused on {one.refusal.at[:10]} ({one.refusal.reason}); --force tries it again"
        for name, one in plans.items()
        if one.refusal is not None and (names is None or name in names)
    ]
