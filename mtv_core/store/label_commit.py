"""Staged labels are published: many fragments in one commit, and none over labels or rows that they were not made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import DataFile

from mtv_core.data.schema import LABELS, label_schema
from mtv_core.faults import fault_point
from mtv_core.store.again import ATTEMPTS
from mtv_core.store.dataset import explain, open_dataset
from mtv_core.store.labels import LabelConflictError, StagedLabels, published

if TYPE_CHECKING:
    from mtv_core.store.table import Table

_NAMED = 5  # fragments in a message


def commit(table: Table, staged: Sequence[StagedLabels], whole: bool = True) -> int:
    """See `Table.commit_labels`."""
    # Rejects first: a row whose label failed for good is never visible without its reason.
    table.rejects.append([reject for labels in staged for reject in labels.rejects])
    lost: list[StagedLabels] = []
    for expert, version in sorted({(labels.expert, labels.version) for labels in staged}):
        group = [labels for labels in staged if (labels.expert, labels.version) == (expert, version)]
        lost += _replace(table, group, version, whole)
        if lost and whole:
            forget(table, group)
            raise _conflict(lost)
        fault_point("label.replaced")
    forget(table, staged)
    if lost:
        raise _conflict(lost)
    return table.version


def _replace(table: Table, staged: list[StagedLabels], version: int, whole: bool) -> list[StagedLabels]:
    """Publish labels of one expert and one scan in one commit, and return those that fit their fragment no more.

    First Lance compares, with all that was committed since the scan; a later version would hide a conflict instead of solving it. It says
    no to all of them for a single one, and for columns that were added. Then each is compared here (`_fits`), and what is left is
    committed against the very version it was compared with, so that nothing can come between. With `whole`, nothing is published if
    anything is lost.
    """
    left, lost = staged, list[StagedLabels]()
    scanned: LanceDataset | None = None  # None: Lance has not said no
    for _ in range(ATTEMPTS):
        dataset = table.dataset()
        # After a kill or an uncertain answer of the store: what the manifest names is done.
        new = [labels for labels in left if not published(dataset, labels)]
        left = []
        for labels in new:
            (left if _fits(labels, dataset, scanned) else lost).append(labels)
        if not left or (lost and whole):
            return lost
        try:
            groups = [LanceOperation.DataReplacementGroup(one.fragment_id, DataFile.create(dataset, one.data_file)) for one in left]
            read_version = version if scanned is None else int(dataset.version)
            operation = LanceOperation.DataReplacement(groups)
            LanceDataset.commit(dataset, operation, read_version=read_version, storage_options=table.lance_options)
            return lost
        except CommitConflictError:
            scanned = open_dataset(table.samples_uri, version, table.storage_options)
            if scanned is None:  # a clean-up has removed it, so there is no telling
                return [*lost, *left]
        except OSError as error:
            raise explain(error, table.uri) from error
    raise OSError(f"others write to {table.uri} all the time; run again, it goes on from here")


def _fits(labels: StagedLabels, dataset: LanceDataset, scanned: LanceDataset | None) -> bool:
    """Whether a fragment has the rows, and the labels of this expert, that it had when it was scanned; without `scanned`, at a glance.

    Files never change and their names are unique, so the same names are the same values. Deletions are marks beside them.
    """
    fragment = dataset.get_fragment(labels.fragment_id)
    if fragment is None or fragment.physical_rows != labels.physical_rows:
        return False
    return scanned is None or _files(dataset, labels) == _files(scanned, labels)


def _files(dataset: LanceDataset, labels: StagedLabels) -> dict[str, str]:
    """Column → the data file of a fragment that has it; without other experts' columns, and those that are null as they were added."""
    fragment = dataset.get_fragment(labels.fragment_id)
    files = [] if fragment is None else [(file.path, frozenset(file.fields)) for file in fragment.data_files()]
    others = {name for expert in LABELS if expert != labels.expert for name in label_schema(expert).names}
    own = [(field.name(), field.id()) for field in dataset.lance_schema.fields() if field.name() not in others]
    return {name: path for name, number in own for path, fields in files if number in fields}


def _conflict(lost: Sequence[StagedLabels]) -> LabelConflictError:
    fragments = ", ".join(str(labels.fragment_id) for labels in lost[:_NAMED]) + (", …" if len(lost) > _NAMED else "")
    since = min(labels.version for labels in lost)
    return LabelConflictError(
        f"{lost[0].expert}: fragments were labelled or rewritten by another run since version {since}: {fragments}", lost
    )


def forget(table: Table, staged: Sequence[StagedLabels]) -> None:
    """Drop the records: of what is published, and of what is to be labelled again. A clean-up removes files that nothing names."""
    for labels in staged:
        table.files.remove(labels.record)
