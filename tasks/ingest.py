"""Ingest: shards → rows and refusals, spread over the Dask cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mtv_core.blocks.shards import materialise, parse_uri
from mtv_core.data import decontaminate
from mtv_core.data.sources import ShardRef, expand, source_name
from mtv_core.data.sources.config import SourceConfig
from mtv_core.executor import Executor, Progress
from mtv_core.report import StageRef
from mtv_core.settings import home
from mtv_core.store.ledger import LedgerEntry
from mtv_core.store.table import Table
from tasks import reports
from tasks.cluster import connect
from tasks.run import Run, stage_key

if TYPE_CHECKING:
    from mtv_core.ingest import IngestResult

VERSION = 1  # raise it when the same input gives other rows


def _shards(run: Run) -> list[ShardRef]:
    """The shards as they are now; those of blocks are left out, a URI says itself what is in them."""
    sources = [source for source in run.config.sources if not source.uri.startswith("blocks://")]
    return [shard for source in sources for shard in expand(source, run.config.table.storage_options)]


def key(run: Run) -> str:
    """Depends on the shards as they are now (a new or changed file is a new key), on the evaluation sets likewise.

    The table and how images are read count too.
    """
    shards = [[shard.uri, shard.identity] for shard in _shards(run)]
    shards += [[source.uri, ""] for source in run.config.sources if source.uri.startswith("blocks://")]
    config, options = run.config.ingest, run.config.table.storage_options
    todo = decontaminate.jobs(config.decontaminate.sets, run.table, config.limits(), config.max_bytes, options)
    evaluation = sorted([job.shard.uri, job.shard.identity] for job in todo)
    document = config.model_dump(mode="json")
    return stage_key("ingest", VERSION, table=run.table, shards=sorted(shards), evaluation=evaluation, config=document)


def ingest(run: Run, key: str, progress: Progress) -> StageRef:
    """Bring into the table what is not in it yet."""
    from mtv_core import ingest as core

    with connect(run.config.compute) as executor:
        sources = [made(source, executor, progress) for source in run.config.sources]
        result = core.run(sources, run.table, run.config.ingest, executor, progress, run.config.table.storage_options)
    return ref_of(run, result)


def ref_of(run: Run, result: IngestResult) -> StageRef:
    """What an ingest or a retry hands on. The run keeps copies of its report."""
    files = {f"{reports.PREFIX}{name}": uri for name, uri in result.files.items()}
    ref = StageRef(
        stage="ingest",
        run_id=run.run_id,
        uri=run.table,
        version=result.version,
        report=result.report,
        metrics={"ingest/rows": float(result.rows)},
        outputs=files | ({"notes": "\n".join(result.notes)} if result.notes else {}),
    )
    reports.keep(ref, run.folder, run.config.table.storage_options)
    return ref


def valid(run: Run, ref: StageRef) -> bool:
    """Whether a reused result is still so: the version is there, and the ledger has every shard.

    A shard that could not be read, or that killed its worker, is not in the ledger: it is tried again. Where content is to be compared,
    nothing is known before it was.
    """
    if run.config.ingest.verify == "content":
        return False
    try:
        table = Table.open(ref.uri, run.config.table.storage_options)
    except FileNotFoundError:
        return False
    if ref.version is None or not table.version_exists(ref.version):
        return False
    known = table.ledger.latest()
    made = [source for source in run.config.sources if source.uri.startswith("blocks://")]
    if any(not _drawn(source, known) for source in made):
        return False
    return all(_done(shard, known) for shard in _shards(run))


def _done(shard: ShardRef, known: Mapping[str, LedgerEntry]) -> bool:
    return shard.uri in known and known[shard.uri].is_of(shard)


def _drawn(source: SourceConfig, known: Mapping[str, LedgerEntry]) -> bool:
    """Whether the shards of blocks are there and in the ledger."""
    folder = home() / "blocks" / parse_uri(source.uri).key()
    try:
        return all(_done(shard, known) for shard in expand(source.model_copy(update={"uri": str(folder)})))
    except FileNotFoundError:
        return False


def made(source: SourceConfig, executor: Executor, progress: Progress) -> SourceConfig:
    """A source of blocks, drawn and written as ordinary shards; any other as it is."""
    if not source.uri.startswith("blocks://"):
        return source
    made = materialise(source.uri, home(), executor, progress)
    return source.model_copy(update={"uri": made, "name": source_name(source)})
