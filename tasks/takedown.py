"""Takedown: samples out of a table for good; and where copies and traces of them may be, which nobody removes by himself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from mtv_core.config import PipelineConfig, table_uri
from mtv_core.executor import Progress
from mtv_core.ingest_config import IngestConfig
from mtv_core.runs import RunRecord
from mtv_core.store import exports, takedown, takedown_runs
from mtv_core.store.exports import ExportRecord
from mtv_core.store.table import Table
from mtv_core.store.takedown_journal import Journal
from mtv_core.store.takedown_request import Request
from mtv_core.store.takedown_runs import RunUse
from tasks import tracking
from tasks.tracking import Trace

_PAGE = 200  # the server gives no more at once
_PICTURE_INSIDE = "data:image/"


def forget(table: Table, request: Request, reason: str, ingest: IngestConfig, progress: Progress) -> list[Journal]:
    """Take samples down, and write the table's card anew. Raises as `mtv_core.store.takedown.run`."""
    journals = takedown.run(table, request, reason, progress)
    _refresh(table, ingest)
    return journals


def resume(table: Table, ingest: IngestConfig, progress: Progress) -> list[Journal]:
    """Finish takedowns that were killed. Raises as `mtv_core.store.takedown.run`."""
    journals = takedown.resume(table, progress)
    if journals:
        _refresh(table, ingest)
    return journals


def _refresh(table: Table, ingest: IngestConfig) -> None:
    """The dataset card has numbers of rows that are gone."""
    if table.exists() and table.files.exists("README.md"):
        from mtv_core import ingest_report

        ingest_report.refresh_card(table, ingest)


@dataclass(frozen=True)
class Preview:
    """A Prefect artifact that shows pictures."""

    id: str
    key: str
    description: str
    flow_run_id: str


@dataclass
class Traces:
    """Where rows that are taken down have been, outside the table. `problems` says who could not be asked."""

    runs: list[RunUse] = field(default_factory=list)
    exports: list[ExportRecord] = field(default_factory=list)  # datasets that `mtv data export` wrote
    mlflow: list[Trace] = field(default_factory=list)
    prefect: list[Preview] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def traces(table: Table, tags: dict[str, int], prefect_api: str | None) -> Traces:
    """Runs made from tags (tag → rows of it that go); exports of those, and of versions that nobody gave a name; and all pictures of the
    table that runs and Prefect keep. An ingest shows rows before there is any tag, and refused ones too: nobody can tell whose they are.

    Asks the servers that answer, and changes nothing.
    """
    found = Traces(exports=[record for record in exports.read_all(table) if record.tag is None or record.tag in tags])
    used = takedown_runs.uses(table.uri, tags, _configured)
    found.runs, found.problems = used.runs, [*exports.problems(table), *used.problems]
    if tags:
        try:
            ids = [use.mlflow_run_id for use in found.runs if use.mlflow_run_id and use.tags]
            found.mlflow = tracking.traces(table.uri, sorted(tags), ids)
        except Exception as error:  # whatever is wrong with it, the takedown goes on
            found.problems.append(f"MLflow could not be asked: {error}")
    if used.flow_runs:
        try:
            for first in range(0, len(used.flow_runs), _PAGE):
                found.prefect += previews(prefect_api, used.flow_runs[first : first + _PAGE])
        except Exception as error:
            found.problems.append(f"Prefect could not be asked about {len(used.flow_runs)} flow runs: {error}")
    return found


def _configured(record: RunRecord) -> str | None:
    try:
        return table_uri(PipelineConfig.model_validate(record.config))
    except ValueError:  # of another version: what its stages say counts
        return None


def previews(prefect_api: str | None, flow_run_ids: Sequence[str]) -> list[Preview]:
    """Artifacts of flow runs that are pictures, or texts with pictures inside.

    Raises:
        ConnectionError: no server is known. What the client raises: it does not answer.
    """
    if prefect_api is None:
        raise ConnectionError("no server is known: `mtv up` starts one here, PREFECT_API_URL names another")
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
    from prefect.settings import PREFECT_API_URL, temporary_settings

    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id) for flow_run_id in flow_run_ids]),
        type=ArtifactFilterType(any_=["image", "markdown"]),
    )
    found: list[Preview] = []
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        offset = 0
        while page := client.read_artifacts(artifact_filter=wanted, limit=_PAGE, offset=offset):
            offset += len(page)
            found += [
                Preview(str(artifact.id), artifact.key or "", artifact.description or "", str(artifact.flow_run_id))
                for artifact in page
                if artifact.type == "image" or _PICTURE_INSIDE in str(artifact.data)
            ]
    return found
