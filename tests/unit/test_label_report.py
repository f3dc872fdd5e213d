"""The report of labels: its groups against naive loops over all rows, how little it reads, and pages that nothing in the data can break."""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_tables import config, make_table, sample_rows
from PIL import Image

from mtv_core import label_import, label_report, viz
from mtv_core import label_report_charts as charts
from mtv_core.data.depth import encode
from mtv_core.data.schema import label_schema
from mtv_core.label_import_files import ReadOptions
from mtv_core.label_report_change import change
from mtv_core.label_report_facts import LabelReport
from mtv_core.label_report_rows import find
from mtv_core.label_report_sample import CHANGED
from mtv_core.label_report_text import cell, markdown
from mtv_core.report import Reject, StageReport
from mtv_core.store import takedown
from mtv_core.store.table import Table
from mtv_core.store.takedown_request import Request
from mtv_core.store.view import View

OLD, NEW = "a" * 16, "b" * 16
NASTY = '<script>alert(1)</script> "onload=x" \'&amp; | `code` [a](http://x) 日本語 \x1b[31m'
Label = dict[str, Any] | None


def write_labels(table: Table, expert: str, labels: dict[str, Label], revision: str, default: Label = None) -> None:
    """Label every row: uid → label; of rows that are not named, the default. None: no label, but looked at."""
    table.ensure_columns(expert)
    schema = label_schema(expert)
    version, dataset = table.version, table.dataset()
    staged = []
    for fragment in dataset.get_fragments():
        uids = table.read_fragment(version, fragment.fragment_id, ["uid"])["uid"].to_pylist()
        rows = [{**(labels.get(uid, default) or {}), f"{expert}_rev": revision} for uid in uids]
        batch = pa.Table.from_pylist(rows, schema=schema)
        staged.append(table.stage_labels(expert, version, fragment.fragment_id, batch, revision=revision))
    table.commit_labels(staged)


def random_labels(uids: Sequence[str], seed: int) -> tuple[dict[str, Label], dict[str, Label]]:
    """Depth and detection, with rows that have none."""
    random = np.random.default_rng(seed)
    depth: dict[str, Label] = {}
    boxes: dict[str, Label] = {}
    for uid in uids:
        depth[uid] = None if random.random() < 0.15 else {"depth": encode(random.random((6, 8)).astype(np.float32))}
        count = int(random.integers(0, 5))
        corners = random.random((count, 2, 2)).astype(np.float32)
        sides = np.concatenate([corners.min(1), corners.max(1)], 1) if count else np.zeros((0, 4), np.float32)
        boxes[uid] = None if random.random() < 0.15 else {
            "boxes": sides.tolist(),
            "phrases": random.choice(["red cube", "blue cone", NASTY], count).tolist(),
            "scores": random.random(count).astype(np.float32).tolist(),
        }  # fmt: skip
    return depth, boxes


def uids_of(table: Table) -> list[str]:
    return [row["uid"] for row in table.at(table.uri).dataset.to_table(columns=["uid"]).to_pylist()]


def accept(table: Table, expert: str, revision: str, **facts: object) -> None:
    known = getattr(config(), expert)
    source = {
        "model": known.model,
        "license": "apache-2.0",
        "identity": {"folder_sha256": "0" * 64},
        "config": known.model_dump(mode="json"),
    }
    table.accept(expert, revision, source | facts)


