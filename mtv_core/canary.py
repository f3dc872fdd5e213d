"""Try an expert's new revision on some rows, aside: what would change, and whether that may be.

    <table>/_reports/canary/<expert>-<revision>/   canary.json   the figures and the verdict; written last
                                                   canary.html   the same for people, with pictures
                                                   *.jpg         the pictures

A canary changes nothing of the table. `accept` makes its revision the accepted one, after which all other rows are stale; `reject` records
that it was refused. A kill leaves files that the next canary of that revision replaces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mtv_core import canary_record as record
from mtv_core import labelling_accept
from mtv_core.canary_config import GateConfig
from mtv_core.canary_gate import GateCheck
from mtv_core.canary_record import FOLDER, Canary
from mtv_core.canary_try import choose, label_some
from mtv_core.executor import Executor, Progress, silent
from mtv_core.labelling_config import LabelConfig
from mtv_core.store import locks
from mtv_core.store.preflight import check_store
from mtv_core.store.table import Table

__all__ = ["FOLDER", "Canary", "GateCheck", "GateConfig", "accept", "choose", "latest", "proposed", "reject", "try_out"]


def proposed(
    table_uri: str,
    config: LabelConfig,
    storage_options: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    names: Collection[str] | None = None,
) -> list[str]:
    """The experts that `try_out` has a canary of. Loads nothing; arguments and errors as there."""
    return [one.name for one in record.proposals(Table.open(table_uri, storage_options), config, force, names)]


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
    found = [(one, record.read(table, one)) for one in record.proposals(table, config, force, names)]
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
    revision or without any label (the first labelling accepts it), with `accept: immediate`, and of one whose accepted labels were imported
    unless it is named: a model does not replace somebody's own labels by itself. One that cannot be looked up is passed over unless it is
    named; `labelling_plan.plan` says why.

    Args:
        table_uri: where.
        config: the experts, and the gate.
        executor: labels rows, in chunks.
        progress: told how many are done.
        storage_options: of the table.
        force: try refused revisions again.
        names: only these experts.

    Raises:
        FileNotFoundError: there is no table, or no expert that is named.
        ValueError: an expert cannot be used as configured, or reads a column that the table lacks.
        OSError: the table cannot be read, the report not written, or a machine or the network fails under the expert.
    """
    table = Table.open(table_uri, storage_options)
    dataset = table.dataset()
    version, canaries = int(dataset.version), []
    proposals = record.proposals(table, config, force, names)
    for proposal in proposals:
        labelling_accept.check_columns(proposal.config, dataset.schema)
    for proposal in proposals:
        key = proposal.key(version, config.gate)
        canaries.append(record.find(table, proposal, key) or label_some(table, version, proposal, key, config, executor, progress))
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
