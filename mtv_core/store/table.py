"""A table: `samples.lance`, `rejects.lance`, `shards.lance` and what is staged, below one folder or URI.

    <uri>/samples.lance     one row an image; appears with its first rows, grows by ingest, gets labels by column replacement
    <uri>/rejects.lance     one row a refusal
    <uri>/shards.lance      the ledger: which shards are done
    <uri>/_rejected/        revisions of experts that were tried and refused
    <uri>/_staging/         of runs under way or killed; nobody reads it

Workers get (uri, version) and open their own; a Table holds no handle and pickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from lance import LanceDataset, LanceFragment

from mtv_core.data.files import Files, lance_options
from mtv_core.data.schema import SAMPLES, label_schema
from mtv_core.report import Reject
from mtv_core.store import accepted as revisions_of
from mtv_core.store import label_commit, labels, tombstones
from mtv_core.store.accepted import Accepted, Rejected
from mtv_core.store.again import until_alone
from mtv_core.store.dataset import append_rows, explain, open_dataset
from mtv_core.store.label_state import LabelState
from mtv_core.store.labels import LabelWriter, StagedLabels, StalePlan
from mtv_core.store.ledger import Ledger
from mtv_core.store.rejects import RejectLog
from mtv_core.store.view import View

__all__ = ["Accepted", "Rejected", "Table"]


class Table:
    """One table. Every method looks at the latest version unless it is given one."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.files = Files(uri, storage_options)
        self.uri = self.files.uri
        self.storage_options = self.files.storage_options
        self.samples_uri = f"{self.uri}/samples.lance"
        self.rejects = RejectLog(f"{self.uri}/rejects.lance", storage_options)
        self.ledger = Ledger(f"{self.uri}/shards.lance", storage_options)

    @classmethod
    def open(cls, uri: str, storage_options: Mapping[str, str] | None = None) -> Table:
        """A table that has rows.

        Raises:
            FileNotFoundError: it has none yet.
        """
        table = cls(uri, storage_options)
        table.dataset()
        return table

    @classmethod
    def create_or_open(cls, uri: str, storage_options: Mapping[str, str] | None = None) -> Table:
        """A table to write to; nothing is made before its first rows are committed."""
        return cls(uri, storage_options)

    @classmethod
    def at(cls, uri: str, tag: str | None = None, version: int | None = None, storage_options: Mapping[str, str] | None = None) -> View:
        """The rows as of a tag, of a version, or of now.

        Raises:
            FileNotFoundError: there is no such tag or version. TagForgottenError: a takedown dropped the tag; it names the successor.
        """
        table = cls.open(uri, storage_options)
        if tag is not None:
            if tag not in table.tags():
                raise tombstones.missing(table, tag)
            return View(table.uri, table.tags()[tag], storage_options)
        view = View(table.uri, table.version if version is None else version, storage_options)
        _ = view.dataset
        return view

    @property
    def lance_options(self) -> dict[str, str] | None:
        """Storage options as Lance takes them. May hold credentials of fsspec's configuration: never to be written anywhere."""
        return lance_options(self.uri, self.storage_options)

    def exists(self) -> bool:
        """Whether it has rows."""
        return open_dataset(self.samples_uri, storage_options=self.storage_options) is not None

    def dataset(self, version: int | None = None) -> LanceDataset:
        """The samples. For the store's own modules: a handle never leaves its process.

        Raises:
            FileNotFoundError: no rows yet, or not that version.
        """
        dataset = open_dataset(self.samples_uri, version, self.storage_options)
        if dataset is None:
            which = "" if version is None else f" at version {version}"
            raise FileNotFoundError(f"there is no table with samples{which} at {self.uri}; make one first: mtv ingest")
        return dataset

    @property
    def version(self) -> int:
        """Latest version of the samples."""
        return int(self.dataset().version)

    @property
    def num_rows(self) -> int:
        """Rows of the latest version."""
        return int(self.dataset().count_rows())

    def version_exists(self, version: int) -> bool:
        """Whether a version can still be read."""
        return open_dataset(self.samples_uri, version, self.storage_options) is not None

    def append(self, rows: pa.Table, rows_per_fragment: int = 10_000) -> int:
        """Add rows of the schema SAMPLES as they are, and return the new version. Not idempotent: exactly once is ingest's."""
        return int(append_rows(rows.cast(SAMPLES), self.samples_uri, rows_per_fragment, self.storage_options).version)

    # Experts

    def ensure_columns(self, expert: str) -> None:
        """Add an expert's columns, all null, unless they are there. Metadata only: no data file is touched.

        Raises:
            OSError: the table cannot be written, or others write to it all the time.
        """

        def add() -> None:
            dataset = self.dataset()
            missing = pa.schema([field for field in label_schema(expert) if field.name not in dataset.schema.names])
            if missing:
                dataset.add_columns(missing)

        until_alone(self.uri, add)

    def accepted(self, dataset: LanceDataset | None = None) -> dict[str, Accepted]:
        """Expert → the revision its labels are to have: now, or as the dataset of a `label_state` says."""
        return revisions_of.accepted(dataset or self.dataset())

    def rejected(self, dataset: LanceDataset | None = None) -> dict[str, list[Rejected]]:
        """Expert → the revisions that were tried and refused, the latest last; never the one that `accepted` says of the dataset."""
        return revisions_of.rejected(self.files, dataset or self.dataset())

    def accept(self, expert: str, revision: str, source: dict[str, Any]) -> None:
        """From now on rows of another revision are stale. Kept in the table itself, so that it is true wherever the table is read.

        Raises:
            OSError: the table cannot be written, or others write to it all the time.
        """
        until_alone(self.uri, lambda: revisions_of.accept(self.files, self.dataset(), expert, revision, source))

    def reject(self, expert: str, revision: str, reason: str) -> None:
        """Note that a revision was tried and refused; `accept` of the same revision takes it back. Makes no version of the table.

        Raises:
            ValueError: it is the accepted one.
        """
        revisions_of.reject(self.files, self.dataset(), expert, revision, reason)

    def stale(self, expert: str, revision: str, version: int | None = None) -> StalePlan:
        """Which fragments have rows whose label is missing or of another revision. Before `ensure_columns` that is all of them."""
        return self.label_state(version).stale(expert, revision)

    def label_state(self, version: int | None = None) -> LabelState:
        """The labels of a version, fragment by fragment: ask it several things, and the manifest is read once."""
        return LabelState(self.dataset(version))

    def read_fragment(self, version: int, fragment_id: int, columns: Sequence[str]) -> pa.Table:
        """The physical rows of a fragment in their order, deleted ones included: labels are written to positions."""
        fragment = self.fragment(self.dataset(version), fragment_id)
        # Lance gives deleted rows only together with row ids.
        rows = fragment.scanner(columns=list(columns), with_row_id=True, include_deleted_rows=True).to_table()
        assert rows.num_rows == fragment.physical_rows
        return rows.select(list(columns))

    def scan_fragment(self, version: int, fragment_id: int, columns: Sequence[str], batch_size: int) -> Iterator[pa.RecordBatch]:
        """`read_fragment` piece by piece, for fragments whose pictures do not fit into memory; `_rowid` is null for deleted rows."""
        fragment = self.fragment(self.dataset(version), fragment_id)
        yield from fragment.scanner(
            columns=list(columns), batch_size=batch_size, batch_readahead=2, with_row_id=True, include_deleted_rows=True
        ).to_batches()

    @staticmethod
    def fragment(dataset: LanceDataset, fragment_id: int) -> LanceFragment:
        """A fragment that a plan of this version named."""
        fragment = dataset.get_fragment(fragment_id)
        assert fragment is not None, fragment_id
        return fragment

    def stage_labels(
        self,
        expert: str,
        version: int,
        fragment_id: int,
        batch: pa.Table,
        rejects: Sequence[Reject] = (),
        revision: str | None = None,
        mixed: bool = False,
    ) -> StagedLabels:
        """Write a fragment's labels, invisible until committed. For workers; running it again replaces the record of the first time.

        `batch` has the expert's columns and `<expert>_rev` for every physical row in order. The revision is the one found in the rows;
        it must be given when every row failed for now (all null), and with `mixed`, where rows of other revisions are kept as they are.

        Raises:
            ValueError: a wrong number of rows, or more than one revision without `mixed`.
        """
        return labels.stage(self, expert, version, fragment_id, batch, rejects, revision, mixed)

    def label_writer(self, expert: str, version: int, fragment_id: int, revision: str) -> LabelWriter:
        """`stage_labels` piece by piece, for a worker that labels the next rows meanwhile: a context with `write` and `finish`.

        Without `finish` nothing is staged.
        """
        return LabelWriter(self, expert, version, fragment_id, revision)

    def staged(self, expert: str, revision: str, version: int | None = None) -> list[StagedLabels]:
        """Labels that a killed run staged and that are still of use at a version: commit them instead of computing them again."""
        return labels.find(self, expert, revision, version)

    def commit_labels(self, staged: Sequence[StagedLabels], whole: bool = True) -> int:
        """Publish staged labels, rejects first, and return the new version. Again after a kill, it publishes what is missing.

        Other experts' labels, appends and deletes since the scan do no harm.

        Args:
            staged: what to publish.
            whole: of one expert and one scan all of it or nothing; without, a fragment that is lost keeps no other from being published.

        Raises:
            LabelConflictError: the same labels were written or the rows rewritten since the scan. It has what was lost. The records of that
                are dropped: plan again.
            OSError: the table cannot be written, or others write to it all the time.
        """
        return label_commit.commit(self, staged, whole)

    # Tags

    def tags(self) -> dict[str, int]:
        """Tag → version."""
        return {name: int(tag["version"]) for name, tag in self.dataset().tags.list().items()}

    def tag_revisions(self, name: str) -> dict[str, str]:
        """Expert → revision of the labels that a tag stands for."""
        metadata = self.dataset().tags.list()[name].get("metadata") or {}
        revisions: dict[str, str] = json.loads(metadata.get("revisions", "{}"))
        return revisions

    def label_counts(self, version: int | None = None) -> dict[str, dict[str, int]]:
        """Expert → revision ('' for none yet) → rows."""
        state = self.label_state(version)
        return {expert: state.counts(expert) for expert in state.experts}

    def tag(self, revisions: Mapping[str, str], allow_mixed: bool = False, state: LabelState | None = None) -> str:
        """Name a version for good: its rows, with labels of `revisions` (expert → revision). The same again gives the same tag.

        The version is that of `state`, whose labels the caller has looked at; the latest without one.

        Raises:
            ValueError: rows are not labelled, or by another revision, and that was not allowed.
        """
        state = state or self.label_state()
        version, total = state.version, state.num_rows
        counts = {expert: state.counts(expert) for expert in state.experts}
        for expert, revision in sorted(revisions.items()):
            labelled = counts.get(expert, {}).get(revision, 0)
            if labelled != total and not allow_mixed:
                raise ValueError(
                    f"{total - labelled} of {total} rows have no {expert} labels of revision {revision}; run `mtv label` again, "
                    "or allow a tag of mixed labels"
                )
        # The names of the data files are unique, versions are not: a table that was deleted and made again starts from 1.
        document = json.dumps([version, sorted(revisions.items()), hashlib.sha256("\n".join(state.files).encode()).hexdigest()])
        name = f"mtv-{hashlib.sha256(document.encode()).hexdigest()[:12]}"
        tags = state.dataset.tags
        if name not in tags.list():
            try:
                with contextlib.suppress(ValueError):  # another process was quicker: the same name is the same version
                    tags.create(name, version)
                tags.replace_metadata(name, {"revisions": json.dumps(dict(revisions)), "counts": json.dumps(counts)})
            except OSError as error:
                raise explain(error, self.uri) from error
        return name
