"""The canary: a sound update passes, broken ones do not, and whatever it finds changes nothing until somebody accepts."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from canary_experts import BROKEN_BOXES, BROKEN_DEPTH, SeeingExpert, cleared, seeing_experts
from label_tables import columns, config, make_table, sample_rows
from PIL import Image

from mtv_core import canary, experts, labelling, labelling_engine
from mtv_core.blocks.shards import truth
from mtv_core.canary import Canary
from mtv_core.data.depth import decode
from mtv_core.data.schema import SAMPLES
from mtv_core.executor import SerialExecutor
from mtv_core.label_compare import abs_rel
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

SERIAL = SerialExecutor()
fresh = pytest.fixture(autouse=True)(cleared)


def both(**fields: Any) -> LabelConfig:
    return config("blocks:depth-r2", "blocks:detection-r2", **fields)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows that experts which see have labelled."""
    table = make_table(tmp_path_factory.mktemp("canary") / "table", count=48, rows_per_fragment=16)
    with pytest.MonkeyPatch.context() as patch:
        seeing_experts(patch)
        labelling.run(table.uri, config(), SERIAL)
    return Path(table.uri)


@pytest.fixture
def table(labelled: Path, tmp_path: Path) -> Table:
    return Table.open(str(shutil.copytree(labelled, tmp_path / "table")))


def tried(table: Table, label: LabelConfig, **options: Any) -> list[Canary]:
    return canary.try_out(table.uri, label, SERIAL, **options)


def one(table: Table, name: str, **fields: Any) -> Canary:
    [found] = tried(table, both(**fields), names=[name])
    return found


def state(table: Table) -> tuple[int, dict[str, str]]:
    """Version, and every file but reports and locks with what is in it."""
    files = (path for path in Path(table.uri).rglob("*") if path.is_file())
    relative = {str(path.relative_to(table.uri)): path for path in files}
    kept = {name: path for name, path in relative.items() if not name.startswith(("_reports", "_locks"))}
    return table.version, {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(kept.items())}


# Sound and broken


