"""Label: experts write depth and boxes where labels are missing or stale; the result gets a tag."""

from __future__ import annotations

from PIL import Image

from mtv_core.config import PipelineConfig, table_uri
from mtv_core.executor import Progress
from mtv_core.report import StageRef, StageReport
from mtv_core.store import tombstones
from mtv_core.store.table import Table
from tasks import experts
from tasks.cluster import on_demand
from tasks.run import Run, stage_key

VERSION = 1
GALLERY = 12


def check(config: PipelineConfig) -> None:
    """Look the experts up without loading them; where the table has labels of accepted ones, these will do.

    Raises:
        FileNotFoundError, ValueError: an expert is not there, has no weights, or a licence that has to be accepted.
        ConnectionError: a model registry that is needed does not answer.
    """
    from mtv_core import labelling

    table = Table.create_or_open(table_uri(config), config.table.storage_options)
    labelling.revisions(experts.resolved(config.label), table)


def key(run: Run, ingested: StageRef) -> str:
    """Depends on the rows, on what the experts would say now, and on what is accepted: a new expert, missing labels."""
    from mtv_core import labelling

    config = run.label_config
    table = Table.create_or_open(run.table, run.config.table.storage_options)
    return stage_key(
        "label", VERSION, table=run.table, version=ingested.version, revisions=labelling.revisions(config, table),
        accept=config.accept, allow_mixed=config.allow_mixed,
    )  # fmt: skip


def label(run: Run, key: str, progress: Progress) -> StageRef:
    """Label what is stale and tag the table. Where nothing is, no cluster is started."""
    from mtv_core import labelling

    with on_demand(run.config.compute) as executor:
        result = labelling.run(run.table, run.label_config, executor, progress, run.config.table.storage_options)
    return ref(run, result.version, result.tag, result.revisions, result.report)


def as_it_is(run: Run) -> StageRef:
    """The table's rows as they are, for a refresh that ingests nothing.

    Raises:
        FileNotFoundError: there is no table.
    """
    table = Table.open(run.table, run.config.table.storage_options)
    return StageRef(stage="ingest", run_id=run.run_id, uri=run.table, version=table.version)


def current(run: Run, tag: str | None = None) -> StageRef:
    """The labels as they are, for a stage that is run by itself: a tag that exists, or one of the table as it stands.

    Raises:
        FileNotFoundError: no table, or no such tag.
        ValueError: rows wait for their labels.
    """
    table = Table.open(run.table, run.config.table.storage_options)
    if tag is not None:
        if tag not in table.tags():
            raise tombstones.missing(table, tag)
        return ref(run, table.tags()[tag], tag, table.tag_revisions(tag))
    revisions = {expert: accepted.revision for expert, accepted in table.accepted().items()}
    name = table.tag(revisions)
    return ref(run, table.tags()[name], name, revisions)


def ref(run: Run, version: int, tag: str | None, revisions: dict[str, str], report: StageReport | None = None) -> StageRef:
    """A labelled version, for the stages after it."""
    return StageRef(
        stage="label", run_id=run.run_id, uri=run.table, version=version, tag=tag, revisions=revisions, report=report or StageReport()
    )


def valid(run: Run, ref: StageRef) -> bool:
    """Whether the labels a reused result points to are still the table's latest state: a refresh or new rows supersede them."""
    try:
        table = Table.open(ref.uri, run.config.table.storage_options)
    except FileNotFoundError:
        return False
    return table.version == ref.version and ref.tag in table.tags()


def gallery(run: Run, ref: StageRef) -> Image.Image | None:
    """A picture of some labels, kept in the run folder too."""
    from mtv_core import viz

    view = Table.at(ref.uri, version=ref.version, storage_options=run.config.table.storage_options)
    if view.num_rows == 0:
        return None
    count = min(GALLERY, view.num_rows)
    indices = [position * view.num_rows // count for position in range(count)]
    columns = ["uid", "image", "caption", *(name for expert in ref.revisions for name in _columns(expert))]
    picture = viz.gallery(view.take(indices, columns))
    folder = run.folder / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").save(folder / "labels.jpg", quality=90)
    return picture


def _columns(expert: str) -> list[str]:
    from mtv_core.data.schema import LABELS

    return list(LABELS[expert].names)
