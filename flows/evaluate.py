"""`mtv/evaluate`: measure a model that is already trained."""

from __future__ import annotations

from typing import Any

from prefect import flow

from mtv_core import runs
from mtv_core.config import resolve_values, set_fields
from mtv_core.evaluation.config import EvaluateConfig
from tasks import stages
from tasks.run import open_run


@flow(name="mtv", description="Evaluate the model of a run.")
def evaluate(run_id: str | None = None, evaluate: EvaluateConfig | None = None, overrides: dict[str, Any] | None = None) -> str:
    """Run the protocols on the model of a run, and record what they say. Returns the id of the new run.

    Args:
        run_id: as in `mtv runs`; the latest that trained a model by default.
        evaluate: which protocols, on how much.
        overrides: dotted key → value.
    """
    record = runs.latest_with("train", run_id)
    trained = record.stages["train"].ref
    assert trained is not None
    layers = [(f"run {record.run_id}", record.config), ("parameter", set_fields({"evaluate": evaluate}))]
    with open_run(resolve_values(layers, overrides), "evaluate") as run:
        stages.evaluate(run, trained)
        return run.run_id


if __name__ == "__main__":
    evaluate()
