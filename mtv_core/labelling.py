"""Label: experts write depth and boxes where labels are missing or stale, fragment by fragment, and the result gets a tag.

What a kill leaves: before `label.staged` nothing that anybody sees; after it a staged fragment, which the next run publishes instead of
computing it again; after a commit, labels that are not stale. So a run that is killed anywhere and run again ends with the labels of one
that was not, and a run that has nothing to do opens no fragment and loads no weights.
"""

from __future__ import annotations

import errno
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mtv_core.budget import BudgetExceededError
from mtv_core.data.schema import label_schema
from mtv_core.executor import Executor, Outcome, Progress, silent
from mtv_core.faults import fault_point
from mtv_core.label_import import complete
from mtv_core.labelling_accept import Assignment, assign, check_columns, in_force, kept_experts, look_up
from mtv_core.labelling_config import LabelConfig
from mtv_core.labelling_plan import ExpertPlan, plan, revisions
from mtv_core.labelling_worker import ExpertUnavailableError, FragmentJob, FragmentResult, label_fragment
from mtv_core.report import StageReport
from mtv_core.store import label_commit, labels, locks, rates
from mtv_core.store.label_state import LabelState
from mtv_core.store.labels import FragmentTask, LabelConflictError, StagedLabels
from mtv_core.store.preflight import check_store
from mtv_core.store.rates import Meter
from mtv_core.store.table import Table

__all__ = ["ExpertPlan", "LabelResult", "LabellingIncompleteError", "kept_experts", "plan", "revisions", "run"]

_PASSES = 3  # a pass after the first is needed when rows came, or another run labelled, meanwhile
# Fragments after which the table is looked at anew: a commit is checked against all since the version that was scanned, 1 ms each on a disk
# and a request each in an object store, so those of a long run would take longer and longer.
_WINDOW = 1000
_GIVE_UP = 8  # fragments of an expert that failed, with none that did not, after which the rest is not tried
_TARGET_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class LabellingIncompleteError(ValueError):
    """Rows are left without labels for a reason that may pass; everything else is labelled and stays so."""


@dataclass(frozen=True)
class LabelResult:
    """The labelled table: a version, its tag, and what was done to get there."""

    version: int
    tag: str
    revisions: dict[str, str]  # expert → revision of the labels
    report: StageReport
    proposed: dict[str, str] = field(default_factory=dict)  # expert → configured revision that is not accepted (`accept: gate`)
    unresolved: dict[str, str] = field(default_factory=dict)  # expert → why the configured one cannot be looked up: the accepted one labels


def run(
    table_uri: str,
    config: LabelConfig,
    executor: Executor,
    progress: Progress = silent,
    storage_options: Mapping[str, str] | None = None,
) -> LabelResult:
    """Label what is stale, and tag the table.

    Raises:
        FileNotFoundError: there is no table, or no such expert.
        ValueError: an expert cannot be used as configured.
        LabellingIncompleteError: rows are left without labels (a worker was killed by them, memory ran out, an expert fails throughout).
        OSError: the table cannot be written to.
    """
    table = Table.open(table_uri, storage_options)
    check_store(table.uri, table.storage_options)
    with locks.writing(table, "labelling") as lease:
        result = _run(table, config, executor, progress)
        superseded = labels.superseded(table, result.revisions)
        if superseded:
            with locks.alone(lease) as alone:
                if alone:
                    labels.discard(table, superseded)
        return result


