"""Who says whether a new revision of an expert replaces the old one's labels: the thresholds, or a person in the Prefect UI.

A flow that waits for a person is suspended: no process runs, no slot of the deployment is taken. Once it is answered Prefect starts the
flow again from the top, where it finds its canary by the key of the task, and the answer here. The answer stays with the flow run, so a
retry does not ask again. Nobody has answered in `label.gate.approval_timeout`: the run fails, and nothing has changed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from pydantic import Field

from mtv_core import canary as core
from mtv_core.canary import Canary
from mtv_core.report import StageRef
from tasks.canary import question
from tasks.run import Run

ACCEPTED, REFUSED = "accepted", "refused"


class Decision(RunInput):
    """The form that the Prefect UI shows."""

    decision: Literal["approve", "refuse"] = Field(
        title="Decision",
        description="approve: it becomes the accepted revision, and all rows are labelled again with it. refuse: nothing changes, and this "
        "revision is not proposed again",
    )
    reason: str = Field("", title="Reason", description="kept in the table with a refusal, and with the run", max_length=1000)


def decide(run: Run, canary: Canary, artifact: str) -> tuple[bool, str]:
    """Whether the revision is accepted, and why. Suspends the flow run where a person has to say it.

    Args:
        run: whose configuration says who decides.
        canary: what is decided on.
        artifact: id of its page in Prefect.

    Raises:
        ValueError: a person has to say it, and this is no run of a deployment.
    """
    gate = run.label_config.gate
    if not gate.approval:
        return canary.passed, canary.reason or f"{len(canary.checks)} checks passed on {canary.rows} rows"
    answer = _ask(run, canary, artifact, gate.approval_timeout)
    reason = " ".join(answer.reason.split()) or "no reason given"
    return answer.decision == "approve", f"by a person: {reason}"


def apply(run: Run, canary: Canary, accepted: bool, reason: str) -> StageRef:
    """Write the decision into the table. Repeated, it does nothing.

    Raises:
        ValueError: the expert, or what is accepted, has changed since the canary.
    """
    options = run.config.table.storage_options
    if accepted:
        core.accept(run.table, canary, run.label_config, options)
    else:
        core.reject(run.table, canary, reason, options)
    verdict = ACCEPTED if accepted else REFUSED
    outputs = {"expert": canary.expert, "revision": canary.revision, "verdict": verdict, "reason": reason, "page": canary.page}
    return StageRef(stage="gate", run_id=run.run_id, uri=run.table, outputs=outputs)


def _ask(run: Run, canary: Canary, artifact: str, timeout: float) -> Decision:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        raise ValueError(
            "label.gate.approval waits for a person in the Prefect UI, so the run has to be one of the deployment mtv/refresh-labels; "
            "without a server use `mtv refresh --approve` or `--reject`"
        )
    key = f"{canary.expert}-{canary.revision}-{canary.accepted}"
    # Suspending twice under one key is refused by the server, but a retry of a failed run begins with no keys; its answer is still there.
    given: Any = read_flow_run_input(keyset_from_base_key(f"suspended-{key}")["response"], flow_run_id=context.flow_run.id)
    if given:
        return Decision.model_validate(given)
    url = run.record.prefect_url
    until = datetime.now(UTC) + timedelta(seconds=timeout)
    run.record.message = f"waits until {until:%Y-%m-%d %H:%M} UTC for a person to approve or refuse {canary.expert} {canary.revision}" + (
        f": press Resume at {url}" if url else ""
    )
    shown = f"{url.partition('/runs/')[0]}/artifacts/artifact/{artifact}" if url else None
    form = Decision.with_initial_data(description=question(canary, shown))
    return suspend_flow_run(wait_for_input=form, key=key, timeout=max(1, round(timeout)))
