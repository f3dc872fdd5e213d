"""Try an expert's new revision on some rows, aside: what would change, and whether that may be.

    <table>/_reports/canary/<expert>-<revision>/   canary.json   the figures and the verdict; written last
                                                   canary.html   the same for people, with pictures
                                                   *.jpg         the pictures

A canary changes nothing of the table. `accept` makes its revision the accepted one, after which all other rows are stale; `reject` records
that it was refused. A kill leaves files that the next canary of that revision replaces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError

from mtv_core import canary_page, experts, labelling_accept
from mtv_core.canary_config import GateConfig
from mtv_core.canary_gate import GateCheck, checks, figures
from mtv_core.canary_page import Picture
from mtv_core.canary_rows import Row
from mtv_core.canary_worker import CanaryJob, CanaryPart, label_aside
from mtv_core.executor import Executor, Outcome, Progress, silent
from mtv_core.experts import source
from mtv_core.experts.config import ExpertConfig
from mtv_core.faults import fault_point
from mtv_core.labelling_config import LabelConfig
from mtv_core.labelling_failures import ExpertUnavailableError
from mtv_core.labelling_plan import Work, estimate
from mtv_core.store import locks
from mtv_core.store.accepted import Accepted
from mtv_core.store.preflight import check_store
from mtv_core.store.table import Table
from mtv_core.store.view import View

__all__ = ["Canary", "GateCheck", "GateConfig", "accept", "latest", "proposed", "reject", "try_out"]

FOLDER = "_reports/canary"
SHOWN = 12  # rows of which a picture is drawn because they changed most, and as many by chance
_FORMAT = 1  # raise it when figures or checks change their meaning: canaries are made anew
_CHUNK = 32  # rows a worker gets at once, with their pictures and labels in memory
_BATCH = 1 << 16  # uids in memory at once


class Canary(BaseModel, frozen=True, extra="forbid"):
    """What trying a revision on some rows found."""

    expert: str
    revision: str = Field(description="the tracked revision, which was tried")
    accepted: str = Field(description="the accepted revision, which it was compared with")
    license: str = Field(description="of the new weights")
    accepted_license: str = Field(description="of the accepted ones, or of imported labels")
    model: str = Field(description="the new model, as the configuration names it")
    accepted_model: str = Field(description="the accepted one, as its configuration named it; the file of imported labels")
    version: int = Field(description="version of the table whose rows were labelled")
    rows: int = Field(description="rows that were labelled aside")
    figures: dict[str, float] = Field(description="see `canary_gate.figures`")
    checks: list[GateCheck]
    passed: bool = Field(description="whether every check passed")
    work: Work = Field(description="what accepting takes: rows to label again, time, bytes, cost")
    page: str = Field(description="URI of the HTML page")
    pictures: list[str] = Field(description="URIs of pictures: image, old and new label beside each other; the most changed first")
    key: str = Field(description="digest of what the result depends on; the same key, the same canary")
    at: str = Field(description="when, UTC, ISO 8601")

    @property
    def failed(self) -> list[GateCheck]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def reason(self) -> str:
        """Why it did not pass, in a line; empty if it did."""
        return "; ".join(f"{one.name}: {_said(one.value)}, the limit is {one.limit:g}" for one in self.failed)


def _said(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.3g}"


@dataclass(frozen=True)
class _Proposal:
    """An expert whose tracked revision is not the accepted one."""

    name: str
    config: ExpertConfig
    revision: str
    accepted: Accepted

    @property
    def folder(self) -> str:
        """Where its canary is kept, relative to the table."""
        return f"{FOLDER}/{self.name}-{self.revision}"

    def key(self, version: int, gate: GateConfig) -> str:
        """Digest of what a canary depends on; who decides and how long that may take is no part of it."""
        facts = gate.model_dump(mode="json", exclude={"approval", "approval_timeout"})
        document = [_FORMAT, self.name, self.revision, self.accepted.revision, version, facts]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def proposed(
    table_uri: str,
    config: LabelConfig,
    storage_options: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    names: Collection[str] | None = None,
) -> list[str]:
    """The experts that `try_out` has a canary of. Loads nothing; arguments and errors as there."""
    return [one.name for one in _proposals(Table.open(table_uri, storage_options), config, force, names)]


def latest(
    table_uri: str,
    config: LabelConfig,
    storage_options: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    names: Collection[str] | None = None,
) -> list[Canary]:
    """The canaries of the tracked revisions that are there, whatever was appended since: what a person looked at and decides on.

    Arguments and errors as of `try_out`.
    """
    table = Table.open(table_uri, storage_options)
    found = [(one, _read(table, one)) for one in _proposals(table, config, force, names)]
    return [canary for one, canary in found if canary is not None and canary.accepted == one.accepted.revision]


def try_out(
    table_uri: str,
    config: LabelConfig,
    executor: Executor,
    progress: Progress = silent,
    storage_options: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    names: Collection[str] | None = None,
) -> list[Canary]:
    """Try every expert whose tracked revision is neither accepted nor refused before. Changes nothing of the table.

    A canary of the same revisions, version and limits that is there already is given back. There is none of an expert without an accepted
    revision (the first labelling accepts it), with `accept: immediate`, and of one whose accepted labels were imported unless it is named:
    a model does not replace somebody's own labels by itself.

    Args:
        table_uri: where.
        config: the experts, and the gate.
        executor: labels rows, in chunks.
        progress: told how many are done.
        storage_options: of the table.
        force: try refused revisions again.
        names: only these experts.

    Raises:
        FileNotFoundError: there is no table, or no such expert.
        ValueError: an expert cannot be used as configured.
        OSError: the table cannot be read, the report not written, or a machine or the network fails under the expert.
    """
    table = Table.open(table_uri, storage_options)
    version = table.version
    canaries = []
    for proposal in _proposals(table, config, force, names):
        key = proposal.key(version, config.gate)
        canaries.append(_known(table, proposal, key) or _try(table, version, proposal, key, config, executor, progress))
    return canaries


def accept(table_uri: str, canary: Canary, config: LabelConfig, storage_options: Mapping[str, str] | None = None) -> None:
    """Make a canary's revision the accepted one; rows of others are stale from then on. Again, it does nothing.

    Raises:
        ValueError: the configuration resolves to another revision by now, or another one was accepted meanwhile.
        OSError: the table cannot be written, or there is no place for a copy of the weights.
    """
    table = Table.open(table_uri, storage_options)
    check_store(table.uri, table.storage_options)
    with locks.writing(table, "accepting an expert"):
        known = table.accepted().get(canary.expert)
        if known is not None and known.revision == canary.revision:
            return
        if known is None or known.revision != canary.accepted:
            raise ValueError(
                f"the {canary.expert} expert {canary.revision} was compared with {canary.accepted}, and "
                f"{known.revision if known else 'none'} is accepted by now; run `mtv refresh` again, which compares it with that"
            )
        expert = config.experts().get(canary.expert)
        if expert is None:
            raise ValueError(f"the {canary.expert} expert is not configured any more: set label.{canary.expert}")
        labelling_accept.accept(table, canary.expert, expert, known, expected=canary.revision)


def reject(table_uri: str, canary: Canary, reason: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Record that a canary's revision was refused. Nothing else changes; again with the same reason, nothing does.

    Raises:
        ValueError: it was accepted meanwhile.
        OSError: the table cannot be written.
    """
    table = Table.open(table_uri, storage_options)
    check_store(table.uri, table.storage_options)
    with locks.writing(table, "refusing an expert"):
        known = next((one for one in table.rejected().get(canary.expert, []) if one.revision == canary.revision), None)
        if known is None or known.reason != reason:
            table.reject(canary.expert, canary.revision, reason)


