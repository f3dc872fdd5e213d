"""`mtv/watch-experts`: look whether an expert has changed, and say so as an event."""

from __future__ import annotations

from typing import Any

from prefect import State, flow, get_run_logger
from prefect.events import emit_event
from prefect.states import Completed

from mtv_core.config import resolve_config, table_uri
from mtv_core.data.sources.config import SourceConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.config import TableConfig


@flow(name="mtv", description="Compare the experts' revisions with the accepted ones.")
def watch_experts(
    sources: str | list[str | SourceConfig] | None = None,
    table: TableConfig | None = None,
    label: LabelConfig | None = None,
    preset: str = "demo",
    overrides: dict[str, Any] | None = None,
    pinned: bool = False,
) -> State[list[str]]:
    """Emit `mtv.expert.updated` for each expert whose current revision is not the one the table accepted.

    The message of the state says how each expert stands, its data are the names of those that were announced.

    Comparing with the table, and not with what was seen last time, makes up for events that were lost while the server was down. A revision
    that was refused is passed over, and so is one for which a refresh is waiting, working, or suspended until somebody answers.

    Args:
        sources: only says which table, when `table.uri` is 'auto'.
        table: which table.
        label: the experts, and how a new revision is tried; the refresh gets all of it.
        preset: values to start from; the refresh that the event starts uses the same ones.
        overrides: dotted key → value; the refresh gets them too.
        pinned: announce experts as well that cannot change by themselves (blocks:…, a commit): the configuration names another one.
    """
    from tasks import watch

    config = resolve_config(preset, {"sources": sources, "table": table, "label": label}, overrides).config
    uri = table_uri(config)
    try:
        found = watch.look(uri, config.label, config.table.storage_options, pinned=pinned)
    except FileNotFoundError:
        return Completed(message=f"there is no table at {uri} yet, so nothing is stale", data=list[str]())
    said = dict(found.said)
    announced = []
    for update in found.updates:
        if waiting := watch.unfinished(uri, update):
            said[update.expert] += f"; the refresh {waiting} is about it, so it is not announced again"
            continue
        said[update.expert] += "; announced"
        announced.append(update.expert)
        emit_event(
            event=watch.EVENT,
            resource={"prefect.resource.id": f"mtv.expert.{update.expert}", "prefect.resource.name": update.expert, "mtv.table": uri},
            payload={
                "update": update.model_dump(mode="json"),
                "preset": preset,
                "sources": [source.model_dump(mode="json") for source in config.sources],
                "table": {**config.table.model_dump(mode="json"), "uri": uri},
                "label": config.label.model_dump(mode="json"),
                "overrides": overrides or {},
            },
        )
    message = "; ".join(f"{expert}: {line}" for expert, line in said.items())
    get_run_logger().info("%s: %s", uri, message)
    if found.problems:
        raise ValueError("; ".join(["cannot be looked up", *found.problems]))
    return Completed(message=message, data=announced)


if __name__ == "__main__":
    watch_experts()
