"""Labelling: what is stale and nothing else, refusals as rows, revisions that change only by acceptance."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_tables import QuickExpert, columns, config, make_table, rejects, sample_rows
from PIL import Image

from mtv_core import experts, labelling, labelling_accept, labelling_worker
from mtv_core.data.depth import decode
from mtv_core.executor import Outcome, SerialExecutor
from mtv_core.experts.source import WEIGHTS
from mtv_core.labelling import LabellingIncompleteError
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.labels import LabelWriter
from mtv_core.store.table import Table

SERIAL = SerialExecutor()


def run(table: Table, with_config: LabelConfig | None = None, executor: Any = SERIAL) -> labelling.LabelResult:
    return labelling.run(table.uri, with_config or config(), executor)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """24 rows without labels in 3 fragments."""
    return make_table(tmp_path / "table")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[QuickExpert]]:
    """Quick experts instead of models; the list of those that were loaded."""
    loaded: list[QuickExpert] = []

    def load(name: str, expert: Any) -> QuickExpert:
        loaded.append(QuickExpert(name, expert))
        return loaded[-1]

    monkeypatch.setattr(experts, "load", load)
    labelling_worker.loaded.cache_clear()
    yield loaded
    labelling_worker.loaded.cache_clear()


def data_files(table: Table) -> dict[str, str]:
    folder = Path(table.uri) / "samples.lance" / "data"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def break_expert(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Image.Image, str], Exception | None]) -> None:
    """Make every expert raise where `fails` gives an exception for a picture and its caption."""
    honest = QuickExpert.label

    def label(self: QuickExpert, image: Image.Image, caption: str) -> dict[str, object]:
        error = fails(image, caption)
        if error is not None:
            raise error
        return honest(self, image, caption)

    monkeypatch.setattr(QuickExpert, "label", label)


# What is labelled


def test_real_experts_store_what_they_say_of_each_picture(table: Table) -> None:
    labelling_worker.loaded.cache_clear()
    result = run(table, config("blocks:depth-r2", "blocks:detection-r2", batch_size=5))
    assert result.report.rows_out == 48
    depth, detection = (experts.load(name, expert) for name, expert in config("blocks:depth-r2", "blocks:detection-r2").experts().items())
    rows = Table.at(table.uri, tag=result.tag).dataset.to_table().to_pylist()
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]))
        alone = detection([image], [row["caption"]]).to_pylist()[0]
        assert row["phrases"] == alone["phrases"]
        np.testing.assert_allclose(np.reshape(row["boxes"], (-1, 4)), np.reshape(alone["boxes"], (-1, 4)), atol=1e-4)
        stored, said = decode(row["depth"]), decode(depth([image], [""])["depth"][0].as_py())
        assert stored.shape == (image.height, image.width)
        np.testing.assert_allclose(stored, said, atol=2e-3 * np.ptp(said))
        assert (row["depth_rev"], row["detection_rev"]) == (depth.revision, detection.revision)
    assert sum(bool(row["boxes"]) for row in rows) > 18


def test_every_row_gets_its_own_label(table: Table, quick: list[QuickExpert]) -> None:
    result = run(table)
    assert {expert.name for expert in quick} == {"depth", "detection"}  # each loaded once
    for row in Table.at(table.uri, tag=result.tag).dataset.to_table().to_pylist():
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
        for expert in quick:
            wanted = expert.label(image, row["caption"])
            assert {name: row[name] for name in wanted} == wanted
    assert result.report.counts == {
        "depth_fragments": 3, "depth_rows": 24, "detection_fragments": 3, "detection_rows": 24, "commits": 1,
    }  # fmt: skip


def test_a_rerun_opens_no_fragment_and_loads_nothing(table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch) -> None:
    first, files = run(table), data_files(table)
    monkeypatch.setattr(Table, "scan_fragment", None)
    monkeypatch.setattr(experts, "load", None)
    again = run(table)
    assert (again.version, again.tag, again.revisions) == (first.version, first.tag, first.revisions)
    assert again.report.rows_in == 0
    assert again.report.rows_skipped == 48
    assert data_files(table) == files


def test_new_rows_are_labelled_alone(table: Table, quick: list[QuickExpert]) -> None:
    before = run(table)
    old = columns(table)
    table.append(sample_rows(5, first=24))
    result = run(table)
    assert result.report.rows_in == 10
    assert result.tag != before.tag
    new = columns(table)
    for name in ("depth", "boxes"):
        assert dict(zip(old["uid"], old[name], strict=True)).items() <= dict(zip(new["uid"], new[name], strict=True)).items()


def test_deleted_rows_shift_no_label(table: Table, quick: list[QuickExpert]) -> None:
    table.dataset().delete("key in ('00000', '00003', '00015', '00023')")
    result = run(table)
    assert result.report.rows_in == 40
    labelled = columns(table)
    whole = make_table(Path(table.uri).parent / "whole")
    run(whole)
    wanted = columns(whole)
    by_uid = dict(zip(wanted["uid"], wanted["depth"], strict=True))
    assert labelled["depth"] == [by_uid[uid] for uid in labelled["uid"]]


def test_partly_labelled_fragments_keep_what_they_have(table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_expert(patch, lambda image, _: MemoryError("full") if image.width == 72 else None)
        with pytest.raises(LabellingIncompleteError, match=r"8 rows without depth labels and 8 rows without detection.*MemoryError: full"):
            run(table)
    assert not table.tags()
    assert not rejects(table)
    calls = [sum(expert.calls) for expert in quick]
    assert run(table).report.rows_in == 16
    assert [sum(expert.calls) for expert in quick] == [number + 8 for number in calls]
    whole = make_table(Path(table.uri).parent / "whole")
    run(whole)
    assert columns(table) == columns(whole)


def test_mixed_rows_are_tagged_if_allowed(table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch) -> None:
    break_expert(monkeypatch, lambda image, _: MemoryError("full") if image.width == 72 else None)
    result = run(table, config(allow_mixed=True))
    assert result.report.counts["transient"] == 16
    assert columns(table)["depth_rev"].count(None) == 8


# Refusals


def test_the_picture_to_blame_is_found_and_refused(table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch) -> None:
    caption = columns(table)["caption"][5]
    break_expert(monkeypatch, lambda _, said: RuntimeError("odd picture") if said == caption else None)
    result = run(table)
    rows = columns(table)
    bad = [i for i, said in enumerate(rows["caption"]) if said == caption]
    for expert, column in (("depth", "depth"), ("detection", "boxes")):
        assert [i for i, label in enumerate(rows[column]) if label is None] == bad
        assert set(rows[f"{expert}_rev"]) == {result.revisions[expert]}
    found = rejects(table)
    assert {(row["uid"], row["stage"]) for row in found} == {(rows["uid"][i], e) for i in bad for e in ("depth", "detection")}
    assert {(row["reject_class"], row["error"], row["message"]) for row in found} == {("bug", "RuntimeError", "RuntimeError: odd picture")}
    assert result.report.rows_rejected == len(found)
    assert run(table).report.rows_in == 0  # refused for good


def test_an_unreadable_picture_is_a_reject_row(tmp_path: Path, quick: list[QuickExpert]) -> None:
    rows = sample_rows(9).to_pylist()
    rows[4]["image"] = rows[4]["image"][:200]
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(sample_rows(0).from_pylist(rows, schema=sample_rows(1).schema))
    run(table)
    assert [(row["key"], row["error"], row["reject_class"]) for row in rejects(table)] == [("00004", "UnreadableImage", "data")] * 2
    assert columns(table)["depth"].count(None) == 1


def test_a_budget_stops_before_refusals_are_committed(tmp_path: Path, quick: list[QuickExpert]) -> None:
    rows = sample_rows(9).to_pylist()
    for row in rows[:3]:
        row["image"] = row["image"][:200]
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(sample_rows(0).from_pylist(rows, schema=sample_rows(1).schema))
    strict = config(failures={"min_samples": 2})
    for _ in range(2):  # what was staged counts too
        with pytest.raises(ValueError, match=r"label was stopped: 3 of 9 rows failed \(3 × UnreadableImage\).*these are staged"):
            run(table, strict)
        assert not rejects(table)
        assert columns(table)["depth_rev"] == [None] * 9
    assert run(table, config(failures={"min_samples": 2, "share": 0.5})).report.counts["commits"] >= 1
    assert len(rejects(table)) == 6


def test_an_expert_that_fails_on_everything_refuses_nothing(
    table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_expert(patch, lambda *_: RuntimeError("device lost"))
        with pytest.raises(ValueError, match=r"expert cannot be used: it fails on 8 of the first 8 pictures.*device lost"):
            run(table)
    assert not rejects(table)
    assert run(table).report.rows_out == 48


class Killer(SerialExecutor):
    """An executor that says of one expert's fragment that it kills its worker."""

    def map(self, function: Any, items: Sequence[Any], *, resources: Mapping[str, float] | None = None) -> Iterator[Outcome[Any, Any]]:
        for item in items:
            if (item.expert, item.fragment_id) == ("depth", 1):
                yield Outcome(item, error=RuntimeError("gone"), killed=True)
            else:
                yield from super().map(function, [item])


