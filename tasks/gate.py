"""A person says in the Prefect UI whether a new revision of an expert replaces the old one's labels.

A flow that waits for a person is suspended: no process runs, no slot of the deployment is taken. Once it is answered Prefect starts the
flow again from the top, where it finds its canary by the key of the task, and the answer here. The answer stays with the flow run, so a
retry does not ask again. Nobody has answered in `label.gate.approval_timeout`: the run fails, and nothing has changed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import read_flow_run_input
from prefect.input.run_input import keyset_from_base_key
from pydantic import Field

from mtv_core.canary import Canary
from tasks.canary import question
from tasks.refresh import Answer
from tasks.run import Run


class Form(RunInput):
    """What the Prefect UI asks a person."""

    decision: Answer = Field(
        title="Decision",
        description="approve: it becomes the accepted revision, and all rows are labelled again with it. refuse: nothing changes, and this "
        "revision is not proposed again",
    )
    reason: str = Field("", title="Reason", description="kept in the table with a refusal, and with the run", max_length=1000)


def ask(run: Run, canary: Canary, artifact: str, why: str) -> Form:
    """What a person says of a canary. Suspends the flow run until it is answered.

    Args:
        run: whose configuration says how long the answer may take.
        canary: what is decided on.
        artifact: id of its page in Prefect.
        why: a person has to decide.

    Raises:
        ValueError: this is no run of a deployment.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        raise ValueError(
            f"{canary.expert} {canary.revision} waits for a person ({why}), who answers in the Prefect UI, so the run has to be one of the "
            "deployment mtv/refresh-labels; without a server use `mtv refresh --approve` or `--reject`"
        )
    key = f"{canary.expert}-{canary.revision}-{canary.accepted}"
    # Suspending twice under one key is refused by the server, but a retry of a failed run begins with no keys; its answer is still there.
    given: Any = read_flow_run_input(keyset_from_base_key(f"suspended-{key}")["response"], flow_run_id=context.flow_run.id)
    if given:
        return Form.model_validate(given)
    url, timeout = run.record.prefect_url, run.label_config.gate.approval_timeout
    until = datetime.now(UTC) + timedelta(seconds=timeout)
    run.record.message = f"waits until {until:%Y-%m-%d %H:%M} UTC for a person to approve or refuse {canary.expert} {canary.revision}" + (
        f": press Resume at {url}" if url else ""
    )
    shown = f"{url.partition('/runs/')[0]}/artifacts/artifact/{artifact}" if url else None
    form = Form.with_initial_data(description=question(canary, shown))
    return suspend_flow_run(wait_for_input=form, key=key, timeout=max(1, round(timeout)))