def test_a_sound_update_passes(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    depth, detection = tried(table, both(price_per_hour=2))
    assert depth.passed, depth.reason
    assert detection.passed, detection.reason
    assert (depth.expert, detection.expert) == ("depth", "detection")
    assert (depth.rows, depth.figures["rows_compared"]) == (48, 48)
    assert 0 < depth.figures["abs_rel_median"] < 0.1
    assert detection.figures["found"] == 1
    assert 0.7 < detection.figures["iou"] < 1
    assert depth.work.num_stale == 48
    assert depth.work.cost is not None


@pytest.mark.parametrize("broken", BROKEN_DEPTH)
def test_broken_depth_does_not_pass(broken: str, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, broken)
    found = one(table, "depth")
    assert not found.passed
    telling = {"constant": "depth.max_constant", "missing": "depth.max_constant", "fails": "max_failed"}.get(broken, "depth.min_skill")
    assert telling in [check.name for check in found.failed]
    assert telling in found.reason


@pytest.mark.parametrize("broken", BROKEN_BOXES)
def test_broken_boxes_do_not_pass(broken: str, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, broken)
    found = one(table, "detection")
    assert not found.passed
    telling = {
        "filling": "detection.max_filling",
        "empty": "detection.max_broken",
        "nothing": "detection.max_none",
        "elsewhere": "detection.min_found",
        "many": "detection.max_ratio",
        "fails": "max_failed",
    }
    assert telling[broken] in [check.name for check in found.failed]


@pytest.mark.parametrize(("name", "broken"), [("depth", "constant"), ("depth", "fails"), ("detection", "empty"), ("detection", "fails")])
def test_an_expert_that_is_broken_on_some_pictures_does_not_pass(
    name: str, broken: str, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing_experts(monkeypatch, broken, every=6)
    found = one(table, name)
    share = np.mean([int(hashlib.sha256(_pixels(row)).digest()[0] % 6 == 0) for row in _images(table)])
    assert 0.03 < share < 0.5
    figure = {"constant": "constant_new", "fails": "failed", "empty": "broken"}[broken]
    assert found.figures[figure] == pytest.approx(share)
    assert not found.passed


def test_the_limits_are_the_configuration_s(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, "constant")
    assert one(table, "depth", gate={"depth": {"max_abs_rel": 10, "max_abs_rel_p95": 10, "min_skill": -1, "max_constant": 1}}).passed
    seeing_experts(monkeypatch)
    strict = one(table, "depth", gate={"depth": {"max_abs_rel": 0}})
    assert [check.name for check in strict.failed] == ["depth.max_abs_rel"]


def test_the_blocks_updates_pass_and_their_figures_are_those_of_a_loop(tmp_path: Path) -> None:
    table = make_table(tmp_path / "table", count=40, rows_per_fragment=20)
    labelling.run(table.uri, config(batch_size=16), SERIAL)
    before: dict[str, Any] = columns(table)
    depth, detection = tried(table, both(batch_size=16))
    assert depth.passed, depth.reason
    assert detection.passed, detection.reason
    for found in (depth, detection):
        canary.accept(table.uri, found, both(batch_size=16))
    labelling.run(table.uri, both(batch_size=16), SERIAL)
    after: dict[str, Any] = columns(table)
    errors = [abs_rel(decode(old), decode(new)) for old, new in zip(before["depth"], after["depth"], strict=True)]
    assert depth.figures["abs_rel_median"] == pytest.approx(np.median(errors), rel=1e-3)
    assert depth.figures["abs_rel_p95"] == pytest.approx(np.percentile(errors, 95), rel=1e-3)
    scores = [[score for row in side["scores"] for score in row] for side in (before, after)]
    assert detection.figures["score_old"] == pytest.approx(np.mean(scores[0]), rel=1e-3)
    assert detection.figures["score_new"] == pytest.approx(np.mean(scores[1]), rel=1e-3)
    assert detection.figures["boxes_new"] == pytest.approx(len(scores[1]) / 40)
    lost = sum(len(set(a) - set(b)) for a, b in zip(before["phrases"], after["phrases"], strict=True))
    assert detection.figures["phrases_lost"] == pytest.approx(lost / sum(len(set(a)) for a in before["phrases"]))
    # And it is an improvement: nearer to the truth of the scenes.
    truths = {row["uid"]: _inverse_depth(int(row["key"])) for row in _images(table)}
    wrong = [
        np.mean([abs_rel(truths[uid], decode(value)) for uid, value in zip(side["uid"], side["depth"], strict=True)])
        for side in (before, after)
    ]
    assert wrong[1] < 0.6 * wrong[0]


# Nothing changes


def test_a_canary_changes_nothing_of_the_table(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    before = state(table)
    assert len(tried(table, both())) == 2
    assert state(table) == before


def test_a_refused_canary_leaves_the_record_of_it_and_no_more(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, "noise")
    version, files = state(table)
    tags = table.tags()
    found = one(table, "depth")
    canary.reject(table.uri, found, found.reason)
    canary.reject(table.uri, found, found.reason)
    assert [(each.revision, each.reason) for each in table.rejected()["depth"]] == [(found.revision, found.reason)]
    now = state(table)
    assert now[0] == version
    assert {name: content for name, content in now[1].items() if not name.startswith("_rejected/")} == files
    assert tried(table, both(), names=["depth"]) == []
    monkeypatch.setattr(experts, "load", None)  # whoever loads an expert now fails
    result = labelling.run(table.uri, both(), SERIAL)
    assert (result.version, table.tags(), result.report.rows_out) == (version, tags, 0)
    assert [each.revision for each in tried(table, both(), names=["depth"], force=True)] == [found.revision]


def test_accepting_makes_all_rows_of_that_expert_stale_and_no_others(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    before = columns(table)
    found = one(table, "depth")
    canary.accept(table.uri, found, both())
    canary.accept(table.uri, found, both())
    assert table.stale("depth", found.revision).num_stale == 48
    result = labelling.run(table.uri, both(), SERIAL)
    after = columns(table)
    assert result.report.rows_out == 48
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["depth", "depth_rev"]
    assert set(after["depth_rev"]) == {found.revision}


def test_a_refused_revision_can_be_accepted_after_all(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    found = one(table, "depth")
    canary.reject(table.uri, found, "not today")
    [again] = tried(table, both(), names=["depth"], force=True)
    canary.accept(table.uri, again, both())
    assert table.accepted()["depth"].revision == found.revision
    assert "depth" not in table.rejected()
    with pytest.raises(ValueError, match="is the accepted one"):
        canary.reject(table.uri, found, "too late")


def test_what_was_not_tried_is_not_accepted(table: Table, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    weights = Path(experts.source.WEIGHTS)
    shutil.copytree(weights / "depth-r2", watched)
    with pytest.MonkeyPatch.context() as patch:
        seeing_experts(patch)
        [found] = tried(table, config(str(watched)), names=["depth"])
    edited = watched / "config.json"
    edited.write_text(edited.read_text() + "\n")
    with pytest.raises(ValueError, match="run `mtv refresh` again"):
        canary.accept(table.uri, found, config(str(watched)))
    assert table.accepted()["depth"].revision == found.accepted
    edited.write_text(edited.read_text()[:-1])
    canary.accept(table.uri, found, config(str(watched)))
    edited.write_text(edited.read_text() + "\n")
    canary.accept(table.uri, found, config(str(watched)))  # accepted it is, whatever the folder holds now


def test_a_canary_beside_what_is_not_accepted_any_more_is_not_accepted(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    found = one(table, "depth")
    table.accept("depth", "another", {"model": "another"})
    with pytest.raises(ValueError, match="another is accepted by now"):
        canary.accept(table.uri, found, both())


# Whom and when


def test_nothing_proposed_loads_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "load", None)
    assert tried(table, config()) == []
    assert tried(table, both(accept="immediate")) == []
    assert canary.proposed(table.uri, both()) == ["depth", "detection"]
    with pytest.raises(ValueError, match="no expert 'colour' configured; there are: depth, detection"):
        tried(table, both(), names=["colour"])


def test_the_first_labelling_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "load", None)
    assert tried(make_table(tmp_path / "new", count=2), both()) == []


def test_asked_twice_it_is_made_once_until_something_changes(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    found = one(table, "depth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "load", None)
        assert one(table, "depth") == found
        assert one(table, "depth", gate={"approval": True, "approval_timeout": 5}) == found
    moved = Table.open(str(shutil.copytree(table.uri, Path(table.uri).with_name("moved"))))
    [there] = canary.latest(moved.uri, both())
    assert there.page == found.page.replace(table.uri, moved.uri)
    assert all(Path(picture).is_relative_to(moved.uri) and Path(picture).is_file() for picture in there.pictures)
    assert one(table, "depth", gate={"rows": 20}).rows == 20
    found = one(table, "depth")
    table.append(sample_rows(3, first=48))
    assert canary.latest(table.uri, both()) == [found]  # what a person looked at
    assert one(table, "depth").version > found.version
    Path(one(table, "depth").page).unlink()  # as a takedown does
    assert canary.latest(table.uri, both()) == []
    assert Path(one(table, "depth").page).is_file()


def test_imported_labels_are_replaced_only_if_their_expert_is_named(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    known = table.accepted()["depth"]
    table.accept("depth", known.revision, {"imported": {"file": "mine", "keep_others": False}, "model": "mine", "license": "cc0-1.0"})
    assert [found.expert for found in tried(table, both())] == ["detection"]
    table.append(sample_rows(6, first=48))
    found = one(table, "depth", gate={"rows": 54})
    assert (found.accepted_license, found.accepted_model) == ("cc0-1.0", "mine")
    assert (found.rows, found.figures["rows_compared"], found.figures["rows_without_old"]) == (54, 48, 6)


# Old labels, and rows


def test_old_labels_that_are_not_stored_are_made_by_the_accepted_expert(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    table.append(sample_rows(12, first=48))
    found = one(table, "depth", gate={"rows": 60})
    assert (found.rows, found.figures["rows_compared"], found.figures["rows_without_old"]) == (60, 60, 0)
    # As good as the stored ones: they are of the same expert.
    assert found.figures["abs_rel_p95"] < 0.15


def test_rows_are_those_of_smallest_uid_and_labelled_ones_come_first(table: Table) -> None:
    table.append(sample_rows(30, first=48))
    view = Table.at(table.uri)
    accepted = table.accepted()["depth"].revision
    rows = [(row["depth_rev"] != accepted, row["uid"], i) for i, row in enumerate(view.take(range(78), ["uid", "depth_rev"]).to_pylist())]
    for count in (5, 48, 60, 500):
        assert canary.choose(view, "depth", accepted, count) == [i for _, _, i in sorted(rows)[:count]]


def test_pictures_that_cannot_be_read_are_nobody_s_fault(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    [row] = sample_rows(1, first=48).to_pylist()
    table.append(pa.Table.from_pylist([{**row, "image": row["image"][:150]}], schema=SAMPLES))
    found = one(table, "depth", gate={"rows": 49})
    assert (found.figures["rows_unreadable"], found.figures["failed"]) == (1, 0)
    assert found.passed


def test_what_fails_for_now_decides_nothing(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tired(SeeingExpert):
        def label(self, image: Any, caption: str) -> dict[str, object]:
            raise ConnectionError("the network had a moment")

    monkeypatch.setattr(experts, "load", lambda name, expert: Tired(name, expert))
    monkeypatch.setattr(labelling_engine, "RETRY_SECONDS", ())
    with pytest.raises(ConnectionError, match=r"48 of 48 rows failed for now: .*the network had a moment"):
        one(table, "depth")
    assert table.rejected() == {}
    assert not (Path(table.uri) / canary.FOLDER).exists()


def test_an_expert_that_cannot_be_loaded_is_said_so_and_not_refused(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, expert: Any) -> Any:
        raise ValueError("these weights are of something else")

    monkeypatch.setattr(experts, "load", load)
    with pytest.raises(ValueError, match="the depth expert cannot be tried: these weights are of something else"):
        one(table, "depth")
    assert table.rejected() == {}


def test_without_anything_to_compare_with_it_does_not_pass(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    table.accept("depth", "mine", {"imported": {"file": "mine", "keep_others": True}, "model": "mine"})  # no row has these labels
    found = one(table, "depth")
    assert [check.name for check in found.failed] == ["min_compared"]
    assert found.figures["rows_without_old"] == 48


# The page


def test_the_page_has_everything_fetches_nothing_and_escapes_the_data(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    rows = sample_rows(1, first=48).to_pylist()
    rows[0]["caption"] = "<script>alert(1)</script>"
    rows[0]["uid"] = "0" * 32  # the first of those by chance
    table.append(pa.Table.from_pylist(rows, schema=SAMPLES))
    labelling.run(table.uri, config(), SERIAL)
    for found in tried(table, both()):
        text = Path(found.page).read_text()
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)" in text
        assert not [attribute for attribute in ('src="http', 'href="http', "url(", "@import") if attribute in text]
        assert text.count("data:image/jpeg;base64,") == len(found.pictures)
        for said in (found.revision, found.accepted, found.license, "What accepting takes", *(check.name for check in found.checks)):
            assert said in text
        assert all(Path(picture).read_bytes()[:2] == b"\xff\xd8" for picture in found.pictures)
        assert Path(found.pictures[0]).name == "changed-01.jpg"


@pytest.mark.parametrize("broken", ["fails", "empty", "nothing"])
def test_a_page_is_made_of_whatever_an_expert_says(broken: str, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch, broken)
    found = one(table, "detection")
    assert f"{len(found.failed)} of {len(found.checks)} checks failed" in Path(found.page).read_text()
    assert ("RuntimeError: the expert is broken" in Path(found.page).read_text()) == (broken == "fails")
    assert len(found.pictures) >= 12


def _images(table: Table) -> Iterator[dict[str, Any]]:
    view = Table.at(table.uri)
    yield from view.take(range(view.num_rows), ["uid", "key", "image"]).to_pylist()


def _pixels(row: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(row["image"])).convert("RGB").tobytes()


def _inverse_depth(key: int) -> np.ndarray:
    depth = truth(3, key, *((96, 96), (96, 72), (72, 96))[key % 3]).rendered.depth
    known = np.isfinite(depth) & (depth > 0)
    return np.where(known, 1 / np.where(known, depth, 1), 0)