# What is there


def _proposals(table: Table, config: LabelConfig, force: bool, names: Collection[str] | None) -> list[_Proposal]:
    configured = config.experts()
    unknown = sorted(set(names or ()) - set(configured))
    if unknown:
        raise ValueError(f"there is no expert {unknown[0]!r} configured; there are: {', '.join(configured) or 'none'}")
    if config.accept == "immediate":
        return []
    dataset = table.dataset()
    accepted, rejected = table.accepted(dataset), table.rejected(dataset)
    found = []
    for name, expert in configured.items():
        known = accepted.get(name)
        if known is None or (names is not None and name not in names) or (names is None and labelling_accept.is_imported(known)):
            continue
        revision = experts.revision(name, expert)
        refused = any(one.revision == revision for one in rejected.get(name, []))
        if revision != known.revision and (force or not refused):
            found.append(_Proposal(name, expert, revision, known))
    return found


def _known(table: Table, proposal: _Proposal, key: str) -> Canary | None:
    canary = _read(table, proposal)
    return canary if canary is not None and canary.key == key else None


def _read(table: Table, proposal: _Proposal) -> Canary | None:
    """The canary that is there, if its page still is: a takedown removes pages with pictures."""
    try:
        canary = Canary.model_validate_json(table.files.read(f"{proposal.folder}/canary.json"))
    except (FileNotFoundError, ValidationError):  # none, or by another version of MTV
        return None
    if not table.files.exists(f"{proposal.folder}/canary.html"):
        return None
    # The table may have been moved or copied since.
    here = [table.files.path(f"{proposal.folder}/{uri.rpartition('/')[2]}") for uri in (canary.page, *canary.pictures)]
    return canary.model_copy(update={"page": here[0], "pictures": here[1:]})


# Trying


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


@dataclass
class _Seen:
    """Rows as they come back, and the labels of those that are drawn."""

    chance: list[int]  # positions
    rows: dict[int, Row]
    labels: dict[int, tuple[dict[str, object], dict[str, object]]]  # position → old, new

    def take(self, part: CanaryPart) -> None:
        """More rows. Labels of rows that are not among the most changed any more are let go."""
        self.rows |= {row.position: row for row in part.rows}
        self.labels |= {
            row.position: (old, new) for row, old, new in zip(part.rows, part.old.to_pylist(), part.new.to_pylist(), strict=True)
        }
        drawn = {*self.changed(), *self.chance}
        self.labels = {position: labels for position, labels in self.labels.items() if position in drawn}

    def changed(self) -> list[int]:
        """Positions of the rows that changed most."""
        ordered = sorted((row for row in self.rows.values() if row.shift > 0), key=lambda row: (-row.shift, row.uid))
        return [row.position for row in ordered[:SHOWN]]


def _try(table: Table, version: int, proposal: _Proposal, key: str, config: LabelConfig, executor: Executor, progress: Progress) -> Canary:
    name, gate, view = proposal.name, config.gate, View(table.uri, version, table.storage_options)
    positions = choose(view, name, proposal.accepted.revision, gate.rows)
    seen = _Seen(positions[:SHOWN], {}, {})
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


def _jobs(table: Table, version: int, proposal: _Proposal, config: LabelConfig, positions: Sequence[int]) -> list[CanaryJob]:
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
    changed = seen.changed()
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
