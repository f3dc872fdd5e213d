"""Labelling after something went wrong: a wrong first expert, one that cannot be looked up, a budget that was exceeded, a conflict."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import label_tables
import pyarrow as pa
import pytest
from label_tables import QuickExpert, columns, config, make_table, rejects, sample_rows
from PIL import Image

from mtv_core import canary, labelling, labelling_worker
from mtv_core.data.schema import SAMPLES
from mtv_core.executor import Outcome, SerialExecutor
from mtv_core.experts.source import WEIGHTS
from mtv_core.labelling_config import LabelConfig
from mtv_core.labelling_plan import plan, revisions
from mtv_core.store import rates
from mtv_core.store.table import Table

SERIAL = SerialExecutor()
DEPTH_ALONE = config().model_copy(update={"detection": None})

quick = pytest.fixture(autouse=True)(label_tables.quick_experts)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """24 rows without labels in 3 fragments."""
    return make_table(tmp_path / "table")


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A folder with a depth expert."""
    return Path(shutil.copytree(WEIGHTS / "depth-r1", tmp_path / "watched"))


def run(table: Table, with_config: LabelConfig | None = None, executor: Any = SERIAL, **more: Any) -> labelling.LabelResult:
    labelling_worker.loaded.cache_clear()  # as a new process
    return labelling.run(table.uri, with_config or config(), executor, **more)


def fails(monkeypatch: pytest.MonkeyPatch, which: Callable[[int], bool]) -> None:
    """Experts that fail on some pictures, told by the order in which they are seen first."""
    honest, seen = QuickExpert.label, dict[bytes, int]()

    def label(self: QuickExpert, image: Image.Image, caption: str) -> dict[str, object]:
        if which(seen.setdefault(image.tobytes(), len(seen))):
            raise RuntimeError("driver bug")
        return honest(self, image, caption)

    monkeypatch.setattr(QuickExpert, "label", label)


# A first labelling that came to nothing


