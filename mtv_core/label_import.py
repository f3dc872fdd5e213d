"""A user's own boxes or depth by uid, as an expert with a revision of its own: accepted, so tags and training use it.

Every map and box is checked and staged first, invisible; then one commit makes all of it visible, and last the revision is accepted. What a
kill leaves: staged fragments, which the same command uses again; or, between the commit and its end, labels whose revision is not accepted
yet: the same command accepts it. Nothing is written twice.

A row without labels in the file has none afterwards, under the revision of the import. With `keep_others` it keeps what it has, under the
revision that it has: the table is mixed, which is recorded.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtv_core.budget import BudgetExceededError, FailureBudget
from mtv_core.data.schema import LABELS, label_schema
from mtv_core.executor import Progress, silent
from mtv_core.faults import fault_point
from mtv_core.label_import_files import BadLabelError, LabelFile, ReadOptions, content, expert_of, open_file, positions
from mtv_core.report import Reject, StageReport
from mtv_core.store import locks
from mtv_core.store.accepted import Accepted
from mtv_core.store.labels import FragmentTask, LabelConflictError, StagedLabels
from mtv_core.store.preflight import check_store
from mtv_core.store.table import Table

IMPORTED = "imported"  # in `Accepted.source`: the labels are somebody's own, and no model completes them
_ROWS = 256  # of a fragment, read at once
_SHARD = "import"  # of refusals that belong to no row
_PASSES = 3
_NOTHING = "No label was changed."


@dataclass(frozen=True)
class ImportResult:
    """What an import did."""

    expert: str
    revision: str
    version: int
    tag: str | None  # None: other experts' labels are not complete, so there is nothing to name yet
    report: StageReport  # rows_in of the file, rows_out labelled, rows_skipped labelled already
    refused: dict[str, int]  # reason → rows of the file
    examples: list[str]
    without: int  # rows of the table that the file says nothing of
    kept: dict[str, int] = field(default_factory=dict)  # revision → rows that keep it, with `keep_others`
    stopped: str | None = None  # of a check: why the import would change nothing


@dataclass
class _Tally:
    """What was seen of the file."""

    labelled: int = 0
    without: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def refuse(self, reason: str, who: str, message: str) -> None:
        self.refused[reason] += 1
        if self.refused[reason] <= 3:
            self.examples.append(f"{reason}: {who}: {message}")


def run(
    table_uri: str,
    path: Path,
    *,
    expert: str | None = None,
    options: ReadOptions | None = None,
    keep_others: bool = False,
    license_name: str = "unknown",
    failures: FailureBudget | None = None,
    check_only: bool = False,
    progress: Progress = silent,
    storage_options: Mapping[str, str] | None = None,
) -> ImportResult:
    """Import the labels of a file.

    Args:
        table_uri: which table.
        path: file or folder: see `label_import_files`.
        expert: whose columns they go to; None: as the file looks.
        options: how its numbers are meant.
        keep_others: rows that the file says nothing of keep what they have.
        license_name: of the labels, for reports and exports.
        failures: the share of the labels that may be refused. Its `min_samples` only says when to look before the whole file is checked.
        check_only: look at everything and change nothing.
        progress: told how far it is.
        storage_options: of the table.

    Raises:
        FileNotFoundError: there is no such table or file.
        ValueError: the file holds no labels, or none of a uid of the table.
        BudgetExceededError: too many labels are refused, or all of them.
        LabelConflictError: others kept labelling the same rows meanwhile.
        OSError: the table cannot be written to.
    """
    table = Table.open(table_uri, storage_options)
    options = options or ReadOptions()
    expert = expert or expert_of(path)
    labels = open_file(path, expert, options)
    digest = content(path)
    revision = revision_of(expert, digest, options, keep_others)
    one = _Import(table, path, expert, labels, revision, keep_others, failures or FailureBudget(), progress)
    if check_only:
        one.prepare()
        one.stage(dry=True)
        try:
            one.judge()
        except BudgetExceededError as error:
            return replace(one.result(None), stopped=str(error))
        return one.result(None)
    check_store(table.uri, table.storage_options)
    with locks.writing(table, "label import"):
        one.prepare()
        table.ensure_columns(expert)
        for _ in range(_PASSES):
            staged = one.stage()
            one.judge()
            if one.publish(staged):
                break
        else:
            raise LabelConflictError(f"{expert}: others kept labelling the same fragments; import again when they are done")
        facts = {
            "model": f"import:{path.name}",
            "license": license_name,
            "identity": {"import_sha256": digest},
            "config": options.model_dump(mode="json"),
            IMPORTED: {"file": path.name, "keep_others": keep_others, "kept": one.kept(), "at": _accepted_at(table, expert, revision)},
        }
        table.accept(expert, revision, facts)
        fault_point("import.accepted")
        return one.result(_tag(table, keep_others))


def revision_of(expert: str, digest: str, options: ReadOptions, keep_others: bool) -> str:
    """16 hex digits that stand for what was imported and how: the same file gives the same revision."""
    document = {"expert": expert, "import": digest, "options": options.model_dump(mode="json"), "keep_others": keep_others}
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def complete(table: Table, expert: str, known: Accepted) -> int:
    """Rows that came after an import, or that it does not have: without a label, under its revision. Returns how many.

    With `keep_others` rows of other revisions stay as they are.

    Raises:
        LabelConflictError: others kept labelling the same fragments.
    """
    for last in (False, False, True):
        try:
            return _complete(table, expert, known)
        except LabelConflictError:
            if last:
                raise
    raise AssertionError


def _complete(table: Table, expert: str, known: Accepted) -> int:
    keep = bool(known.source[IMPORTED]["keep_others"])
    state, schema, staged, number = table.label_state(), label_schema(expert), list[StagedLabels](), 0
    wanted = state.unlabelled if keep else state.stale
    for task in wanted(expert, known.revision).fragments:
        rows = pa.Table.from_batches(table.scan_fragment(state.version, task.fragment_id, schema.names, _ROWS))
        revisions = rows[f"{expert}_rev"]
        new = pc.is_null(revisions) if keep else pc.fill_null(pc.not_equal(revisions, known.revision), True)
        new = pc.and_(new, pc.is_valid(rows["_rowid"]))  # a deleted row has no id
        count = pc.sum(new).as_py() or 0
        if not count:
            continue
        columns = [pc.if_else(new, pa.scalar(None, schema.field(name).type), rows[name]) for name in LABELS[expert].names]
        batch = pa.table([*columns, pc.if_else(new, known.revision, revisions)], schema=schema)
        staged.append(table.stage_labels(expert, state.version, task.fragment_id, batch, (), known.revision, mixed=keep))
        number += count
    if staged:
        table.commit_labels(staged)
    return number


def _accepted_at(table: Table, expert: str, revision: str) -> str:
    """When it was accepted first: the same import again changes nothing."""
    known = table.accepted().get(expert)
    if known is not None and known.revision == revision:
        return str(known.source[IMPORTED]["at"])
    return datetime.now(UTC).isoformat(timespec="seconds")


def _tag(table: Table, mixed: bool) -> str | None:
    revisions = {expert: accepted.revision for expert, accepted in table.accepted().items()}
    state = table.label_state()
    others = any(
        accepted.source.get(IMPORTED, {}).get("keep_others") for accepted in table.accepted().values() if isinstance(accepted.source, dict)
    )
    try:
        return table.tag(revisions, mixed or others, state)
    except ValueError:  # another expert's labels are not complete
        return None


class _Import:
    """One import: its file beside the table."""

    def __init__(
        self,
        table: Table,
        path: Path,
        expert: str,
        labels: LabelFile,
        revision: str,
        keep_others: bool,
        failures: FailureBudget,
        progress: Progress,
    ) -> None:
        self.table, self.path, self.expert, self.labels, self.revision = table, path, expert, labels, revision
        self.keep, self.failures, self.progress = keep_others, failures, progress
        self.schema = label_schema(expert)
        self.keys, self.places, left = positions(labels.uids)
        self.left = list(left)
        self.tally = _Tally()
        self.loose: list[Reject] = []  # of what belongs to no row
        self.orphans: list[Reject] = []  # of rows in fragments that nothing is written to
        self.written = self.skipped = 0

    @property
    def num_labels(self) -> int:
        """In the file."""
        return len(self.labels.uids) + len(self.labels.problems)

    def prepare(self) -> None:
        """See which uids the table has, before anything is written."""
        if not self.num_labels:
            raise ValueError(f"{self.path} holds no labels")
        if not self.labels.uids:
            where, _, message = self.labels.problems[0]
            raise ValueError(f"no row of {self.path} can be read, for example {where}: {message}. {_NOTHING}")
        found = np.zeros(len(self.keys), bool)
        for batch in self.table.at(self.table.uri, storage_options=self.table.storage_options).scan(["uid"]):
            places = self._find(batch["uid"])
            found[places[places >= 0]] = True
        if not found.any():
            raise ValueError(
                f"no uid of {self.path} is in {self.table.uri}; uids are 32 hex digits, as `mtv data export` writes them. {_NOTHING}"
            )
        for key, reason, message in self.labels.problems:
            self._loose(reason, key, message)
        for place, reason in self.left:
            uid = self.labels.uids[place] or f"label {place + 1}"  # which has none
            said = {"UnknownUid": "not 32 hex digits", "DuplicateUid": "the first of this uid counts"}[reason]
            self._loose(reason, f"{uid}#{place}" if reason == "DuplicateUid" else uid, said)
        for key in self.keys[~found]:
            self._loose("UnknownUid", key.decode(), "the table has no such row")

    def stage(self, dry: bool = False) -> list[StagedLabels]:
        """Check and stage every fragment that has rows to write; what a killed import staged is taken as it is."""
        self.orphans = []
        self.tally = _Tally(refused=Counter(reject.error for reject in self.loose), examples=list(dict.fromkeys(self._said)))
        state = self.table.label_state()
        there = [] if dry or self.expert not in state.experts else self.table.staged(self.expert, self.revision, state.version)
        staged = {labels.fragment_id: labels for labels in there}
        tasks = state.stale(self.expert, self.revision).fragments
        stale = sum(task.num_stale for task in tasks)
        self.skipped, done = state.num_rows - stale, 0
        for task in tasks:
            if task.fragment_id in staged:
                self._count(state.version, task, staged[task.fragment_id])
            else:
                made = self._fragment(state.version, task, dry)
                if made is not None:
                    staged[task.fragment_id] = made
                    fault_point("import.staged")
            done += task.num_stale
            if not dry:
                self._within(self.failures)
            self.progress(done, stale, "rows")
        return [staged[fragment] for fragment in sorted(staged)]

    def judge(self) -> None:
        """Whether what is staged may be published: the whole file is known, so few refusals count as well as many.

        Raises:
            BudgetExceededError: every label is refused, or a larger share than the budget allows.
        """
        if self.skipped:  # the same import was published before
            return
        if not self.tally.labelled:
            reasons = ", ".join(f"{rows} × {reason}" for reason, rows in sorted(self.tally.refused.items()))
            raise BudgetExceededError(f"every label was refused: {reasons}. {_NOTHING} Fix the file and import it again{self._example()}")
        self._within(self.failures.model_copy(update={"min_samples": 1}))

    def publish(self, staged: Sequence[StagedLabels]) -> bool:
        """One commit for all; False: somebody labelled the same rows meanwhile."""
        self.table.rejects.append([*self.loose, *self.orphans])
        fault_point("import.before_commit")
        try:
            self.table.commit_labels(staged)
        except LabelConflictError:
            return False
        fault_point("import.committed")
        return True

    def kept(self) -> dict[str, int]:
        """Revision → rows that keep it."""
        if not self.keep:
            return {}
        counts = self.table.label_state().counts(self.expert)
        return {revision: rows for revision, rows in sorted(counts.items()) if revision not in ("", self.revision)}

    def result(self, tag: str | None) -> ImportResult:
        """The account."""
        refused = dict(sorted(self.tally.refused.items()))
        report = StageReport(
            rows_in=self.num_labels,
            rows_out=self.tally.labelled,
            rows_rejected=sum(refused.values()),
            rows_skipped=self.skipped,
            bytes_written=self.written,
            counts={f"{self.expert}_imported": self.tally.labelled, **{f"{self.expert}_{name}": rows for name, rows in refused.items()}},
        )
        return ImportResult(
            self.expert, self.revision, self.table.version, tag, report, refused, self.tally.examples, self.tally.without, self.kept()
        )

    # The work

    def _fragment(self, version: int, task: FragmentTask, dry: bool) -> StagedLabels | None:
        columns = ["uid", "shard", "key", "width", "height"]
        has = set(self.schema.names) <= set(self.table.dataset(version).schema.names)
        parts: list[pa.Table] = []
        rejects: list[Reject] = []
        changed = False
        for rows in self.table.scan_fragment(version, task.fragment_id, [*columns, *(self.schema.names if has else ())], _ROWS):
            old = rows.select(self.schema.names) if has else pa.RecordBatch.from_pylist([{}] * rows.num_rows, schema=self.schema)
            made, did = self._rows(rows, old, rejects)
            changed |= did
            if not dry:
                parts.append(made)
        if dry or not changed:
            self.orphans += rejects
            return None
        batch = pa.concat_tables(parts)
        staged = self.table.stage_labels(self.expert, version, task.fragment_id, batch, rejects, self.revision, mixed=self.keep)
        self.written += staged.bytes_written
        return staged

    def _count(self, version: int, task: FragmentTask, staged: StagedLabels) -> None:
        """The account of a fragment that a killed import staged."""
        column = f"{self.expert}_rev"
        for rows in self.table.scan_fragment(version, task.fragment_id, ["uid", column], _ROWS):
            stale = pc.and_(pc.is_valid(rows["_rowid"]), pc.fill_null(pc.not_equal(rows[column], self.revision), True))
            inside = self._find(rows["uid"].filter(stale)) >= 0
            self.tally.labelled += int(inside.sum())
            self.tally.without += int((~inside).sum())
        self.tally.labelled -= len(staged.rejects)
        for reject in staged.rejects:
            self.tally.refuse(reject.error, str(reject.uid), reject.message)

    def _rows(self, rows: pa.RecordBatch, old: pa.RecordBatch, rejects: list[Reject]) -> tuple[pa.Table, bool]:
        """The columns of some rows in their order, and whether any of them changes."""
        places = self._find(rows["uid"])
        made: list[dict[str, Any]] = []
        taken: list[int | None] = []  # of the old rows and, behind them, the new ones; None: no label
        written: list[str | None] = []
        changed = False
        revisions = old.column(f"{self.expert}_rev").to_pylist()
        for i, (place, revision) in enumerate(zip(places.tolist(), revisions, strict=True)):
            if not rows["_rowid"][i].is_valid or revision == self.revision:  # deleted, or done
                taken.append(i if revision == self.revision else None)
                written.append(revision if revision == self.revision else None)
                continue
            label = None
            if place < 0:
                self.tally.without += 1
            else:
                label = self._label(place, rows, i, rejects)
            if label is None and self.keep:
                taken.append(i if revision is not None else None)
                written.append(revision)
                continue
            changed = True
            written.append(self.revision)
            taken.append(None if label is None else rows.num_rows + len(made))
            if label is not None:
                self.tally.labelled += 1
                made.append(label)
        names = LABELS[self.expert].names
        pieces = pa.Table.from_batches([old.select(names), pa.RecordBatch.from_pylist(made, schema=LABELS[self.expert])])
        labels = pieces.combine_chunks().take(pa.array(taken, pa.int64()))
        return labels.append_column(f"{self.expert}_rev", pa.array(written, pa.string())), changed

    def _label(self, place: int, rows: pa.RecordBatch, i: int, rejects: list[Reject]) -> dict[str, object] | None:
        uid, shard, key = (rows[name][i].as_py() for name in ("uid", "shard", "key"))
        try:
            return self.labels.label(int(self.places[place]), rows["width"][i].as_py(), rows["height"][i].as_py())
        except BadLabelError as error:
            self.tally.refuse(error.reason, uid, str(error))
            rejects.append(self._reject(uid, shard, key, error.reason, str(error)))
            return None

    def _find(self, uids: pa.Array) -> NDArray[np.int64]:
        """For each uid its place among the sorted keys, −1 where the file has none."""
        wanted = np.array(uids.to_pylist(), "S32")
        places = np.minimum(np.searchsorted(self.keys, wanted), max(len(self.keys) - 1, 0))
        return np.where(self.keys[places] == wanted, places, -1) if len(self.keys) else np.full(len(wanted), -1)

    def _within(self, budget: FailureBudget) -> None:
        """Stop if too many of the labels that are the table's own are refused; a file may well be of more tables."""
        failed = {reason: rows for reason, rows in self.tally.refused.items() if reason != "UnknownUid"}
        total = self.num_labels - self.tally.refused["UnknownUid"]
        try:
            budget.check("label", failed, total, unit="rows", kept=_NOTHING)
        except BudgetExceededError as error:
            raise BudgetExceededError(f"{error}{self._example()}") from None

    def _example(self) -> str:
        """For a message: an example of each reason that is about labels."""
        shown = {example.split(":", 1)[0]: example for example in reversed(self.tally.examples)}
        shown = {reason: example for reason, example in shown.items() if reason != "UnknownUid"} or shown
        return f". For example {'; '.join(shown[reason] for reason in sorted(shown))}" if shown else ""

    def _loose(self, reason: str, key: str, message: str) -> None:
        self.loose.append(self._reject(None, _SHARD, key, reason, message))

    @property
    def _said(self) -> list[str]:
        shown: Counter[str] = Counter()
        return [
            f"{reject.error}: {reject.key}: {reject.message}"
            for reject in self.loose
            if (shown.update([reject.error]) or shown[reject.error] <= 3)
        ]

    def _reject(self, uid: str | None, shard: str, key: str, reason: str, message: str) -> Reject:
        return Reject(
            uid=uid,
            shard=shard,
            key=key,
            location=f"{self.path.name}#{key}" if uid is None else f"{self.path.name}#{uid}",
            stage=self.expert,
            error=reason,
            message=message,
            revision=self.revision,
        )