def test_a_fragment_that_kills_its_worker_stops_no_other(table: Table, quick: list[QuickExpert]) -> None:
    with pytest.raises(LabellingIncompleteError, match="8 rows without depth labels are left: the depth expert on fragment 1 kills"):
        run(table, executor=Killer())
    rows = columns(table)
    assert (rows["depth_rev"].count(None), rows["detection_rev"].count(None)) == (8, 0)
    assert run(table).report.rows_in == 8


def test_a_full_disk_ends_the_run_at_once(table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "no space left; free some")

    monkeypatch.setattr(LabelWriter, "write", full)
    with pytest.raises(OSError, match="no space left"):
        run(table)
    assert sum(len(expert.calls) for expert in quick) == 2  # one fragment's two batches


def test_a_mistake_of_ours_in_every_fragment_is_not_tried_to_the_end(
    tmp_path: Path, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, tried = make_table(tmp_path / "many", count=24, rows_per_fragment=1), []

    def broken(*_: object) -> None:
        tried.append(1)
        raise AssertionError("a mistake")

    monkeypatch.setattr(LabelWriter, "finish", broken)
    with pytest.raises(LabellingIncompleteError, match="on fragment 0: AssertionError: a mistake"):
        run(table)
    assert len(tried) < 40  # of 48


# Several at once


class Meddler(SerialExecutor):
    """An executor that does something else to the table after the first result."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        self.meddle = meddle

    def map(self, function: Any, items: Sequence[Any], *, resources: Mapping[str, float] | None = None) -> Iterator[Outcome[Any, Any]]:
        for index, outcome in enumerate(super().map(function, items)):
            if index == 1 and self.meddle:
                meddle, self.meddle = self.meddle, lambda: None
                meddle()
            yield outcome


def test_rows_that_come_meanwhile_are_labelled_too(table: Table, quick: list[QuickExpert]) -> None:
    result = run(table, executor=Meddler(lambda: table.append(sample_rows(4, first=24))))
    assert result.report.rows_in == 56
    assert columns(table)["depth_rev"] == [result.revisions["depth"]] * 28


@pytest.mark.parametrize("commit_fragments", [1, 50])
def test_another_run_meanwhile_ends_in_one_truth(table: Table, quick: list[QuickExpert], commit_fragments: int) -> None:
    result = run(table, config(commit_fragments=commit_fragments), Meddler(lambda: run(table)))
    whole = make_table(Path(table.uri).parent / "whole")
    run(whole)
    assert columns(table) == columns(whole)
    assert result.version == table.version


def test_commits_are_grouped(table: Table, quick: list[QuickExpert]) -> None:
    assert run(table, config(commit_fragments=2)).report.counts["commits"] == 3
    assert run(make_table(Path(table.uri).parent / "b"), config(commit_seconds=0)).report.counts["commits"] == 6


# Revisions


def test_accepting_revision_2_relabels_that_expert_alone(table: Table, quick: list[QuickExpert]) -> None:
    first = run(table)
    before, files = columns(table), data_files(table)
    result = run(table, config("blocks:depth-r2", accept="immediate"))
    after = columns(table)
    assert result.report.counts["depth_rows"] == 24
    assert "detection_rows" not in result.report.counts
    assert set(after["depth_rev"]) == {result.revisions["depth"]} != {first.revisions["depth"]}
    assert after["depth"] != before["depth"]
    changed = {"depth", "depth_rev"}
    assert {name: after[name] for name in after if name not in changed} == {name: before[name] for name in before if name not in changed}
    # No byte of any file that was there; and the new ones are all depth's.
    now = data_files(table)
    assert files.items() <= now.items()
    assert {name.split("-")[1] for name in now.keys() - files.keys()} == {"depth"}


def test_the_old_tag_still_shows_the_old_labels(table: Table, quick: list[QuickExpert]) -> None:
    first, before = run(table), columns(table)
    run(table, config("blocks:depth-r2", accept="immediate"))
    old = Table.at(table.uri, tag=first.tag).dataset.to_table().sort_by("uid")
    assert old["depth"].to_pylist() == before["depth"]


def test_the_gate_reports_and_changes_nothing(table: Table, quick: list[QuickExpert]) -> None:
    first, before = run(table), columns(table)
    heard: list[str] = []
    result = labelling.run(table.uri, config("blocks:depth-r2"), SERIAL, lambda done, total, message="": heard.append(message))
    assert result.revisions == first.revisions
    assert result.tag == first.tag
    assert result.proposed == {"depth": experts.revision("depth", config("blocks:depth-r2").experts()["depth"])}
    assert columns(table) == before
    assert f"depth {result.proposed['depth']} (accepted: {first.revisions['depth']})" in heard[-1]
    plan = labelling.plan(table.uri, config("blocks:depth-r2"))
    assert plan["depth"].proposed
    assert not plan["detection"].proposed


def test_accepted_weights_complete_new_rows_after_the_watched_folder_changed(
    table: Table, quick: list[QuickExpert], tmp_path: Path
) -> None:
    watched = Path(shutil.copytree(WEIGHTS / "depth-r1", tmp_path / "watched"))
    first = run(table, config(str(watched)))
    shutil.copytree(WEIGHTS / "depth-r2", watched, dirs_exist_ok=True)
    table.append(sample_rows(4, first=24))
    labelling_worker.loaded.cache_clear()  # as a new process
    result = run(table, config(str(watched)))
    assert result.revisions == first.revisions
    assert result.proposed.keys() == {"depth"}
    assert set(columns(table)["depth_rev"]) == {first.revisions["depth"]}


def test_kept_weights_that_are_gone_are_missed_only_when_needed(
    table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(table)
    shutil.rmtree(Path(table.uri) / "_experts")
    assert run(table, config("blocks:depth-r2")).report.rows_in == 0
    monkeypatch.undo()
    labelling_worker.loaded.cache_clear()
    table.append(sample_rows(4, first=24))
    with pytest.raises(ValueError, match=r"the depth expert cannot be used: there is no folder.*restore them"):
        run(table, config("blocks:depth-r2"))


def test_only_the_configured_experts(table: Table, quick: list[QuickExpert]) -> None:
    result = labelling.run(table.uri, LabelConfig(depth=None, detection=config().detection), SERIAL)
    assert result.revisions.keys() == {"detection"}
    assert "depth" not in columns(table)


# Mistakes


def test_no_table_is_answered(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mtv ingest"):
        labelling.run(str(tmp_path / "none"), config(), SERIAL)


def test_a_wrong_expert_changes_nothing(table: Table) -> None:
    version = table.version
    with pytest.raises(FileNotFoundError, match="no embedded expert"):
        run(table, config(detection="blocks:detection-r9"))
    assert table.version == version


def test_a_long_run_looks_at_the_table_anew_and_labels_each_fragment_once(
    table: Table, quick: list[QuickExpert], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = Table.open(str(shutil.copytree(table.uri, Path(table.uri).with_name("truth"))))
    labelling.run(truth.uri, config(), SERIAL)
    monkeypatch.setattr(labelling, "_WINDOW", 2)
    jobs: list[tuple[str, int, int]] = []
    told: list[tuple[int, int]] = []
    label_fragment = labelling.label_fragment

    def noted(job: Any) -> Any:
        jobs.append((job.expert, job.fragment_id, job.version))
        if len(jobs) == 3:  # somebody else labels what this run has not come to
            staged = label_fragment(replace(job, expert="detection", fragment_id=2, **_detection()))
            assert staged.staged is not None
            Table.open(table.uri).commit_labels([staged.staged])
        return label_fragment(job)

    def _detection() -> dict[str, Any]:
        known, expert = table.accepted()["detection"], config().experts()["detection"]
        tracked = labelling_accept.track("detection", expert, known)
        assignment = labelling_accept.assign(table, "detection", expert, tracked, known, "gate")
        return {"config": assignment.config, "revision": assignment.revision}

    monkeypatch.setattr(labelling, "label_fragment", noted)
    result = labelling.run(table.uri, config(), SERIAL, lambda done, total, message="": told.append((done, total)))
    assert columns(table) == columns(truth)
    assert [job[:2] for job in jobs] == [("depth", 0), ("detection", 0), ("depth", 1), ("detection", 1), ("depth", 2)]
    versions = [job[2] for job in jobs]
    assert versions[0] == versions[1] < versions[2] == versions[3] < versions[4]
    assert table.label_counts() == truth.label_counts()
    assert (told[0], told[-1]) == ((0, 48), (40, 48))
    assert result.report.rows_out == 40
