"""Rows that an expert failed on for good are made stale again, so that labelling tries them once more."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from mtv_core.data.schema import LABELS, label_schema
from mtv_core.store.dataset import quoted
from mtv_core.store.table import Table

_ROWS = 1 << 16  # of a scan for what is labelled


def reopen(table: Table, expert: str, uids: Collection[str]) -> int:
    """Make the rows of these uids stale whose label is missing under the accepted revision; returns how many. Others are left alone.

    Killed in between, some are stale already; the next labelling takes them.

    Raises:
        LabelConflictError: somebody labelled the same fragments meanwhile. Call it again.
    """
    accepted = table.accepted().get(expert)
    schema, dataset = label_schema(expert), table.dataset()
    column, label = f"{expert}_rev", LABELS[expert].names[0]
    if accepted is None or not uids or column not in dataset.schema.names:
        return 0
    wanted = pa.array(sorted(uids), pa.string())
    version, staged, reopened = int(dataset.version), [], 0
    for fragment in dataset.get_fragments():
        rows = table.read_fragment(version, fragment.fragment_id, ["uid", column])
        chosen = pc.and_(pc.is_in(rows["uid"], value_set=wanted), pc.equal(rows[column], accepted.revision))
        if not pc.any(chosen).as_py():
            continue
        labels = table.read_fragment(version, fragment.fragment_id, schema.names)
        refused = pc.fill_null(pc.and_(chosen, pc.is_null(labels[label])), False)
        number = pc.sum(refused).as_py() or 0
        if not number:
            continue
        # A label file carries one revision: labels of older ones are stale as it is, and go.
        kept = pc.and_(pc.fill_null(pc.equal(labels[column], accepted.revision), False), pc.invert(refused))
        columns = [pc.if_else(kept, labels[name], pa.scalar(None, schema.field(name).type)) for name in schema.names]
        batch = pa.table(columns, schema=schema)
        staged.append(table.stage_labels(expert, version, fragment.fragment_id, batch, (), accepted.revision))
        reopened += number
    if staged:
        table.commit_labels(staged)
    return reopened


def fates(table: Table, expert: str, uids: Collection[str]) -> tuple[set[str], set[str]]:
    """Those of the uids that need no label any more (they have one, or their row is gone), and those that are refused for good.

    The rest is stale.
    """
    accepted = table.accepted().get(expert)
    dataset = table.dataset()
    if accepted is None or f"{expert}_rev" not in dataset.schema.names:
        return set(), set()
    wanted = pa.array(sorted(uids), pa.string())
    without, refused = set[str](), set[str]()
    missing = f"{LABELS[expert].names[0]} is null or {expert}_rev is null or {expert}_rev <> {quoted([accepted.revision])}"
    for batch in dataset.scanner(columns=["uid", f"{expert}_rev"], filter=missing, batch_size=_ROWS).to_batches():
        rows = batch.filter(pc.is_in(batch["uid"], value_set=wanted))
        without |= set(rows["uid"].to_pylist())
        refused |= set(rows.filter(pc.equal(rows[f"{expert}_rev"], accepted.revision))["uid"].to_pylist())
    return set(uids) - without, refused