def relabelled(folder: Path, seed: int, count: int = 20) -> tuple[Table, int]:
    """A table with random labels, rows that came and went since the version that is returned, and other random labels."""
    table = make_table(folder, count, 6)
    uids = uids_of(table)
    for expert, labels in zip(("depth", "detection"), random_labels(uids, seed), strict=True):
        write_labels(table, expert, labels, OLD)
    before = table.version
    table.append(sample_rows(5, first=count), 6)
    table.dataset().delete(f"uid = '{uids[3]}' or uid = '{uids[7]}'")
    for expert, labels in zip(("depth", "detection"), random_labels(uids_of(table), seed + 100), strict=True):
        write_labels(table, expert, labels, NEW)
        accept(table, expert, NEW)
    return table, before


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return relabelled(tmp_path_factory.mktemp("report"), 0)[0]


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_what_sorting_all_rows_gives(tmp_path: Path, seed: int) -> None:
    table, before = relabelled(tmp_path, seed)
    sample = (12, 1000)[seed % 2]
    document = label_report.collect(table, table.version, {}, before, config(), shown=4, sample=sample)
    rows = sorted(table.at(table.uri).dataset.to_table().to_pylist(), key=lambda row: row["uid"])
    old = {row["uid"]: row for row in table.at(table.uri, version=before).dataset.to_table().to_pylist()}
    boxes = [row for row in rows if row["boxes"]]
    expected: dict[str, list[str]] = {
        "random": [row["uid"] for row in rows][:4],
        "lowest-score": [row["uid"] for row in sorted(boxes, key=lambda row: (max(row["scores"]), row["uid"]))][:4],
        "most-boxes": [row["uid"] for row in sorted(boxes, key=lambda row: (-len(row["scores"]), row["uid"]))][:4],
        "none": [row["uid"] for row in rows if row["boxes"] == []][:4],
    }
    changes: dict[str, list[float]] = {}
    for expert in ("depth", "detection"):
        found = [(change(expert, old[row["uid"]], row), row["uid"]) for row in rows[:sample] if row["uid"] in old]
        found = sorted(((amount, uid) for amount, uid in found if not math.isnan(amount)), key=lambda one: (-one[0], one[1]))
        changes[expert] = [amount for amount, _ in found]
        expected[f"largest-change-{expert}"] = [uid for amount, uid in found if amount >= CHANGED][:4]
    groups = {group.name: group for group in document.shown}
    for name, uids in expected.items():
        assert [row.values["uid"] for row in groups[name].rows()] == uids if uids else name not in groups, name
    for expert in ("depth", "detection"):
        group = groups[f"largest-change-{expert}"]
        columns = label_schema(expert).names
        assert all({name: old[row.values["uid"]][name] for name in columns} == row.before for row in group.rows())
        result = document.report.changes[expert]
        assert result.rows == len(changes[expert]) == sum(result.amounts)
        assert result.mean == pytest.approx(np.mean(changes[expert]), abs=1e-4)
    assert document.report.boxes is not None
    assert document.report.boxes.number == sum(len(row["boxes"] or ()) for row in rows)
    counted = Counter(phrase for row in rows[:sample] for phrase in row["phrases"] or ())
    assert {one.phrase: one.boxes for one in document.report.phrases} == dict(counted)
    for expert, column in (("depth", "depth"), ("detection", "boxes")):
        facts = document.report.experts[expert]
        assert (facts.revision, facts.license, sum(facts.stored.values())) == (NEW, "apache-2.0", len(rows))
        assert expert == "depth" or facts.labelled == sum(row[column] is not None for row in rows)