def _run(table: Table, config: LabelConfig, executor: Executor, progress: Progress) -> LabelResult:
    assignments = _assignments(table, config)
    stage = _Stage(table, config, executor, progress, assignments)
    report = stage.run()
    accepted = {name: assignment.revision for name, assignment in assignments.items()}
    stale = {name: stage.state.stale(name, revision).num_stale for name, revision in accepted.items() if not assignments[name].mixed}
    left = {name: number for name, number in stale.items() if number}
    if left and not config.allow_mixed:
        raise LabellingIncompleteError(_incomplete(left, stage.problems))
    tag = table.tag(accepted, config.allow_mixed or any(one.mixed for one in assignments.values()), stage.state)
    unresolved = {name: one.unresolved for name, one in assignments.items() if one.unresolved is not None}
    if unresolved:
        report += StageReport(counts={f"{name}_unresolved": 1 for name in unresolved})
        reasons = "; ".join(f"{name} {accepted[name]}, since {reason}" for name, reason in sorted(unresolved.items()))
        progress(1, 1, f"the accepted expert was used: {reasons}")
    refused = {(name, one.revision) for name, ones in table.rejected().items() for one in ones}
    waiting = {name: one.tracked for name, one in assignments.items() if one.tracked != one.revision and one.imported is None}
    proposed = {name: revision for name, revision in waiting.items() if (name, revision) not in refused}
    if proposed:
        report += StageReport(counts={f"{name}_revision_proposed": 1 for name in proposed})
        names = ", ".join(f"{name} {revision} (accepted: {accepted[name]})" for name, revision in sorted(proposed.items()))
        progress(1, 1, f"not accepted yet, nothing was relabelled: {names}; `mtv refresh` tries it on some rows first")
    return LabelResult(stage.state.version, tag, accepted, report, proposed, unresolved)


def _assignments(table: Table, config: LabelConfig) -> dict[str, Assignment]:
    """Expert → what its labels are to be; the columns are there from now on."""
    state = table.label_state()
    known, names = in_force(table, state), set(state.dataset.schema.names)
    tracked = look_up(config, known)  # all of them are found, before the first one changes the table
    for name, expert in config.experts().items():
        if name not in known or config.accept == "immediate":
            check_columns(expert, state.dataset.schema)
    found = {}
    for name, expert in config.experts().items():
        if not set(label_schema(name).names) <= names:
            table.ensure_columns(name)
        found[name] = assign(table, name, expert, tracked[name], known.get(name), config.accept)
    return found


def _incomplete(left: Mapping[str, int], problems: list[str]) -> str:
    rows = " and ".join(f"{number} rows without {name} labels" for name, number in sorted(left.items()))
    reasons = "; ".join(list(dict.fromkeys(problems))[:3]) or "they came while the others were labelled"
    return f"{rows} are left: {reasons}. All others are labelled; run `mtv label` again for the rest, or set label.allow_mixed: true"


# The work


@dataclass(frozen=True)
class _Pending:
    """A fragment that waits for the next commit."""

    staged: StagedLabels
    rows: int  # labelled or tried
    result: FragmentResult | None = None  # None: an earlier run did the work

    @property
    def refused(self) -> Counter[str]:
        """Reason → rows."""
        return Counter(reject.error for reject in self.staged.rejects)


