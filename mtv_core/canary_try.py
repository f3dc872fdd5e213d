"""Some rows labelled aside by workers: which, what they come to, and what is written of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtv_core import canary_page, labelling_accept
from mtv_core.canary_gate import checks, figures
from mtv_core.canary_page import Picture
from mtv_core.canary_record import Canary, Proposal
from mtv_core.canary_rows import Row
from mtv_core.canary_worker import CanaryJob, CanaryPart, label_aside
from mtv_core.executor import Executor, Outcome, Progress
from mtv_core.experts import source
from mtv_core.faults import fault_point
from mtv_core.labelling_config import LabelConfig
from mtv_core.labelling_failures import ExpertUnavailableError
from mtv_core.labelling_plan import estimate
from mtv_core.store.table import Table
from mtv_core.store.view import View

SHOWN = 12  # rows of which a picture is drawn because they changed most, and as many by chance
_CHUNK = 32  # rows a worker gets at once, with their pictures and labels in memory
_BATCH = 1 << 16  # uids in memory at once


def choose(view: View, expert: str, accepted: str, count: int) -> list[int]:
    """Positions of `count` rows, those with labels of the accepted revision first, then by uid: a hash, so by chance, and always the same.

    One pass over uids and revisions; what is kept does not grow with the table.
    """
    column, first = f"{expert}_rev", 0
    order = [("other", "ascending"), ("uid", "ascending")]
    kept: pa.Table | None = None
    for batch in view.scan(["uid", column], batch_size=_BATCH):
        other = pc.fill_null(pc.not_equal(batch[column], accepted), True)
        position = pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))
        rows = pa.table({"uid": batch["uid"], "other": pc.cast(other, pa.int8()), "position": position})
        rows = rows if kept is None else pa.concat_tables([kept, rows])
        kept = rows.take(pc.select_k_unstable(rows, min(count, rows.num_rows), sort_keys=order)) if rows.num_rows else rows
        first += batch.num_rows
    return [] if kept is None else kept["position"].to_pylist()


class _Seen:
    """Rows as they come back, and the labels of those that are drawn."""

    def __init__(self, chance: Sequence[int]) -> None:
        self.chance = chance  # positions of rows that are drawn anyway
        self.rows: dict[int, Row] = {}  # by position
        self.labels: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}  # position → old, new
        self.changed: list[int] = []  # positions of the rows that changed most

    def take(self, part: CanaryPart) -> None:
        """More rows. Labels of rows that are not among the most changed any more are let go."""
        self.rows |= {row.position: row for row in part.rows}
        labels = zip(part.old.to_pylist(), part.new.to_pylist(), strict=True)
        self.labels |= {row.position: pair for row, pair in zip(part.rows, labels, strict=True)}
        most = [self.rows[position] for position in self.changed] + [row for row in part.rows if row.shift > 0]
        self.changed = [row.position for row in sorted(most, key=lambda row: (-row.shift, row.uid))[:SHOWN]]
        drawn = {*self.changed, *self.chance}
        self.labels = {position: pair for position, pair in self.labels.items() if position in drawn}


def label_some(
    table: Table, version: int, proposal: Proposal, key: str, config: LabelConfig, executor: Executor, progress: Progress
) -> Canary:
    """Label rows with the new expert, compare them with their old labels, and write what was found. Errors as of `canary.try_out`."""
    name, gate, view = proposal.name, config.gate, View(table.uri, version, table.storage_options)
    positions = choose(view, name, proposal.accepted.revision, gate.rows)
    seen = _Seen(positions[:SHOWN])
    done = 0
    progress(0, len(positions), f"{name}: rows labelled aside")
    outcomes = executor.map(
        label_aside, _jobs(table, version, proposal, config, positions), resources={"GPU": config.gpus} if config.gpus else None
    )
    try:
        for outcome in outcomes:
            seen.take(_result(outcome))
            done += len(outcome.item.positions)
            progress(done, len(positions), f"{name}: rows labelled aside")
    finally:
        close = getattr(outcomes, "close", None)
        if close is not None:
            close()  # cancels what is in flight when this loop is left early
    rows = [seen.rows[position] for position in positions]
    found = figures(name, rows)
    if 2 * found["rows_transient"] > len(rows):  # what passes is no reason to refuse, and the rest says too little
        message = next(row.message for row in rows if row.kind == "transient")
        raise ConnectionError(f"{found['rows_transient']:g} of {len(rows)} rows failed for now: {message}. Run `mtv refresh` again later")
    weights = source.resolve(proposal.config)
    state = table.label_state(version)
    made = checks(name, found, gate)
    drawn = _pictures(view, name, seen)
    canary = Canary(
        expert=name,
        revision=proposal.revision,
        accepted=proposal.accepted.revision,
        license=weights.license,
        accepted_license=str(proposal.accepted.source.get("license", "unknown")),
        model=proposal.config.model,
        accepted_model=str(proposal.accepted.source.get("model", "unknown")),
        version=version,
        rows=len(rows),
        figures=found,
        checks=made,
        passed=all(check.passed for check in made),
        work=estimate(table, state.stale(name, proposal.revision), config.price_per_hour),
        page=table.files.path(f"{proposal.folder}/canary.html"),
        pictures=[table.files.path(f"{proposal.folder}/{picture.name}") for picture in drawn],
        key=key,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _write(table, proposal.folder, canary, rows, drawn)
    return canary


def _jobs(table: Table, version: int, proposal: Proposal, config: LabelConfig, positions: Sequence[int]) -> list[CanaryJob]:
    imported = labelling_accept.is_imported(proposal.accepted)
    old = None if imported else labelling_accept.accepted_config(table, proposal.name, proposal.accepted, proposal.config)
    size = max(_CHUNK, config.batch_size)
    return [
        CanaryJob(
            table_uri=table.uri,
            storage_options=dict(table.storage_options),
            version=version,
            positions=tuple(positions[first : first + size]),
            expert=proposal.name,
            config=proposal.config,
            revision=proposal.revision,
            accepted=proposal.accepted.revision,
            old=old,
            batch_size=config.batch_size,
            threads=config.threads,
        )
        for first in range(0, len(positions), size)
    ]


def _result(outcome: Outcome[CanaryJob, CanaryPart]) -> CanaryPart:
    """What a worker found, or what to do about its failure: nothing is decided by a broken machine."""
    if outcome.result is not None:
        return outcome.result
    name, error = outcome.item.expert, outcome.error
    if outcome.killed:
        raise ValueError(
            f"the {name} expert {outcome.item.config.model} kills its worker process (out of memory? try a smaller label.batch_size or "
            "more compute.memory_limit); nothing was decided"
        )
    if isinstance(error, ExpertUnavailableError):
        raise ValueError(f"the {name} expert cannot be tried: {error}") from None
    assert error is not None
    raise error


def _pictures(view: View, name: str, seen: _Seen) -> list[Picture]:
    """The most changed rows first, then some by chance that are not among them."""
    changed = seen.changed
    order = [*changed, *(position for position in seen.chance if position not in changed)]
    if not order:
        return []
    drawn = []
    for index, values in enumerate(view.take(order, ["image", "caption"]).to_pylist()):
        row = seen.rows[order[index]]
        group = "changed" if index < len(changed) else "chance"
        number = index + 1 if index < len(changed) else index + 1 - len(changed)
        jpeg = canary_page.draw(name, values["image"], *seen.labels[row.position])
        drawn.append(Picture(f"{group}-{number:02d}.jpg", group, row.uid, values["caption"], row.said, jpeg))
    return drawn


def _write(table: Table, folder: str, canary: Canary, rows: Sequence[Row], pictures: Sequence[Picture]) -> None:
    """Whole or not at all: the record is removed first and written last."""
    table.files.remove(folder)
    for picture in pictures:
        table.files.write(f"{folder}/{picture.name}", picture.jpeg)
    table.files.write(f"{folder}/canary.html", canary_page.html(canary, rows, pictures, table.uri).encode())
    fault_point("canary.tried")
    table.files.write(f"{folder}/canary.json", canary.model_dump_json(indent=1).encode())
