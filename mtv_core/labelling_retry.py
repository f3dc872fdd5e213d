"""Label what an expert failed on once more, after a fix of the expert or of where it runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from mtv_core import labelling
from mtv_core.data.schema import REJECTS
from mtv_core.executor import Executor, Progress, silent
from mtv_core.label_import import IMPORTED
from mtv_core.labelling import LabelResult
from mtv_core.labelling_config import LabelConfig
from mtv_core.store import locks
from mtv_core.store.rejects import Selection
from mtv_core.store.reopen import fates, reopen
from mtv_core.store.table import Table


def retry(
    table_uri: str,
    config: LabelConfig,
    executor: Executor,
    *,
    stage: str,
    reasons: Collection[str] | None = None,
    progress: Progress = silent,
    storage_options: Mapping[str, str] | None = None,
) -> LabelResult:
    """Make refused rows stale again and label the table. What has a label now is refused no more; the others count one attempt more.

    A kill leaves rows stale with their refusals; called again, or after `mtv label`, it settles them.

    Args:
        table_uri: which table.
        config: as for `labelling.run`.
        executor: where the work is done.
        stage: the expert.
        reasons: names of errors; None: all of the expert.
        progress: told how far it is.
        storage_options: of the table.

    Raises:
        FileNotFoundError, ValueError, OSError: as `labelling.run`; or there are no such refusals, or they are of an import.
    """
    if stage not in config.experts():
        raise ValueError(f"there is no {stage} expert configured; set label.{stage}")
    table = Table.open(table_uri, storage_options)
    file = imported_from(table, stage)
    if file is not None:
        raise ValueError(own_labels(stage, file))
    selection = Selection(stage=stage, reasons=sorted(reasons or ()))
    batches = [batch for batch in table.rejects.select(selection) if batch.num_rows]
    rejects = pa.Table.from_batches(batches, REJECTS) if batches else REJECTS.empty_table()
    rejects = rejects.filter(pc.is_valid(rejects["uid"]))
    if not rejects.num_rows:
        raise ValueError(f"there are no such refusals in {table.uri}; `mtv failures` lists them by reason")
    uids = set(rejects["uid"].to_pylist())
    with locks.writing(table, "retry"):
        tried = reopen(table, stage, uids)
        progress(0, max(tried, 1), f"rows to label again, {len(uids) - tried} are labelled or wait already")
    try:
        return labelling.run(table_uri, config, executor, progress, storage_options)
    finally:
        _settle(table, stage, rejects, uids)


def imported_from(table: Table, stage: str) -> str | None:
    """The file that an expert's accepted labels were imported from, so no model tries them again. None: a model made them."""
    accepted = table.accepted().get(stage)
    return None if accepted is None or IMPORTED not in accepted.source else str(accepted.source[IMPORTED]["file"])


def own_labels(stage: str, file: str) -> str:
    """What to do about refusals of an import."""
    return f"the {stage} labels are imported from {file}, and no model tries them again: fix the file and import it again"


def _settle(table: Table, stage: str, rejects: pa.Table, uids: set[str]) -> None:
    done, refused = fates(table, stage, uids)  # what is stale keeps its refusal until somebody labels it
    rejects = rejects.filter(pc.is_in(rejects["uid"], value_set=pa.array(sorted(done | refused), pa.string())))
    keys: dict[str, list[str]] = {}
    for shard, key in zip(rejects["shard"].to_pylist(), rejects["key"].to_pylist(), strict=True):
        keys.setdefault(shard, []).append(key)
    with locks.committing(table):
        table.rejects.replace(keys, stage, rejects.filter(pc.is_in(rejects["uid"], value_set=pa.array(sorted(refused), pa.string()))))
