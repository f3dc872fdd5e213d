"""Refusals tried again: those of ingest from their shards, those of an expert by labelling their rows once more."""

from __future__ import annotations

import re
from collections.abc import Collection

import pyarrow as pa

from mtv_core.data.sources import FORMATS
from mtv_core.data.sources.base import ShardRef
from mtv_core.data.sources.config import SourceConfig
from mtv_core.executor import Progress
from mtv_core.report import StageRef
from mtv_core.settings import home
from mtv_core.store.ledger import LedgerEntry
from mtv_core.store.table import Table
from tasks import ingest as ingest_stage
from tasks import label as label_stage
from tasks.cluster import connect
from tasks.run import Run


def sources_of(table: Table, reasons: Collection[str]) -> list[SourceConfig]:
    """The files that refused samples came from, as the table's ledger names them. Looks at the table only.

    Args:
        table: with the refusals.
        reasons: names of errors, those that are tried again.

    Raises:
        ValueError: the ledger does not say how they are read: parts of folders, columns that were named, names with wildcards.
    """
    chosen = table.rejects.samples_to_retry("ingest", reasons)
    entries = [entry for entry in table.ledger.latest().values() if entry.shard in chosen]
    if not entries:
        raise ValueError(
            f"the shards of these refusals changed since, or are not in the ledger of {table.uri}; `mtv ingest` reads them again"
        )
    names: dict[str, str] = {}
    if table.exists():
        for batch in Table.at(table.uri, storage_options=table.storage_options).scan(["shard", "source"]):
            pairs = pa.Table.from_batches([batch]).group_by(["shard", "source"], use_threads=False).aggregate([])
            names |= dict(zip(pairs["shard"].to_pylist(), pairs["source"].to_pylist(), strict=True))
    return [_source_of(entry, names.get(entry.shard)) for entry in sorted(entries, key=lambda entry: entry.uri)]


def _source_of(entry: LedgerEntry, name: str | None) -> SourceConfig:
    why = None
    if "#part-" in entry.uri:
        why = "is a part of a folder"
    elif re.search(r"[*?\[\]{}]", entry.uri):
        why = "has a name that would be taken for a pattern"
    # Renderings look alike and none is a copy: see `near_duplicates` in the presets that draw them.
    drawn = entry.uri.startswith(f"{home() / 'blocks'}/")
    formats = ["auto"] if entry.reading is None else [form for form in FORMATS if _reading(entry, form) == entry.reading]
    if why is None and not formats:
        why = "was read with columns that were named"
    if why is not None:
        raise ValueError(
            f"{entry.uri} {why}, which the table does not know how to find again: name its source with --sources, or by a YAML preset"
        )
    return SourceConfig.model_validate({"uri": entry.uri, "format": formats[0], "name": name, "near_duplicates": not drawn})


def _reading(entry: LedgerEntry, form: str) -> str:
    return ShardRef(entry.uri, entry.identity, entry.size, "", form).reading


def ingest(run: Run, reasons: Collection[str] | None, progress: Progress) -> StageRef:
    """Read refused samples again, with the limits that hold now."""
    from mtv_core import ingest as core

    options = run.config.table.storage_options
    with connect(run.config.compute) as executor:
        sources = [ingest_stage.made(source, executor, progress) for source in run.config.sources]
        result = core.retry(sources, run.table, run.config.ingest, executor, reasons=reasons, progress=progress, storage_options=options)
    return ingest_stage.ref_of(run, result)


def label(run: Run, expert: str, reasons: Collection[str] | None, progress: Progress) -> StageRef:
    """Label refused rows again."""
    from mtv_core import labelling_retry

    with connect(run.config.compute) as executor:
        result = labelling_retry.retry(
            run.table,
            run.label_config,
            executor,
            stage=expert,
            reasons=reasons,
            progress=progress,
            storage_options=run.config.table.storage_options,
        )
    return label_stage.ref(run, result.version, result.tag, result.revisions, result.report)