class _Stage:
    """One run's work: passes over what is stale, commits in groups, and what went wrong.

    What a fragment came to is counted when its labels are published: those that another run was quicker with are made again.
    """

    def __init__(
        self, table: Table, config: LabelConfig, executor: Executor, progress: Progress, assignments: Mapping[str, Assignment]
    ) -> None:
        self.table, self.config, self.executor, self.progress, self.assignments = table, config, executor, progress, assignments
        self.problems: list[str] = []
        self.report = StageReport()
        self.pending: list[_Pending] = []
        self.tried: Counter[str] = Counter()  # expert → rows
        self.refused: dict[str, Counter[str]] = defaultdict(Counter)  # expert → reason → rows
        self.committed = time.monotonic()
        self.commits = 0
        self.lost: set[tuple[str, int]] = set()  # expert and fragment: of a pass, what was staged and fitted no more
        self.done = self.total = 0  # rows of a pass
        self.good: Counter[str] = Counter()  # expert → fragments of a pass
        self.bad: Counter[str] = Counter()
        self.meter = Meter()
        self.unlabelled: Counter[str] = Counter()  # expert → rows that an import has nothing for
        self.state: LabelState  # of the labels, when they were last looked at

    def run(self) -> StageReport:
        """Label until nothing is stale that was not tried, and record how fast it went."""
        tried: set[tuple[str, int]] = set()
        for number in range(_PASSES):
            self.lost.clear()
            self._publish_leftovers()
            self._complete_imports()
            self.state = self.table.label_state()
            jobs = self._jobs()
            if number == 0:
                stale = sum(task.num_stale for _, task in jobs)
                self.report += StageReport(rows_skipped=self.state.num_rows * len(self.assignments) - stale)
            # A fragment is tried once, unless what was written for it came to nothing.
            tried -= self.lost
            jobs = [(job, task) for job, task in jobs if (job.expert, job.fragment_id) not in tried]
            if not jobs:
                break
            self.done, self.total = 0, sum(task.num_stale for _, task in jobs)
            self.good.clear()
            self.bad.clear()
            self.progress(0, self.total, "rows to label")
            with self.meter.running():
                for window in self._windows(jobs):
                    self._label(window)
                    if self._hopeless():
                        break
            tried |= {(job.expert, job.fragment_id) for job, _ in jobs} - self.lost
        else:
            self.state = self.table.label_state()
        for name, rate in self.meter.rates({name: one.revision for name, one in self.assignments.items()}).items():
            rates.record(self.table, name, rate)
        counts = {f"{name}_rows_not_in_the_import": rows for name, rows in self.unlabelled.items() if rows}
        return self.report + StageReport(counts={**counts, **({"commits": self.commits} if self.commits else {})})

    def _publish_leftovers(self) -> None:
        """Fragments that a killed run staged: publish them instead of computing them again.

        Where too much of them is refused, those with refusals are labelled again: the expert may be healed by now.
        """
        for name, assignment in self.assignments.items():
            found = [_Pending(staged, staged.num_labelled) for staged in self.table.staged(name, assignment.revision)]
            refused = sum((one.refused for one in found), start=Counter[str]())
            try:
                self.config.failures.check("label", refused, sum(one.rows for one in found), unit="rows")
            except BudgetExceededError:
                label_commit.forget(self.table, [one.staged for one in found if one.staged.rejects])
                found = [one for one in found if not one.staged.rejects]
            for one in found:
                self._take(one)
        self._commit()

    def _complete_imports(self) -> None:
        """Rows that came after an import: no expert is asked for them, since the labels are somebody's own."""
        for name, assignment in self.assignments.items():
            if assignment.imported is not None:
                self.unlabelled[name] += complete(self.table, name, assignment.imported)

    def _jobs(self) -> list[tuple[FragmentJob, FragmentTask]]:
        """What is stale, the experts interleaved, so that they run beside each other."""
        jobs = []
        for name, assignment in self.assignments.items():
            if assignment.imported is not None:
                continue
            for task in self.state.stale(name, assignment.revision).fragments:
                job = FragmentJob(
                    table_uri=self.table.uri,
                    storage_options=dict(self.table.storage_options),
                    version=self.state.version,
                    fragment_id=task.fragment_id,
                    expert=name,
                    config=assignment.config,
                    revision=assignment.revision,
                    batch_size=self.config.batch_size,
                    threads=self.config.threads,
                )
                jobs.append((job, task))
        return sorted(jobs, key=lambda pair: (pair[0].fragment_id, pair[0].expert))

    def _windows(self, jobs: list[tuple[FragmentJob, FragmentTask]]) -> Iterator[list[tuple[FragmentJob, FragmentTask]]]:
        """The jobs of a pass in pieces, each as of the latest version when it begins; what is not stale any more is left out."""
        left = {(job.expert, job.fragment_id) for job, _ in jobs}
        while window := jobs[:_WINDOW]:
            yield window
            left -= {(job.expert, job.fragment_id) for job, _ in window}
            if not left:
                return
            self.state = self.table.label_state()
            jobs = [(job, task) for job, task in self._jobs() if (job.expert, job.fragment_id) in left]

    def _label(self, jobs: list[tuple[FragmentJob, FragmentTask]]) -> None:
        """A window of fragments: results are staged by workers, and committed here in groups."""
        num_stale = {job: task.num_stale for job, task in jobs}
        resources = {"GPU": self.config.gpus} if self.config.gpus else None
        outcomes = self.executor.map(label_fragment, [job for job, _ in jobs], resources=resources)
        try:
            for outcome in outcomes:
                name = outcome.item.expert
                if outcome.result is None:
                    self._failed(outcome)
                    self.bad[name] += 1
                    self.report += StageReport(counts={f"{name}_fragments_failed": 1})
                    if self._hopeless():
                        break
                else:
                    self.good[name] += 1
                    self.problems += outcome.result.problems
                    self._finished(name, outcome.result)
                self.done += num_stale[outcome.item]
                if len(self.pending) >= self.config.commit_fragments or time.monotonic() - self.committed >= self.config.commit_seconds:
                    self._commit()
                self.progress(min(self.done, self.total), self.total, "rows labelled")
        finally:
            close = getattr(outcomes, "close", None)
            if close is not None:
                close()  # cancels what is in flight when this loop is left early
        self._commit()

    def _hopeless(self) -> bool:
        """Whether an expert fails on fragment after fragment."""
        return any(number >= _GIVE_UP and not self.good[name] for name, number in self.bad.items())

    def _finished(self, name: str, result: FragmentResult) -> None:
        """A fragment for the next commit, unless its expert refuses too much."""
        if result.staged is None:
            self._count(name, result.report, result.worker)
            return
        self._take(_Pending(result.staged, result.report.rows_in, result))
        kept = "Labels that were committed before stay; these are staged."
        self.config.failures.check("label", self.refused[name], self.tried[name], unit="rows", kept=kept)

    def _take(self, one: _Pending) -> None:
        self.tried[one.staged.expert] += one.rows
        self.refused[one.staged.expert].update(one.refused)
        self.pending.append(one)

    def _count(self, name: str, report: StageReport, worker: str) -> None:
        self.report += report
        self.meter.add(name, report, worker)

    def _failed(self, outcome: Outcome[FragmentJob, FragmentResult]) -> None:
        """Note why a fragment has no labels, or stop where all others would fail alike."""
        job, error = outcome.item, outcome.error
        if isinstance(error, ExpertUnavailableError):
            self._commit()
            raise ValueError(f"the {job.expert} expert cannot be used: {error}") from None
        if isinstance(error, OSError) and error.errno in _TARGET_ERRORS:
            raise error
        if outcome.killed:
            reason = (
                f"the {job.expert} expert on fragment {job.fragment_id} kills its worker process (out of memory? try a smaller "
                "label.batch_size or more compute.memory_limit)"
            )
        else:
            reason = f"the {job.expert} expert on fragment {job.fragment_id}: {type(error).__name__}: {error}"
        self.problems.append(reason)

    def _commit(self) -> None:
        """Publish what is staged, rejects first."""
        self.committed = time.monotonic()
        if not self.pending:
            return
        fault_point("label.before_commit")
        lost: list[StagedLabels] = []
        try:
            self.table.commit_labels([one.staged for one in self.pending], whole=False)
        except LabelConflictError as error:
            lost = error.lost
            self.problems.append(str(error))
        self.commits += len(lost) < len(self.pending)
        files = {staged.data_file for staged in lost}
        for one in self.pending:
            name, came_to_nothing = one.staged.expert, one.staged.data_file in files
            if came_to_nothing:
                self.lost.add((name, one.staged.fragment_id))
                self.tried[name] -= one.rows
                self.refused[name].subtract(one.refused)
            if one.result is not None:
                report = one.result.report
                # The time is spent, whatever came of it.
                self._count(name, StageReport(seconds=report.seconds) if came_to_nothing else report, one.result.worker)
        self.pending = []
        fault_point("label.committed")