class Reads:
    """What is read of a table: rows by column."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: Counter[str] = Counter()
        take, scan = View.take, View.scan

        def counted_take(view: View, indices: Any, columns: Sequence[str]) -> pa.Table:
            found = take(view, indices, columns)
            self.rows.update(dict.fromkeys(columns, found.num_rows))
            return found

        def counted_scan(view: View, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
            for batch in scan(view, *arguments, **options):
                self.rows.update(dict.fromkeys(batch.schema.names, batch.num_rows))
                yield batch

        monkeypatch.setattr(View, "take", counted_take)
        monkeypatch.setattr(View, "scan", counted_scan)


def test_pictures_and_labels_that_are_read_do_not_grow_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_report, "collect", _small(label_report.collect))
    seen = []
    for count in (30, 90):
        table, before = relabelled(tmp_path / str(count), 1, count)
        reads = Reads(monkeypatch)
        label_report.write(table, table.version, {}, before, config())
        monkeypatch.undo()
        monkeypatch.setattr(label_report, "collect", _small(label_report.collect))
        report = LabelReport.model_validate_json(table.files.read(f"_reports/labels/{table.version}/report.json"))
        assert reads.rows["image"] == sum(report.pages.values()) <= 6 * 3 + 5 * 12
        assert reads.rows["depth"] <= reads.rows["image"] + 3 * 8
        assert reads.rows["boxes"] <= reads.rows["image"] + 3 * 8
        assert reads.rows["uid"] >= count, "the column scan"
        seen.append(reads.rows["image"])
    assert seen[1] <= seen[0] + 12


def _small(collect: Any) -> Any:
    return lambda *arguments, **options: collect(*arguments, **options, shown=3, sample=8)


class Look(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(page: str, names: set[str]) -> Look:
    found = Look(page)
    assert not found.open
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes), attributes
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
        if "href" in attributes:
            assert attributes["href"] in names
    assert not re.search(r"url\(|@import|https?:", re.sub(r"http://x", "", page))
    return found


def nasty(folder: Path) -> Table:
    """Captions and phrases that would like to be more than text."""
    table = Table.create_or_open(str(folder))
    rows = sample_rows(9)
    for name in ("caption", "caption_raw"):
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), pa.array([NASTY] * 9))
    table.append(rows, 4)
    depth, boxes = random_labels(uids_of(table), 5)
    write_labels(table, "depth", depth, NEW)
    write_labels(
        table,
        "detection",
        {**boxes, uids_of(table)[0]: {"boxes": [[0.1] * 2 + [0.9] * 2] * 45, "phrases": [NASTY] * 45, "scores": [1.0] * 45}},
        NEW,
    )
    accept(table, "detection", NEW, model=NASTY, license=NASTY)
    shard, key = rows["shard"][0].as_py(), rows["key"][0].as_py()
    table.rejects.append(
        [Reject(uid=rows["uid"][0].as_py(), shard=shard, key=key, stage="detection", error=NASTY, message=NASTY, revision=NEW)]
    )
    return table


def test_nothing_in_the_data_is_more_than_text(tmp_path: Path) -> None:
    table = nasty(tmp_path)
    files = label_report.write(
        table, table.version, {}, None, config(), report=StageReport(counts={f"detection_filter_{NASTY}": 3, "rows": 1})
    )
    pages = [name for name in files if name.endswith(".html")]
    for name in pages:
        found = check_page(Path(files[name]).read_text(), {*files})
        assert NASTY in found.text, name
    text = Path(files["report.md"]).read_text()
    assert "<script" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 20
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 4, 5, 6}
    assert json.loads(Path(files["report.json"]).read_text())["dropped"] == {NASTY: 3}
    assert "45" in check_page(Path(files["most-boxes.html"]).read_text(), {*files}).text
    assert "and 5 more" in Path(files["most-boxes.html"]).read_text()


@given(st.text(max_size=60))
def test_a_cell_is_one_cell(text: str) -> None:
    found = cell(text)
    assert "\n" not in found
    assert "<" not in found
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[]", found)


def test_every_page_is_linked_and_holds_its_pictures(table: Table, tmp_path: Path) -> None:
    files = label_report.write(table, table.version, {}, None, config(), folder="_reports/try")
    pages = {name for name in files if name.endswith(".html")}
    index = check_page(Path(files["index.html"]).read_text(), {*files})
    assert {str(attributes["href"]) for tag, attributes in index.tags if tag == "a"} == pages - {"index.html"}
    report = LabelReport.model_validate_json(Path(files["report.json"]).read_text())
    for name, rows in report.pages.items():
        found = check_page(Path(files[name]).read_text(), {*files})
        assert sum(tag == "figure" for tag, _ in found.tags) == rows
        assert sum(tag == "img" for tag, _ in found.tags) <= 2 * rows
        with Image.open(files[name.replace(".html", ".jpg")]) as picture:
            assert picture.format == "JPEG"
            assert min(picture.size) > viz.TILE
    assert index.text.count("apache-2.0") == 2


def test_again_is_the_same_and_what_is_no_more_is_removed(table: Table) -> None:
    first = label_report.write(table, table.version, {}, None, config())
    contents = {name: Path(uri).read_bytes() for name, uri in first.items()}
    table.files.write(f"_reports/labels/{table.version}/gone.html", b"of another run")
    again = label_report.write(table, table.version, {}, None, config())
    assert again == first
    assert set(table.files.names(f"_reports/labels/{table.version}")) == set(again)
    drop = re.compile(rb'"written":\s*"[^"]*"|\d{4}-\d\d-\d\d \d\d:\d\d UTC')
    for name, content in contents.items():
        assert drop.sub(b"", Path(again[name]).read_bytes()) == drop.sub(b"", content), name


def test_the_latest_reports_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_report, "KEPT", 3)
    table = make_table(tmp_path, 2, 2)
    for _ in range(11):
        table.append(sample_rows(1), 1)
    versions = range(8, 13)
    for version in versions:
        label_report.write(table, version, {}, None, config())
    assert table.files.names("_reports/labels") == ["10", "11", "12"]
    assert set(label_report.written(table, 12)) == {"index.html", "random.html", "random.jpg", "report.json", "report.md"}
    assert label_report.written(table, 8) == {}


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3, 3)
    uids = uids_of(table)
    write_labels(
        table,
        "detection",
        {uids[1]: {"boxes": [[0.25, 0.5, 0.75, 1.0]], "phrases": ["cube"], "scores": [0.876]}},
        NEW,
        {"boxes": [], "phrases": [], "scores": []},
    )
    document = label_report.collect(table, table.version, {}, None, config(depth="blocks:depth-r1"))
    [row] = next(group for group in document.shown if group.name == "most-boxes").rows()
    page = dict(label_report.render(document))["most-boxes.html"].decode()
    tags = check_page(page, {"index.html"}).tags
    view = next(str(attributes["viewbox"]) for tag, attributes in tags if tag == "svg").split()
    width, height = float(view[2]), float(view[3])
    assert width / height == pytest.approx(row.values["width"] / row.values["height"])
    drawn = next(attributes for tag, attributes in tags if tag == "rect" and "stroke" in attributes)
    place = [float(str(drawn[name])) for name in ("x", "y", "width", "height")]
    assert place == pytest.approx([0.25 * width, 0.5 * height, 0.5 * width, 0.5 * height], abs=0.06)
    assert "cube</span> <b>0.88</b>" in page


class TestTables:
    """Tables of every state."""

    def report(self, table: Table, **options: Any) -> LabelReport:
        files = label_report.write(table, table.version, {}, options.pop("before", None), config(), **options)
        for name, uri in files.items():
            if name.endswith(".html"):
                check_page(Path(uri).read_text(), {*files})
        return LabelReport.model_validate_json(Path(files["report.json"]).read_text())

    def test_without_labels(self, tmp_path: Path) -> None:
        report = self.report(make_table(tmp_path, 5, 3))
        assert (report.rows, report.experts, report.boxes, report.pages) == (5, {}, None, {"random.html": 5})

    def test_without_rows(self, tmp_path: Path) -> None:
        table = make_table(tmp_path, 4, 2)
        write_labels(table, "depth", {}, OLD)
        table.dataset().delete("true")
        report = self.report(table, before=1)
        assert (report.rows, report.pages, report.checks, report.changes) == (0, {}, [], {})
        assert markdown(report).startswith("# Labels of ")

    @pytest.mark.parametrize("expert", ["depth", "detection"])
    def test_of_one_expert(self, tmp_path: Path, expert: str) -> None:
        table = make_table(tmp_path, 6, 3)
        labels = dict(zip(("depth", "detection"), random_labels(uids_of(table), 2), strict=True))[expert]
        write_labels(table, expert, labels, OLD)
        report = self.report(table)
        assert list(report.experts) == [expert]
        assert report.experts[expert].revision == OLD, "what most labels are, while nothing was accepted"
        assert (report.boxes is None) == (expert == "depth")
        assert bool(sum(report.relief)) == (expert == "depth")

    def test_columns_that_nobody_filled(self, tmp_path: Path) -> None:
        table = make_table(tmp_path, 4, 2)
        for expert in ("depth", "detection"):
            table.ensure_columns(expert)
        report = self.report(table, before=1)
        assert {name: (facts.waiting, facts.labelled, facts.revision) for name, facts in report.experts.items()} == {
            "depth": (4, 0, ""), "detection": (4, 0, "")
        }  # fmt: skip
        assert report.boxes is not None
        assert (report.boxes.number, report.boxes.without, set(report.pages)) == (0, 0, {"random.html"})

    def test_what_is_stale_failed_and_new(self, tmp_path: Path) -> None:
        table = make_table(tmp_path, 8, 4)
        uids = uids_of(table)
        one = {"boxes": [[0, 0, 1, 1]], "phrases": ["all"], "scores": [0.5]}
        write_labels(table, "detection", {uids[0]: None}, NEW, one)
        rejects = [
            Reject(uid=uids[0], shard="s", key="0", stage="detection", error="KeyError", message="m", revision=NEW),
            Reject(uid=uids[1], shard="s", key="1", stage="detection", error="KeyError", message="m", revision=OLD),
            Reject(uid=uids[1], shard="s", key="2", stage="depth", error="KeyError", message="m", revision=NEW),
            Reject(shard="import", key="3", stage="detection", error="UnknownUid", message="m", revision=NEW),
        ]
        table.rejects.append(rejects)
        accept(table, "detection", NEW)
        table.append(sample_rows(3, first=8), 3)
        facts = self.report(table).experts["detection"]
        assert (facts.labelled, facts.without, facts.stale, facts.waiting) == (7, 1, 0, 3)
        assert facts.refused == {"KeyError": 1}
        version = table.version
        accept(table, "detection", "c" * 16)
        facts = self.report(table).experts["detection"]
        assert (facts.labelled, facts.stale, facts.waiting) == (0, 8, 3)
        assert label_report.collect(table, version, {"detection": NEW}, None, config()).report.experts["detection"].labelled == 7

    def test_imported(self, tmp_path: Path) -> None:
        table = make_table(tmp_path / "table", 8, 4)
        uids = uids_of(table)
        file = tmp_path / "mine.jsonl"
        file.write_text("".join(json.dumps({"uid": uid, "boxes": [[0, 0, 0.5, 0.5]], "phrases": ["left"]}) + "\n" for uid in uids[:5]))
        label_import.run(table.uri, file, license_name="cc0-1.0")
        maps = tmp_path / "maps"
        maps.mkdir()
        sizes = {
            row["uid"]: (row["height"], row["width"])
            for row in table.at(table.uri).dataset.to_table(columns=["uid", "width", "height"]).to_pylist()
        }
        for uid in uids[:6]:
            np.save(maps / f"{uid}.npy", np.random.default_rng(0).random(sizes[uid]).astype(np.float32))
        label_import.run(table.uri, maps, options=ReadOptions(values="disparity"))
        report = self.report(table)
        boxes, depth = report.experts["detection"], report.experts["depth"]
        assert (boxes.imported, boxes.license, boxes.labelled, boxes.without) == ("mine.jsonl", "cc0-1.0", 5, 3)
        assert (depth.imported, depth.labelled, depth.without, depth.estimated) == ("maps", 6, 2, False), "the sample is all rows"
        assert report.never_found == [], "nobody knows what was asked for"

    def test_a_version_before_that_is_gone(self, tmp_path: Path) -> None:
        table, before = relabelled(tmp_path, 3)
        assert self.report(table, before=before).before == before
        assert self.report(table, before=table.version + 5).before is None
        assert self.report(table, before=10_000).changes == {}

    def test_pictures_that_cannot_be_read(self, tmp_path: Path) -> None:
        table = Table.create_or_open(str(tmp_path))
        rows = sample_rows(2)
        table.append(rows.set_column(1, rows.schema.field("image"), pa.array([b"nothing", rows["image"][1].as_py()[:300]])), 2)
        assert self.report(table).pages == {"random.html": 2}


def test_a_takedown_leaves_no_picture(tmp_path: Path) -> None:
    table, before = relabelled(tmp_path, 4)
    files = label_report.write(table, table.version, {}, before, config())
    gone = json.loads(Path(files["report.json"]).read_text())["checks"]
    assert gone
    takedown.run(table, Request(uids=[uids_of(table)[0]]))
    left = [name for name, uri in files.items() if Path(uri).exists()]
    assert not any(name.endswith((".html", ".jpg")) for name in left), left


@given(st.lists(st.text("0123456789abcdef", min_size=1, max_size=3), min_size=1, max_size=3))
def test_beginnings_of_uids(table: Table, names: list[str]) -> None:
    uids = uids_of(table)
    matches = {name: [uid for uid in uids if uid.startswith(name)] for name in names}
    view = table.at(table.uri)
    if all(len(found) == 1 for found in matches.values()):
        assert [uids[position] for position in find(view, names)] == list(dict.fromkeys(found[0] for found in matches.values()))
    else:
        with pytest.raises(ValueError, match=r"has no row|may be any of"):
            find(view, names)
    assert find(view, [uids[2].upper(), uids[1]]) == [2, 1]


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=60).filter(any),
    st.none() | st.integers(0, 5),
)
def test_any_counts_can_be_drawn(counts: list[int], other: int | None) -> None:
    before = None if other is None else [other] * len(counts)
    drawn = charts.histogram("x", counts, charts.unit_ticks(), charts.unit_ends(len(counts)), "boxes", before=before)
    bars = re.findall(r'<rect class="bar" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn)
    assert len(bars) == sum(count > 0 for count in counts)
    for x, y, width, height in (map(float, bar) for bar in bars):
        assert 0 <= x <= x + width <= 302
        assert y + height == pytest.approx(96, abs=0.2)
    assert charts.histogram("x", [0, 0], [], str, "boxes") == ""


boxes_strategy = st.tuples(st.floats(0, 300), st.floats(0, 200), st.floats(1, 90), st.floats(1, 40))


@given(st.lists(boxes_strategy, max_size=12))
def test_words_lie_beside_each_other(wanted: list[tuple[float, float, float, float]]) -> None:
    taken: list[tuple[float, float, float, float]] = []
    for x, y, width, height in wanted:
        inside = (max(0.0, min(x, 300 - width)), max(0.0, min(y, 200 - height)))
        place = viz.free_place((x, y), (width, height), taken, (300, 200))
        if place is None:
            assert _covers(inside, (width, height), taken)
            continue
        assert 0 <= place[0] <= 300 - width + 1e-6
        assert 0 <= place[1] <= 200 - height + 1e-6
        assert not _covers(place, (width, height), taken)
        assert place == pytest.approx(inside) or _covers(inside, (width, height), taken), "where it wants, if that is free"
        taken.append((*place, place[0] + width, place[1] + height))


def _covers(place: tuple[float, float], size: tuple[float, float], taken: list[tuple[float, float, float, float]]) -> bool:
    right, bottom = place[0] + size[0], place[1] + size[1]
    return any(place[0] < r and left < right and place[1] < b and top < bottom for left, top, r, b in taken)


def test_a_tile_of_a_change_shows_both() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 96), (120, 120, 120)).save(buffer, "JPEG")
    near, far = (encode(np.tile(np.linspace(*ends, 8, dtype=np.float32), (8, 1))) for ends in ((0, 1), (1, 0)))
    row = {"image": buffer.getvalue(), "caption": "a caption", "depth": near}
    alone, both = np.asarray(viz.tile(row)), np.asarray(viz.tile(row, {"depth": far}, "changed"))
    assert (alone.shape[1], both.shape[1]) == (2 * viz.TILE, 3 * viz.TILE + 4)
    before, now = both[100, viz.TILE + 2 : 2 * viz.TILE + 2], both[100, 2 * viz.TILE + 4 :]
    assert before[5].sum() > before[-5].sum()
    assert now[5].sum() < now[-5].sum()
