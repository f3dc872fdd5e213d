"""Imported labels are in the rows of their uids, whatever the form of the file; what cannot be taken is refused with a reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_tables import QuickExpert, columns, config, make_table, rejects, sample_rows
from PIL import Image

from mtv_core import experts, labelling, labelling_worker
from mtv_core.budget import BudgetExceededError, FailureBudget
from mtv_core.data.depth import decode, encode
from mtv_core.executor import SerialExecutor
from mtv_core.label_import import run
from mtv_core.label_import_files import ReadOptions, expert_of
from mtv_core.labelling_plan import plan
from mtv_core.store.table import Table

SERIAL = SerialExecutor()
DEPTH = ReadOptions(values="depth")
Row = dict[str, Any]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """24 labelled rows in 3 fragments."""
    monkeypatch.setattr(experts, "load", QuickExpert)
    labelling_worker.loaded.cache_clear()
    table = make_table(tmp_path / "table")
    labelling.run(table.uri, config(), SERIAL)
    yield table
    labelling_worker.loaded.cache_clear()


def rows_of(table: Table) -> list[Row]:
    found = columns(table)
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def own(table: Table, count: int = 24) -> list[Row]:
    """Boxes that nobody else would say, for the first rows by uid; every fifth row has none."""
    made = []
    for number, row in enumerate(rows_of(table)[:count]):
        boxes = [[0.0, 0.25, 0.5, (b + 1) / 8 + 0.25] for b in range(number % 5)]
        made.append({"uid": row["uid"], "boxes": boxes, "phrases": [f"thing {number}"] * len(boxes), "scores": [0.75] * len(boxes)})
    return made


def write(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        flat = [
            (row["uid"], phrase, *box, score)
            for row in rows
            for box, phrase, score in (list(zip(row["boxes"], row["phrases"], row["scores"], strict=True)) or [(("", "", "", ""), "", "")])
        ]
        path.write_text("uid,phrase,x1,y1,x2,y2,score\n" + "".join(",".join(map(str, line)) + "\n" for line in flat))
    return path


def labels_of(row: Row) -> Row:
    return {name: row[name] for name in ("boxes", "phrases", "scores")}


# Boxes


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_boxes_of_every_form(table: Table, tmp_path: Path, form: str) -> None:
    wanted = own(table)
    before = rows_of(table)
    result = run(table.uri, write(tmp_path / f"mine.{form}", wanted[::-1]))
    assert (result.expert, result.report.rows_in, result.report.rows_out, result.refused, result.without) == ("detection", 24, 24, {}, 0)
    for old, row, label in zip(before, rows_of(table), wanted, strict=True):
        assert labels_of(row) == {name: label[name] for name in ("boxes", "phrases", "scores")}
        assert row["detection_rev"] == result.revision
        assert {name: row[name] for name in row if name.startswith(("depth", "image", "caption"))} == {
            name: old[name] for name in row if name.startswith(("depth", "image", "caption"))
        }
    accepted = table.accepted()["detection"]
    assert (accepted.revision, accepted.source["model"]) == (result.revision, f"import:mine.{form}")
    assert result.tag is not None
    assert table.tag_revisions(result.tag)["detection"] == result.revision


def test_again_changes_nothing(table: Table, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.parquet", own(table))
    first = run(table.uri, file)
    version = table.version
    again = run(table.uri, file)
    assert (again.version, again.tag, again.revision) == (version, first.tag, first.revision)
    assert (again.report.rows_out, again.report.rows_skipped) == (0, 24)
    assert run(table.uri, write(tmp_path / "mine.parquet", own(table, 23))).revision != first.revision


def test_rows_that_are_not_in_the_file_have_no_label(table: Table, tmp_path: Path) -> None:
    result = run(table.uri, write(tmp_path / "mine.jsonl", own(table, 10)))
    assert (result.report.rows_out, result.without) == (10, 14)
    for number, row in enumerate(rows_of(table)):
        assert row["detection_rev"] == result.revision
        assert (row["boxes"] is None) == (number >= 10)
    assert result.tag is not None


def test_or_keep_what_they_have(table: Table, tmp_path: Path) -> None:
    before, expert = rows_of(table), table.accepted()["detection"].revision
    file = write(tmp_path / "mine.jsonl", own(table, 10))
    result = run(table.uri, file, keep_others=True)
    after = rows_of(table)
    assert [row["detection_rev"] for row in after] == [result.revision] * 10 + [expert] * 14
    assert [labels_of(row) for row in after[10:]] == [labels_of(row) for row in before[10:]]
    assert result.kept == {expert: 14}
    assert table.accepted()["detection"].source["imported"]["kept"] == {expert: 14}
    assert table.label_counts()["detection"] == {result.revision: 10, expert: 14}
    version = table.version
    assert run(table.uri, file, keep_others=True).version == version
    labelled = labelling.run(table.uri, config(), SERIAL)
    assert (labelled.tag, rows_of(table)) == (result.tag, after)
    table.append(sample_rows(5, first=24), 3)
    planned = plan(table.uri, config())["detection"]
    assert (planned.imported, planned.accepted, planned.stale.num_stale, planned.stale.num_fragments) == (file.name, result.revision, 5, 2)
    labelling.run(table.uri, config(), SERIAL)
    assert table.label_counts()["detection"] == {result.revision: 15, expert: 14}
    assert plan(table.uri, config())["detection"].stale.num_stale == 0
    assert [row for row in rows_of(table) if row["uid"] in {one["uid"] for one in after}] == after


def test_an_import_needs_no_model(table: Table, tmp_path: Path) -> None:
    result = run(table.uri, write(tmp_path / "mine.jsonl", own(table)))
    gone = config(detection=str(tmp_path / "gone"))
    planned = plan(table.uri, gone)["detection"]
    assert (planned.tracked, planned.proposed, planned.stale.num_stale) == (result.revision, False, 0)
    assert "there is no folder" in str(planned.unresolved)
    table.append(sample_rows(5, first=24), 3)
    labelled = labelling.run(table.uri, gone, SERIAL)
    assert labelled.revisions["detection"] == result.revision
    assert "detection" not in labelled.proposed
    assert "detection" not in labelling.run(table.uri, config(), SERIAL).proposed  # one that is there does not wait for being accepted
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        labelling.run(table.uri, gone.model_copy(update={"accept": "immediate"}), SERIAL)


def test_labelling_leaves_an_import_alone(table: Table, tmp_path: Path) -> None:
    result = run(table.uri, write(tmp_path / "mine.jsonl", own(table)))
    table.append(sample_rows(5, first=24), 3)
    labelled = labelling.run(table.uri, config(), SERIAL)
    assert labelled.revisions["detection"] == result.revision
    assert labelled.report.counts["detection_rows_not_in_the_import"] == 5
    rows = rows_of(table)
    assert {row["detection_rev"] for row in rows} == {result.revision}
    assert sum(row["boxes"] is None for row in rows) == 5
    assert all(row["depth"] is not None for row in rows)
    back = labelling.run(table.uri, config(accept="immediate"), SERIAL)
    assert back.revisions["detection"] != result.revision
    assert all(row["boxes"] is not None for row in rows_of(table))


def test_pixels_are_of_the_stored_image(table: Table, tmp_path: Path) -> None:
    rows = rows_of(table)
    file = write(
        tmp_path / "mine.jsonl",
        [{"uid": row["uid"], "boxes": [[12, 24, row["width"], row["height"]]], "phrases": ["all"]} for row in rows],
    )
    with pytest.raises(BudgetExceededError, match="16 of 24 rows failed"):
        run(table.uri, file, failures=FailureBudget(min_samples=10))
    assert rows_of(table) == rows
    refused = run(table.uri, file, check_only=True)
    assert refused.refused == {"BadBoxes": 24}
    assert "--units pixels" in refused.examples[0]
    run(table.uri, file, options=ReadOptions(units="pixels"))
    for row in rows_of(table):
        np.testing.assert_allclose(row["boxes"], [[12 / row["width"], 24 / row["height"], 1, 1]], rtol=1e-6)
        assert row["scores"] == [1.0]


BAD = {
    "outside": {"boxes": [[0.1, 0.1, 1.2, 0.5]], "phrases": ["a"]},
    "turned": {"boxes": [[0.5, 0.1, 0.2, 0.5]], "phrases": ["a"]},
    "nan": {"boxes": [[0.1, float("nan"), 0.2, 0.5]], "phrases": ["a"]},
    "three numbers": {"boxes": [[0.1, 0.2, 0.5]], "phrases": ["a"]},
    "no phrase": {"boxes": [[0.1, 0.1, 0.2, 0.5]], "phrases": [" "]},
    "uneven": {"boxes": [[0.1, 0.1, 0.2, 0.5]], "phrases": []},
    "score": {"boxes": [[0.1, 0.1, 0.2, 0.5]], "phrases": ["a"], "scores": [1.5]},
    "score is nan": {"boxes": [[0.1, 0.1, 0.2, 0.5]], "phrases": ["a"], "scores": [float("nan")]},
    "null": {"boxes": None, "phrases": None},
}


def test_bad_boxes_are_refused_one_by_one(table: Table, tmp_path: Path) -> None:
    rows = own(table)
    for row, bad in zip(rows, BAD.values(), strict=False):
        row.update({"scores": [0.5] * len(bad["boxes"] or ())} | bad)
    result = run(table.uri, write(tmp_path / "mine.jsonl", rows), failures=FailureBudget(share=1))
    assert result.refused == {"BadBoxes": len(BAD)}
    after = rows_of(table)
    assert [row["boxes"] is None for row in after] == [True] * len(BAD) + [False] * (24 - len(BAD))
    noted = {one["uid"]: one for one in rejects(table) if one["error"] == "BadBoxes"}
    assert set(noted) == {row["uid"] for row in after[: len(BAD)]}
    assert all(one["revision"] == result.revision and one["stage"] == "detection" for one in noted.values())
    # Over labels that are kept, a bad one changes nothing, and is noted too.
    kept = run(table.uri, tmp_path / "mine.jsonl", keep_others=True, failures=FailureBudget(share=1))
    assert kept.refused == {"BadBoxes": len(BAD)}
    assert len([one for one in rejects(table) if one["revision"] == kept.revision]) == len(BAD)


def test_uids_that_are_none_of_the_table_s(table: Table, tmp_path: Path) -> None:
    rows = own(table, 5)
    strange = [{**rows[0], "uid": uid} for uid in ("0" * 32, "cat.jpg", rows[1]["uid"] + "0")]
    result = run(table.uri, write(tmp_path / "mine.jsonl", [*rows, *strange, rows[2]]))
    assert result.refused == {"DuplicateUid": 1, "UnknownUid": 3}
    assert (result.report.rows_in, result.report.rows_out) == (9, 5)
    assert {one["key"] for one in rejects(table) if one["error"] == "UnknownUid"} == {one["uid"] for one in strange}
    version = table.version
    with pytest.raises(ValueError, match="no uid of"):
        run(table.uri, write(tmp_path / "other.jsonl", strange))
    assert table.version == version


def test_an_import_of_which_nothing_is_left_changes_nothing(table: Table, tmp_path: Path) -> None:
    before, accepted, tags = rows_of(table), table.accepted(), table.tags()
    pixels = write(tmp_path / "mine.jsonl", [{"uid": row["uid"], "boxes": [[12, 24, 40, 60]], "phrases": ["x"]} for row in before])
    with pytest.raises(BudgetExceededError, match=r"every label was refused: 24 × BadBoxes\. No label was changed.*--units pixels"):
        run(table.uri, pixels)
    with pytest.raises(BudgetExceededError, match="every label was refused"):  # as said again, or allowed to
        run(table.uri, pixels, failures=FailureBudget(share=1), keep_others=True)
    assert (rows_of(table), table.accepted(), table.tags()) == (before, accepted, tags)


def test_a_few_refusals_of_a_few_labels_are_too_many(table: Table, tmp_path: Path) -> None:
    rows = own(table)
    for row in rows[:6]:
        row.update(BAD["outside"], scores=[0.5])
    elsewhere = [{**rows[0], "uid": f"{number:032x}"} for number in range(100)]  # of another table: neither refused nor counted
    file, before = write(tmp_path / "mine.jsonl", rows + elsewhere), rows_of(table)
    with pytest.raises(
        BudgetExceededError, match=r"6 of 24 rows failed \(6 × BadBoxes\).*label\.failures\.share.*BadBoxes: .*inside the image"
    ):
        run(table.uri, file)
    assert "6 of 24 rows failed" in str(run(table.uri, file, check_only=True).stopped)
    assert rows_of(table) == before
    done = run(table.uri, file, failures=FailureBudget(share=0.25))
    assert (done.report.rows_out, done.refused) == (18, {"BadBoxes": 6, "UnknownUid": 100})
    version = table.version
    assert run(table.uri, file).version == version, "what is there is not judged again"


def test_uids_in_capitals(table: Table, tmp_path: Path) -> None:
    rows = own(table)
    capitals = [{**row, "uid": f" {row['uid'].upper()}"} for row in rows]
    for form in ("jsonl", "csv"):
        result = run(table.uri, write(tmp_path / f"mine.{form}", capitals))
        assert (result.report.rows_out, result.refused) == (24, {})
    assert [row["phrases"] for row in rows_of(table)] == [row["phrases"] for row in rows]
    depth = maps(table)
    upper = {uid.upper(): values for uid, values in depth.items()}
    assert run(table.uri, save(tmp_path, "one npz", upper), options=DEPTH).report.rows_out == 24


STRANGE = ('["boxes"]', '"boxes"', "[]", "5", '{"uid": 5, "boxes": [], "phrases": []}', "[" * 100_000)
STRANGE_BOXES = (
    {"x1": "a"}, {"uid": 5}, {"phrase": 5}, {"score": "high"}, {"score": [1]}, {"x2": {}}, {"y2": True}, {"x1": 10**400},
)  # fmt: skip


def test_a_line_that_cannot_be_read_is_left_out_alone(table: Table, tmp_path: Path) -> None:
    good, box = own(table)[:15], {"phrase": "c", "x1": 0.1, "y1": 0.1, "x2": 0.2, "y2": 0.2}
    others = own(table)[15:]
    lines = [*STRANGE, *(json.dumps({"uid": row["uid"], **box, **bad}) for row, bad in zip(others, STRANGE_BOXES, strict=False))]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join([*lines, *map(json.dumps, good), json.dumps({"uid": others[8]["uid"], **box})]))
    result = run(table.uri, file, failures=FailureBudget(share=0.6))
    assert (result.refused, result.report.rows_out) == ({"BadRow": 14}, 16)
    noted = {one["key"]: one["message"] for one in rejects(table)}
    assert set(noted) == {f"line {number}" for number in range(1, 15)}
    assert noted["line 1"] == "a line is one object: {…}"
    assert noted["line 7"] == f"x1 is 'a', no number; no box of the uid {others[0]['uid']} is taken"


def test_a_line_of_a_csv_that_cannot_be_read_is_left_out_alone(table: Table, tmp_path: Path) -> None:
    uids = [row["uid"] for row in rows_of(table)]
    lines = [
        f"{uids[0]},cat,.1,.1,.2,.2,0.9",
        f"{uids[1]},cat,.1,.1,.2,.2,high",
        f'{uids[2]},"a ""big"",\ndog", .1,.1,.2,.2,1',
        f"{uids[3]},cat,.1,.1,.2,.2",
        "",
        f"{uids[4]},cat,.1,.1,.2,.2,.5",
        f"{uids[4]},cat,.1,.1,a,.2,.5",
        f"{uids[5]},,,,,,",
    ]
    file = tmp_path / "mine.csv"
    file.write_text("uid,phrase,x1,y1,x2,y2,score\n" + "\n".join(lines))
    result = run(table.uri, file, failures=FailureBudget(share=0.6))
    assert (result.refused, result.report.rows_out) == ({"BadRow": 3}, 3)
    found = {row["uid"]: row for row in rows_of(table)}
    assert [found[uid]["phrases"] for uid in uids[:6]] == [["cat"], None, ['a "big", dog'], None, None, []]
    noted = {one["key"]: one["message"] for one in rejects(table)}
    assert noted["line 3"].startswith("score is 'high', no number")
    assert noted["line 6"].startswith("6 cells, and 7 columns")
    assert noted["line 9"] == f"x2 is 'a', no number; no box of the uid {uids[4]} is taken", "not a part of its boxes"


def test_a_column_of_another_kind(table: Table, tmp_path: Path) -> None:
    rows = [{"uid": row["uid"], "phrase": "c", "x1": "a", "y1": 0.1, "x2": 0.2, "y2": 0.2} for row in own(table)]
    with pytest.raises(ValueError, match=r"no row of .* can be read, for example row 1: x1 is 'a', no number"):
        run(table.uri, write(tmp_path / "mine.parquet", rows))
    (tmp_path / "maps.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"no \.npz"):
        run(table.uri, tmp_path / "maps.npz", options=DEPTH)


def test_labels_without_a_uid_are_told_apart(table: Table, tmp_path: Path) -> None:
    nobody = [{"uid": None, "boxes": [], "phrases": []}] * 2
    assert run(table.uri, write(tmp_path / "mine.jsonl", [*own(table), *nobody])).refused == {"UnknownUid": 2}
    assert [one["key"] for one in rejects(table)] == ["label 25", "label 26"]


def test_lines_that_are_no_json(table: Table, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", own(table))
    file.write_text(file.read_text() + '{"uid": \n{"uid": "x"}\n{"uid": "y", "boxes": "none"}\n')
    result = run(table.uri, file)
    assert (result.refused, result.report.rows_out) == ({"BadRow": 3}, 24)


def test_checking_changes_nothing(table: Table, tmp_path: Path) -> None:
    before, version = rows_of(table), table.version
    result = run(table.uri, write(tmp_path / "mine.csv", own(table, 20)), check_only=True)
    assert (result.report.rows_out, result.without, result.tag) == (20, 4, None)
    assert (table.version, rows_of(table), rejects(table)) == (version, before, [])
    assert not list((Path(table.uri) / "_staging").rglob("*.json"))


def test_deleted_rows_get_nothing(table: Table, tmp_path: Path) -> None:
    rows = own(table)
    table.dataset().delete(f"uid in ('{rows[3]['uid']}', '{rows[9]['uid']}')")
    result = run(table.uri, write(tmp_path / "mine.parquet", rows))
    assert (result.report.rows_out, result.refused) == (22, {"UnknownUid": 2})
    found = rows_of(table)
    assert [row["uid"] for row in found] == [row["uid"] for row in rows if row not in (rows[3], rows[9])]
    assert [row["phrases"] for row in found] == [row["phrases"] for row in rows if row not in (rows[3], rows[9])]


def test_into_a_table_without_labels(tmp_path: Path) -> None:
    table = make_table(tmp_path / "bare", count=9, rows_per_fragment=4)
    wanted = own(table)
    result = run(table.uri, write(tmp_path / "mine.parquet", wanted))
    assert [row["phrases"] for row in rows_of(table)] == [row["phrases"] for row in wanted]
    assert result.tag is not None


# Depth


def maps(table: Table) -> dict[str, np.ndarray[Any, Any]]:
    """Depth in m, twice as large as the picture, a plane of its own each."""
    made = {}
    for number, row in enumerate(rows_of(table)):
        y, x = np.mgrid[: 2 * row["height"], : 2 * row["width"]].astype(np.float32)
        made[row["uid"]] = 1 + number + x / 100 + y / 50
    return made


def save(folder: Path, form: str, depth: dict[str, np.ndarray[Any, Any]]) -> Path:
    if form == "one npz":
        np.savez(folder / "maps.npz", **depth)
        return folder / "maps.npz"
    if form == "parquet":
        return write(folder / "maps.parquet", [{"uid": uid, "depth": values.tolist()} for uid, values in depth.items()])
    maps = folder / "maps"
    maps.mkdir()
    for uid, values in depth.items():
        if form == "npy":
            np.save(maps / f"{uid}.npy", values)
        elif form == "png":
            Image.fromarray(np.rint(values * 1000).astype(np.uint16)).save(maps / f"{uid}.png")
        elif form == "tif":
            Image.fromarray(values).save(maps / f"{uid}.tif")
        else:
            height, width = values.shape
            header = f"Pf\n{width} {height}\n-1.0\n".encode()
            (maps / f"{uid}.pfm").write_bytes(header + struct.pack(f"<{values.size}f", *values[::-1].ravel()))
    return maps


@pytest.mark.parametrize("form", ["npy", "png", "tif", "pfm", "one npz", "parquet"])
def test_depth_of_every_form(table: Table, tmp_path: Path, form: str) -> None:
    depth = maps(table)
    options = DEPTH.model_copy(update={"scale": 1000.0 if form == "png" else 1.0, "depth_size": 96})
    result = run(table.uri, save(tmp_path, form, depth), options=options)
    assert (result.expert, result.report.rows_out, result.refused) == ("depth", 24, {})
    for row in rows_of(table):
        found, truth = 1 / decode(row["depth"]), depth[row["uid"]]
        assert found.shape == (row["height"], row["width"])
        pooled = truth.reshape(row["height"], 2, row["width"], 2).mean((1, 3))
        np.testing.assert_allclose(found[2:-2, 2:-2], pooled[2:-2, 2:-2], rtol=3e-3)
        np.testing.assert_allclose(found, pooled, rtol=1e-2)  # at the border the average is over less
        assert row["depth_rev"] == result.revision


def test_what_is_stored_comes_back_as_it_was(table: Table, tmp_path: Path) -> None:
    before = rows_of(table)
    odd = np.array([[1.0, np.nan], [0.5, 2.0]], np.float32)
    square = [row for row in before if row["width"] == row["height"]]
    run(table.uri, write(tmp_path / "mine.parquet", [{"uid": row["uid"], "depth": encode(odd)} for row in square]))
    for row in rows_of(table):
        if row["width"] == row["height"]:
            np.testing.assert_allclose(decode(row["depth"]), odd, rtol=1e-3)
        else:
            assert row["depth"] is None


def test_missing_values_stay_missing_and_spoil_no_neighbour(table: Table, tmp_path: Path) -> None:
    depth = maps(table)
    for values in depth.values():
        values[: len(values) // 2] = 0
    run(table.uri, save(tmp_path, "npy", depth), options=DEPTH.model_copy(update={"depth_size": 48}))
    for row in rows_of(table):
        found, truth = decode(row["depth"]), depth[row["uid"]]
        middle = len(found) // 2
        assert np.isnan(found[: middle - 1]).all()
        assert np.isfinite(found[middle + 1 :]).all()
        assert np.nanmax(1 / found) <= truth.max() * 1.01
        assert np.nanmin(1 / found) >= truth[truth > 0].min() * 0.99


def test_bad_maps_are_refused(table: Table, tmp_path: Path) -> None:
    depth = maps(table)
    first, second, third, fourth, *_ = depth
    depth[first] = depth[first][:, :40]
    depth[second] = np.full_like(depth[second], np.nan)
    depth[third] = depth[third][None]
    folder = save(tmp_path, "npy", depth)
    (folder / f"{fourth}.npy").write_bytes(b"no array")
    result = run(table.uri, folder, options=DEPTH)
    assert (result.refused, result.report.rows_out) == ({"BadDepth": 4}, 20)


def test_depth_has_to_say_what_it_is(table: Table, tmp_path: Path) -> None:
    folder = save(tmp_path, "npy", maps(table))
    with pytest.raises(ValueError, match="--values depth"):
        run(table.uri, folder)
    one = run(table.uri, folder, options=DEPTH, check_only=True)
    other = run(table.uri, folder, options=ReadOptions(values="disparity"), check_only=True)
    assert one.revision != other.revision


def test_files_that_hold_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="no file of labels"):
        expert_of(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        expert_of(tmp_path / "none.csv")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(ValueError, match="no Parquet file"):
        expert_of(tmp_path / "a.parquet")
