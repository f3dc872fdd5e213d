"""`mtv/watch-experts`: look whether an expert has changed, and say so as an event."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.events import emit_event

from mtv_core.config import resolve_config, table_uri
from mtv_core.data.sources.config import SourceConfig
from mtv_core.store.config import TableConfig

EVENT = "mtv.expert.updated"


@flow(name="mtv", description="Compare the experts' revisions with the accepted ones.")
def watch_experts(
    sources: str | list[str | SourceConfig] | None = None,
    table: TableConfig | None = None,
    preset: str = "demo",
) -> list[str]:
    """Emit `mtv.expert.updated` for each expert whose current revision is not the one the table accepted. Returns their names.

    Comparing with the table, and not with what was seen last time, makes up for events that were lost while the server was down.

    Args:
        sources: only says which table, when `table.uri` is 'auto'.
        table: which table.
        preset: names the experts; the refresh that the event starts uses the same one.
    """
    from mtv_core import labelling
    from mtv_core.store.table import Table

    logger = get_run_logger()
    config = resolve_config(preset, {"sources": sources, "table": table}).config
    uri = table_uri(config)
    try:
        accepted = Table.open(uri, config.table.storage_options).accepted()
    except FileNotFoundError:
        logger.info("there is no table at %s yet, so nothing is stale", uri)
        return []
    changed = []
    for expert, revision in labelling.revisions(config.label).items():
        if expert not in accepted:
            logger.info("%s: the table has no labels of it yet", expert)
            continue
        before = accepted[expert].revision
        if revision == before:
            logger.info("%s: revision %s, as accepted", expert, revision)
            continue
        changed.append(expert)
        logger.info("%s: revision %s, accepted is %s", expert, revision, before)
        emit_event(
            event=EVENT,
            resource={"prefect.resource.id": f"mtv.expert.{expert}", "prefect.resource.name": expert, "mtv.table": uri},
            payload={"expert": expert, "table": uri, "revision": revision, "accepted": before, "preset": preset},
        )
    return changed


if __name__ == "__main__":
    watch_experts()