def test_a_wrong_first_expert_is_not_what_later_labels_are_made_by(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # real experts
    wrong = config("blocks:detection-r1").model_copy(update={"detection": None})
    with pytest.raises(ValueError, match="the depth expert cannot be used"):
        run(table, wrong)
    assert canary.proposed(table.uri, DEPTH_ALONE) == []
    planned = plan(table.uri, DEPTH_ALONE)["depth"]
    assert (planned.accepted, planned.target, planned.stale.num_stale) == (None, revisions(DEPTH_ALONE)["depth"], 24)
    result = run(table, DEPTH_ALONE)
    assert result.revisions == revisions(DEPTH_ALONE)
    assert table.label_counts()["depth"] == {result.revisions["depth"]: 24}
    assert table.accepted()["depth"].revision == result.revisions["depth"]


def test_what_a_killed_first_labelling_staged_is_published(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Table, "commit_labels", _killed)
        with pytest.raises(KeyboardInterrupt):
            run(table)
    monkeypatch.setattr(labelling, "label_fragment", None)  # whoever labels now fails
    assert run(table).report.counts == {"commits": 1}
    assert {name: set(counts.values()) for name, counts in table.label_counts().items()} == {"depth": {24}, "detection": {24}}


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_rows_that_were_all_refused_are_labels_of_an_accepted_expert(tmp_path: Path) -> None:
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(pa.Table.from_pylist([{**row, "image": row["image"][:150]} for row in sample_rows(3).to_pylist()], schema=SAMPLES))
    first = run(table, DEPTH_ALONE)
    assert columns(table)["depth"] == [None] * 3
    second = run(table, config("blocks:depth-r2").model_copy(update={"detection": None}))
    assert second.revisions == first.revisions
    assert second.proposed.keys() == {"depth"}


def test_a_refresh_that_ended_half_way_is_not_a_first_labelling(table: Table) -> None:
    run(table)
    table.accept("depth", "passed", table.accepted()["depth"].source)  # it passed, and no row has its labels yet
    planned = plan(table.uri, config("blocks:depth-r2"))["depth"]
    assert (planned.accepted, planned.target, planned.proposed) == ("passed", "passed", True)
    assert canary.proposed(table.uri, config("blocks:depth-r2"), names=["depth"]) == ["depth"]


def test_an_import_is_in_force_without_a_row(table: Table) -> None:
    table.accept("depth", "mine", {"imported": {"file": "mine", "keep_others": True}, "model": "import:mine"})
    planned = plan(table.uri, config())["depth"]
    assert (planned.accepted, planned.imported) == ("mine", "mine")


def test_whether_anything_is_labelled_is_known_without_reading_rows(table: Table) -> None:
    assert not table.label_state().any_labelled("depth")
    table.ensure_columns("depth")
    assert not table.label_state().any_labelled("depth")
    table.dataset().optimize.compact_files(target_rows_per_fragment=100)
    assert not table.label_state().any_labelled("depth")
    table.append(sample_rows(8, first=24), 8)
    run(table)
    table.append(sample_rows(8, first=32), 8)
    data = Path(table.uri) / "samples.lance" / "data"
    data.rename(data.with_name("elsewhere"))
    assert table.label_state().any_labelled("depth")
    data.with_name("elsewhere").rename(data)
    table.dataset().optimize.compact_files(target_rows_per_fragment=100)
    assert table.label_state().any_labelled("depth")


# An expert that cannot be looked up


def test_appended_rows_get_the_accepted_expert_where_the_configured_one_is_gone(table: Table, watched: Path) -> None:
    tracked = config(str(watched))
    first = run(table, tracked)
    watched.rename(watched.with_name("moved"))
    table.append(sample_rows(4, first=24))
    plans = plan(table.uri, tracked)
    assert "there is no folder" in str(plans["depth"].unresolved)
    assert (plans["depth"].stale.num_stale, plans["depth"].proposal, plans["detection"].unresolved) == (4, None, None)
    heard: list[str] = []
    result = run(table, tracked, progress=lambda done, total, message="": heard.append(message))
    assert result.revisions == first.revisions
    assert set(columns(table)["depth_rev"]) == {first.revisions["depth"]}
    assert (result.proposed, result.unresolved.keys(), result.report.counts["depth_unresolved"]) == ({}, {"depth"}, 1)
    assert any(f"the accepted expert was used: depth {first.revisions['depth']}, since there is no folder" in said for said in heard)
    assert revisions(tracked, table) == first.revisions
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        revisions(tracked)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run(table, tracked.model_copy(update={"accept": "immediate"}))


def test_a_licence_that_changed_keeps_no_rows_without_labels(table: Table, watched: Path) -> None:
    tracked = config(str(watched))
    run(table, tracked)
    (watched / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n")
    table.append(sample_rows(4, first=24))
    result = run(table, tracked)
    assert "accept_license" in result.unresolved["depth"]
    assert table.label_counts()["depth"] == {result.revisions["depth"]: 28}


def test_before_the_first_labelling_the_expert_is_needed(table: Table, watched: Path) -> None:
    watched.rename(watched.with_name("moved"))
    version = table.version
    for look in (lambda: plan(table.uri, config(str(watched))), lambda: run(table, config(str(watched)))):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            look()
    assert table.version == version
    assert revisions(config(), Table.create_or_open(str(watched / "none"))).keys() == {"depth", "detection"}


def test_an_expert_that_cannot_be_looked_up_holds_no_other_s_canary_up(table: Table, watched: Path) -> None:
    run(table, config(str(watched)))
    watched.rename(watched.with_name("moved"))
    both = config(str(watched), "blocks:detection-r2")
    assert canary.proposed(table.uri, both) == ["detection"]
    assert [found.expert for found in canary.try_out(table.uri, both, SERIAL)] == ["detection"]
    assert canary.proposed(table.uri, both, names=["detection"]) == ["detection"]
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        canary.try_out(table.uri, both, SERIAL, names=["depth"])


# A column that is not there


def test_a_phrases_column_that_is_missing_is_said_before_anything_is_accepted(table: Table) -> None:
    version = table.version
    missing = config().model_copy(update={"detection": config().experts()["detection"].model_copy(update={"phrases_column": "tags"})})
    with pytest.raises(ValueError, match=r"the table has no column 'tags' for label\.detection\.phrases_column; it has uid, image"):
        run(table, missing)
    assert (table.version, table.accepted()) == (version, {})
    first = run(table)
    with pytest.raises(ValueError, match="the table has no column 'tags'"):
        canary.try_out(table.uri, missing, SERIAL)
    with pytest.raises(ValueError, match="the table has no column 'tags'"):
        run(table, missing.model_copy(update={"accept": "immediate"}))
    table.append(sample_rows(4, first=24))
    assert run(table, missing).revisions == first.revisions  # it is only proposed
    assert set(columns(table)["detection_rev"]) == {first.revisions["detection"]}


@pytest.mark.parametrize("column", ["meta.tags", "caption"])
def test_a_phrases_column_that_is_there_is_taken(table: Table, column: str) -> None:
    there = config().model_copy(update={"detection": config().experts()["detection"].model_copy(update={"phrases_column": column})})
    assert run(table, there).report.rows_out == 48


# A budget that was exceeded


def test_a_budget_is_not_exceeded_for_ever(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = DEPTH_ALONE.model_copy(update={"failures": config(failures={"min_samples": 1, "share": 0.1}).failures})
    with monkeypatch.context() as patch:
        fails(patch, lambda number: number in (0, 5, 9, 17))
        for _ in range(2):
            with pytest.raises(ValueError, match="rows failed"):
                run(table, strict)
    result = run(table, strict)
    assert table.label_counts()["depth"] == {result.revisions["depth"]: 24}
    assert None not in columns(table)["depth"]
    assert rejects(table) == []


def test_leftovers_without_refusals_are_not_labelled_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = DEPTH_ALONE.model_copy(update={"failures": config(failures={"min_samples": 1, "share": 0.1}).failures})
    with monkeypatch.context() as patch:
        fails(patch, lambda number: number in (17, 18, 20))  # all in the last fragment
        with pytest.raises(ValueError, match="3 of 24 rows failed"):
            run(table, strict)
    assert run(table, strict).report.rows_in == 8


def test_leftovers_are_judged_together(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    some = DEPTH_ALONE.model_copy(update={"failures": config(failures={"min_samples": 1, "share": 0.1}).failures})
    with monkeypatch.context() as patch:
        fails(patch, lambda number: number == 0)  # an eighth of its fragment, and less than a tenth of all
        patch.setattr(Table, "commit_labels", _killed)
        with pytest.raises(KeyboardInterrupt):
            run(table, some.model_copy(update={"failures": LabelConfig().failures}))
    monkeypatch.setattr(labelling, "label_fragment", None)  # whoever labels now fails
    run(table, some)
    assert len(rejects(table)) == 1


# Conflicts


class Meddler(SerialExecutor):
    """An executor that does something else to the table after some results, once."""

    def __init__(self, after: int, meddle: Callable[[], object]) -> None:
        self.after, self.meddle, self.jobs = after, meddle, list[tuple[str, int]]()

    def map(self, function: Any, items: Sequence[Any], *, resources: Mapping[str, float] | None = None) -> Iterator[Outcome[Any, Any]]:
        for outcome in super().map(function, items):
            self.jobs.append((outcome.item.expert, outcome.item.fragment_id))
            if len(self.jobs) == self.after:
                self.meddle()
            yield outcome


def test_a_conflict_costs_its_fragment_alone_and_is_counted_once(table: Table) -> None:
    def compact() -> None:  # the first fragment becomes another one
        first = table.read_fragment(table.version, 0, ["uid"])["uid"].to_pylist()
        table.dataset().delete(f"uid in ({', '.join(map(repr, first[:4]))})")
        table.dataset().optimize.compact_files(target_rows_per_fragment=8, materialize_deletions_threshold=0.1)

    executor = Meddler(3, compact)
    result = run(table, DEPTH_ALONE, executor)
    assert executor.jobs[:3] == [("depth", 0), ("depth", 1), ("depth", 2)]
    assert len(executor.jobs) == 4
    assert (result.report.rows_in, result.report.rows_out) == (20, 20)
    assert (result.report.counts["depth_rows"], result.report.counts["depth_fragments"]) == (20, 3)
    measured = rates.last(table, "depth", result.revisions["depth"])
    assert measured is not None
    assert (measured.rows, measured.bytes_written) == (20, result.report.bytes_written)
    assert table.label_counts()["depth"] == {result.revisions["depth"]: 20}


def test_a_fragment_that_cannot_be_labelled_is_not_tried_again_for_another_s_conflict(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meddle() -> None:  # somebody else labels the first fragment
        version = table.version
        rows = table.read_fragment(version, 0, ["uid"]).num_rows
        batch = pa.table({"depth": pa.nulls(rows, pa.binary()), "depth_rev": ["theirs"] * rows})
        table.commit_labels([table.stage_labels("depth", version, 0, batch)])

    honest = labelling.label_fragment

    def label_fragment(job: Any) -> Any:
        if job.fragment_id == 1:
            raise AssertionError("a mistake")
        return honest(job)

    monkeypatch.setattr(labelling, "label_fragment", label_fragment)
    executor = Meddler(3, meddle)
    with pytest.raises(labelling.LabellingIncompleteError, match="8 rows without depth labels"):
        run(table, DEPTH_ALONE, executor)
    assert executor.jobs == [("depth", 0), ("depth", 1), ("depth", 2), ("depth", 0)]
    assert table.label_counts()["depth"] == {"": 8, revisions(DEPTH_ALONE)["depth"]: 16}
