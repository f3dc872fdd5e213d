"""The report says what happened, the summary is that of the rows that are there, and the pages need nothing but themselves."""

from __future__ import annotations

import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from tars import picture

from mtv_core import charts, dataset_card, ingest_charts, ingest_gallery, ingest_report
from mtv_core.data.filters import DEFAULT, Filter
from mtv_core.data.filters.meta_range import MetaRange
from mtv_core.data.filters.min_side import MinSide
from mtv_core.data.funnel import describe, funnel
from mtv_core.data.schema import SAMPLES
from mtv_core.data.stats import CHEAP, Histogram, IngestStats, SampleStats
from mtv_core.ingest_config import IngestConfig
from mtv_core.reasons import REASONS
from mtv_core.report import Reject, StageRef, StageReport
from mtv_core.store import summary
from mtv_core.store.ledger import LedgerEntry
from mtv_core.store.table import Table
from tasks import reports

NASTY = "<script>alert(1)</script> | \"quoted\" & 'more' `code` 日本語 العربية"


def rows(first: int, number: int, ingest: str = "i1", caption: str = "picture {}") -> pa.Table:
    made = []
    for i in range(first, first + number):
        uid = np.random.default_rng(i).bytes(16).hex()
        texts = [caption.format(i), *([f"a model says {i}"] if i % 2 else [])]
        made.append(
            {"uid": uid, "image": picture(i, (24 + i % 5, 16)), "width": 24 + i % 5, "height": 16, "caption": texts[0],
             "captions": [{"text": text, "kind": ("web", "synthetic")[n]} for n, text in enumerate(texts)], "caption_raw": texts[0],
             "source": f"source{i % 2}", "shard": "s", "key": f"{i:06d}", "url": f"http://www.h{i % 3}.example/{i}" if i % 4 else None,
             "license": "CC-BY-4.0" if i % 3 else None, "meta": None, "sha256": uid * 2, "phash": i,
             "split": "held_out" if i % 10 == 0 else "train", "ingest_id": ingest}
        )  # fmt: skip
    return pa.Table.from_pylist(made, schema=SAMPLES)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table(str(tmp_path / "web"))
    table.append(rows(0, 30), 10)
    table.ledger.append([entry("s0", 33, 30)])
    return table


def entry(shard: str, received: int, added: int, **more: Any) -> LedgerEntry:
    return LedgerEntry(
        shard=shard, uri=f"/in/{shard}", identity="x", size=1, rows_in=received, rows_out=added, rows_rejected=received - added,
        state="done", ingest_id="i1", **more,
    )  # fmt: skip


def committed(**stats: Any) -> Any:
    return SimpleNamespace(ingest_id="i1", report=StageReport(), stats=IngestStats(**stats), notes=[], pictures={})


class TestSummary:
    def test_is_that_of_the_rows(self, table: Table) -> None:
        found = summary.summarise(table)
        assert found.stats == SampleStats.of(rows(0, 30).select(CHEAP))
        smallest = sorted(rows(0, 30)["uid"].to_pylist())[: summary.SAMPLE]
        assert [one.uid for one in found.sample] == [one.uid for one in found.latest["i1"]] == smallest
        images = sum(len(image) for image in rows(0, 30)["image"].to_pylist())
        assert images <= found.image_bytes <= 1.5 * images + 10_000

    def test_only_new_rows_are_read(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        summary.summarise(table)
        table.append(rows(30, 20, "i2"), 10)
        looked_at: list[int] = []
        of = SampleStats.of

        def look(batch: pa.RecordBatch) -> SampleStats:
            looked_at.append(batch.num_rows)
            return of(batch)

        monkeypatch.setattr(SampleStats, "of", look)
        found = summary.summarise(table)
        assert sum(looked_at) == 20
        assert set(found.latest) == {"i2"}
        monkeypatch.undo()
        table.files.remove(summary.FILE)
        fresh = summary.summarise(table)
        assert (found.stats, found.sample) == (fresh.stats, fresh.sample)
        assert found.stats == SampleStats.of(pa.concat_tables([rows(0, 30), rows(30, 20)]).select(CHEAP))

    def test_again_is_the_same(self, table: Table) -> None:
        before = summary.summarise(table)
        assert summary.summarise(table) == before

    def test_deleted_rows_are_gone(self, table: Table) -> None:
        summary.summarise(table)
        gone = summary.summarise(table).sample[0].uid
        table.dataset().delete(f"uid = '{gone}' or key = '000005'")
        left = rows(0, 30).filter(pa.compute.invert(pa.compute.is_in(rows(0, 30)["uid"], pa.array([gone]))))
        left = left.filter(pa.compute.not_equal(left["key"], "000005"))
        found = summary.summarise(table)
        assert found.stats == SampleStats.of(left.select(CHEAP))
        assert gone not in table.files.read(summary.FILE).decode()
        table.dataset().optimize.compact_files()
        assert summary.summarise(table).stats == found.stats

    def test_labels_change_nothing(self, table: Table) -> None:
        before = summary.summarise(table)
        table.ensure_columns("depth")
        assert summary.summarise(table).stats == before.stats

    def test_a_table_made_anew_is_read_anew(self, table: Table) -> None:
        summary.summarise(table)
        table.files.remove("samples.lance")
        table.append(rows(40, 30), 10)
        assert summary.summarise(table).stats == SampleStats.of(rows(40, 30).select(CHEAP))

    def test_pictures_of_chosen_rows(self, table: Table) -> None:
        chosen = summary.summarise(table).sample[:5]
        found = summary.look_at(table, [*chosen, summary.Chosen(uid="0" * 32, fragment=7)], ["image", "caption"])
        assert found["uid"].to_pylist() == [one.uid for one in chosen]
        assert summary.look_at(table, [], ["caption"]).num_rows == 0


class TestFunnel:
    @settings(max_examples=50, deadline=None)
    @given(st.dictionaries(st.sampled_from([*REASONS, "FlatImage", "OtherScript", "KeyError"]), st.integers(1, 99)), st.integers(0, 50))
    def test_it_adds_up(self, refused: dict[str, int], again: int) -> None:
        added = 7
        stats = IngestStats(received=sum(refused.values()) + again + added, refused=refused, again=again, added=added)
        steps = funnel(stats, DEFAULT)
        for before, step in itertools.pairwise(steps):
            assert step.left == before.left - step.lost
            assert step.lost == sum(step.reasons.values()) or step.name == "rows already"
        assert steps[-1].left == added
        assert sum(step.lost for step in steps) == sum(refused.values()) + again

    def test_every_filter_has_its_step_in_order(self) -> None:
        names = [step.name for step in funnel(IngestStats(), DEFAULT)]
        filters = [f"filter {one.name}" for one in DEFAULT]
        assert [name for name in names if name.startswith("filter")] == filters
        assert names.index("captions") < names.index(filters[0]) < names.index("exact duplicates") < names.index("evaluation leaks")

    def test_filters_of_one_name_have_a_step_each(self) -> None:
        filters = [MetaRange(field="punsafe", maximum=0.1), MetaRange(field="pwatermark", maximum=0.8), MinSide(px=9, label="tiny")]
        refused = {"MetaOutOfRange:punsafe": 3, "MetaOutOfRange:pwatermark": 5, "SideBelowMinimum:tiny": 2, "MetaOutOfRange:gone": 1}
        steps = funnel(IngestStats(received=20, refused=refused, added=9), filters)
        assert [(step.name, step.lost) for step in steps if step.name.startswith("filter")] == [
            ("filter meta_range punsafe", 3),
            ("filter meta_range pwatermark", 5),
            ("filter min_side tiny", 2),
            ("filter meta_range gone", 1),
        ]
        assert not describe("MetaOutOfRange:punsafe").failure
        assert describe("KeyError:punsafe").failure

    def test_every_reason_is_explained(self) -> None:
        for one in Filter.__subclasses__():
            known = describe(one.reason)
            assert (known.failure, known.step) == (False, f"filter {one.model_fields['name'].default}")
        assert describe("KeyError").failure
        assert "expert" in describe("KeyError", "depth").what


class TestWrite:
    @pytest.fixture
    def files(self, table: Table) -> dict[str, str]:
        table.append(rows(30, 3, "i1", NASTY + " {{}}"), 10)
        table.rejects.append(
            [
                Reject(shard="s0", key=f"k{i}", location=f"/in/s0.tar#k{i}", stage="ingest", error="NoCaption", message=NASTY)
                for i in range(3)
            ]
        )
        work = committed(
            shards=1, received=36, added=33, refused={"NoCaption": 3}, failed_shards={"TruncatedShard": 1}, bytes_read=999,
            nanoseconds={"decode": 10**9, "read": 10**8}, image_bytes=Histogram.of(np.array([400, 500])), formats={"JPEG": 33},
            kept=SampleStats.of(rows(0, 33).select(CHEAP)),
        )  # fmt: skip
        work.notes.append(NASTY)
        work.pictures["near_duplicates"] = ingest_gallery.jpeg(Image.new("RGB", (50, 20)))
        return ingest_report.write(table, work, IngestConfig(), seconds=2.0)

    def test_what_is_written(self, table: Table, files: dict[str, str]) -> None:
        assert set(files) == {"report.html", "report.md", "report.json", "gallery.jpg", "near_duplicates.jpg", "README.md"}
        assert all(Path(uri).stat().st_size for uri in files.values())
        report = ingest_report.IngestReport.model_validate_json(Path(files["report.json"]).read_bytes())
        assert (report.table, report.stats.added, report.table_stats.rows, report.seconds) == ("web", 33, 33, 2.0)
        assert [(one.reason, one.number, one.shards) for one in report.refused] == [("TruncatedShard", 1, True), ("NoCaption", 3, False)]
        assert report.refused[1].example.startswith("/in/s0.tar#k0: ")

    def test_numbers_name_no_row(self, table: Table, files: dict[str, str]) -> None:
        uids = rows(0, 33)["uid"].to_pylist()
        for name in ("report.json", "report.md", "README.md"):
            text = Path(files[name]).read_text()
            assert not any(uid[:12] in text for uid in uids), name
            assert str(Path(table.uri).parent) not in text, "where the table lies is nobody's business"

    def test_the_page_fetches_nothing_and_runs_nothing(self, files: dict[str, str]) -> None:
        text = Path(files["report.html"]).read_text()
        tags: list[tuple[str, dict[str, str | None]]] = []
        stack: list[str] = []

        class Look(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                tags.append((tag, dict(attrs)))
                if tag not in ("meta", "img", "br", "rect", "line", "polyline"):
                    stack.append(tag)

            def handle_endtag(self, tag: str) -> None:
                if stack and stack[-1] == tag:
                    stack.pop()
                elif tag not in ("rect", "line", "polyline"):
                    assert tag == "title" or tag in stack, tag

        Look().feed(text)
        assert not stack, stack
        assert "script" not in {tag for tag, _ in tags}
        assert all((attrs.get("src") or "data:").startswith("data:image/jpeg;base64,") for tag, attrs in tags if tag == "img")
        assert not any({"href", "onload", "onclick"} & set(attrs) for _, attrs in tags)
        assert "日本語" in text
        assert sum(tag == "img" for tag, _ in tags) == summary.SAMPLE + 1

    def test_the_markdown_is_a_table_in_every_line(self, files: dict[str, str]) -> None:
        text = Path(files["report.md"]).read_text()
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) > 20
        assert "| rows added | 33 |" in lines
        assert any(line.startswith("| NoCaption | 3 |") for line in lines)

    def test_again_is_the_same_but_for_the_time(self, table: Table, files: dict[str, str]) -> None:
        first = {name: Path(uri).read_bytes() for name, uri in files.items()}
        work = committed(**IngestStats.model_validate(json.loads(first["report.json"])["stats"]).__dict__)
        work.notes.append(NASTY)
        work.pictures["near_duplicates"] = first["near_duplicates.jpg"]
        again = ingest_report.write(table, work, IngestConfig(), seconds=2.0)
        assert Path(again["gallery.jpg"]).read_bytes() == first["gallery.jpg"]
        assert Path(again["README.md"]).read_bytes() == first["README.md"]
        drop = re.compile(rb'"written":\s*"[^"]*"|\d{4}-\d\d-\d\d \d\d:\d\d UTC')
        for name in ("report.json", "report.md", "report.html"):
            assert drop.sub(b"", Path(again[name]).read_bytes()) == drop.sub(b"", first[name]), name

    def test_a_report_that_cannot_be_written_does_not_fail_the_ingest(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(name: str, content: bytes) -> None:
            raise OSError(28, "No space left on device", name)

        monkeypatch.setattr(table.files, "write", full)
        work = committed(received=1, added=1)
        assert ingest_report.write(table, work, IngestConfig(), seconds=1.0) == {}
        assert "the rows are in the table" in work.notes[0]

    def test_of_an_ingest_that_brought_nothing(self, table: Table) -> None:
        work = committed(received=3, refused={"NoCaption": 3})
        work.ingest_id = "other"
        files = ingest_report.write(table, work, IngestConfig(filters=[]), seconds=0.0)
        assert "gallery.jpg" not in files
        assert "rows of this ingest" not in Path(files["report.html"]).read_text()


class TestCard:
    def test_the_hub_can_read_it(self, table: Table) -> None:
        from huggingface_hub import DatasetCard

        text = dataset_card.card(table, IngestConfig(), summary.summarise(table))
        data = DatasetCard(text).data.to_dict()
        assert data["size_categories"] == ["n<1K"]
        assert data["license"] == "other", "a third of the rows have no licence"
        assert {feature["name"] for feature in data["dataset_info"]["features"]} == set(SAMPLES.names)
        assert {split["name"]: split["num_examples"] for split in data["dataset_info"]["splits"]} == {"train": 27, "held_out": 3}
        assert not re.search(r"(?i)more information needed|todo|placeholder\]|\[\w+ \w+\]\(\)", text)

    def test_licences_that_the_hub_knows(self, table: Table) -> None:
        found = summary.summarise(table)
        all_rows = found.stats.licenses.model_copy(update={"total": 30})
        known = found.model_copy(update={"stats": found.stats.model_copy(update={"licenses": all_rows})})
        assert dataset_card.front_matter("x", known)["license"] == "cc-by-4.0"
        assert dataset_card.front_matter("x", summary.Summary(version=1))["license"] == "unknown"

    def test_its_funnel_is_of_the_table_as_it_is(self, table: Table) -> None:
        table.rejects.append(
            [
                Reject(shard="s0", key="a", stage="ingest", error="NoCaption", message="m"),
                Reject(shard="s0", key="b", stage="ingest", error="TooSmall", message="m"),
                Reject(shard="s0", key="", stage="ingest", error="TruncatedShard", message="m"),
                Reject(shard="s0", key="a", stage="depth", error="KeyError", message="m"),
            ]
        )
        table.ledger.append([entry("s0", 33, 30, replaces="s0")])
        table.dataset().delete("key = '000001'")
        text = dataset_card.card(table, IngestConfig(), summary.summarise(table))
        assert "| received | 33 |" in text
        assert "| captions | 31 | −1 | NoCaption 1 |" in text
        assert "| rows already, or removed since | 29 | −2 |" in text
        assert "| rows now | 29 |" in text
        assert "TruncatedShard" not in text

    def test_evaluation_sets_by_name_only(self, table: Table) -> None:
        config = IngestConfig.model_validate({"decontaminate": {"sets": [{"uri": "/secret/place/coco-val"}]}})
        text = dataset_card.card(table, config, summary.summarise(table))
        assert "one of coco-val are refused" in text
        assert "secret" not in text
        document = yaml.safe_load(dataset_card.public(config))
        assert document["decontaminate"]["sets"][0]["uri"] == "coco-val"


class TestPictures:
    def test_any_size_fits(self) -> None:
        sizes = [(1, 1), (3, 400), (4000, 20), (640, 480), (207, 208)]
        made = []
        for i, size in enumerate(sizes):
            buffer = io.BytesIO()
            Image.new("RGB", size, (i * 40, 90, 10)).save(buffer, "JPEG")
            made.append({"uid": f"{i:032x}", "image": buffer.getvalue(), "caption": NASTY * (1 + 5 * i)})
        tiles = ingest_gallery.thumbnails(pa.Table.from_pylist(made))
        assert all(max(tile.picture.size) <= ingest_gallery.CELL for tile in tiles)
        assert [tile.size for tile in tiles] == sizes
        assert max(tiles[0].picture.size) == ingest_gallery.CELL, "a picture of one pixel is seen as such"
        sheet = ingest_gallery.sheet(tiles, columns=2)
        assert sheet is not None
        assert sheet.width == 2 * (ingest_gallery.CELL + 10) + 10
        assert ingest_gallery.sheet([]) is None

    @pytest.mark.parametrize("letter", "aéßñłжΩع")
    def test_letters_of_captions_are_no_boxes(self, letter: str) -> None:
        font = ingest_gallery.font()
        box, mask = font.getmask("\uffff"), font.getmask(letter)
        assert (mask.size, bytes(mask)) != (box.size, bytes(box))

    def test_one_that_cannot_be_read_costs_only_itself(self) -> None:
        data = [picture(1), picture(2)[:200], b"nothing"]
        tiles = ingest_gallery.thumbnails(pa.Table.from_pylist([{"uid": "u", "image": image, "caption": "c"} for image in data]))
        assert [tile.size for tile in tiles] == [(24, 16), (0, 0), (0, 0)]

    @settings(max_examples=100, deadline=None)
    @given(st.text("ab cdé中", max_size=200), st.integers(20, 200), st.integers(1, 4))
    def test_text_is_wrapped(self, text: str, width: int, lines: int) -> None:
        font = ImageFont.load_default(size=12)
        found = ingest_gallery.wrapped(text, font, width, lines)
        assert len(found) <= lines
        assert all(font.getlength(line) <= width for line in found)
        whole, joined = "".join(text.split()), "".join("".join(found).split())
        assert whole == joined or (joined.endswith("…") and whole.startswith(joined[:-1]))

    @settings(max_examples=100, deadline=None)
    @given(st.text("ilWAV .é中", max_size=200), st.integers(5, 200))
    def test_a_line_holds_as_much_as_fits(self, text: str, width: int) -> None:
        """Against trying every length."""
        font = ImageFont.load_default(size=12)
        lines = ingest_gallery.wrapped(text, font, width, 1)
        fits = max((n for n in range(min(len(text), 120) + 1) if font.getlength(text[:n]) <= width), default=0)
        if len(text) <= fits:
            assert lines == ([text.strip()] if text else [])
        elif fits and text[fits] == " " and text[:fits].strip():
            cut = text[:fits].strip()
            most = max(n for n in range(len(cut) + 1) if n == 0 or font.getlength(cut[:n] + "…") <= width)
            assert lines == ([cut[:most] + "…"] if text[fits:].strip() else [cut])

    @pytest.mark.parametrize("size", [(208, 208), (415, 300), (416, 416), (640, 427), (1024, 1000), (300, 2000)])
    def test_small_pictures_look_like_the_large_ones(self, size: tuple[int, int]) -> None:
        """Decoded at a part of their size, against decoding all of it."""
        data = picture(1, size, quality=95)
        [tile] = ingest_gallery.thumbnails(pa.Table.from_pylist([{"uid": "u", "image": data, "caption": "c"}]))
        assert (max(tile.picture.size), tile.size) == (ingest_gallery.CELL, size)
        exact = size[0] * ingest_gallery.CELL / max(size), size[1] * ingest_gallery.CELL / max(size)
        assert all(abs(a - b) <= 1 for a, b in zip(tile.picture.size, exact, strict=True))
        whole = np.asarray(Image.open(io.BytesIO(data)).resize(tile.picture.size, Image.Resampling.LANCZOS), np.int16)
        assert np.abs(whole - np.asarray(tile.picture, np.int16)).mean() < 3


class TestCharts:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(1, 10**7), max_size=30), st.lists(st.integers(1, 10**7), max_size=30))
    def test_any_numbers_can_be_drawn(self, new: list[int], old: list[int]) -> None:
        drawn = ingest_charts.histogram("x", Histogram.of(np.array(new)), Histogram.of(np.array(old)), charts.size)
        assert bool(drawn) == bool(new or old)
        for x, width in re.findall(r'<rect class="bar" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn):
            assert 0 <= float(x) <= float(x) + float(width) <= 302
        for number in re.findall(r" [xy]\d?=\"([^\"]+)\"", drawn):
            assert -1 <= float(number) <= 302

    def test_words_for_numbers(self) -> None:
        assert [charts.number(n) for n in (0, 12, 1234567, 0.123456)] == ["0", "12", "1\u202f234\u202f567", "0.123"]
        assert [charts.size(n) for n in (0, 999, 1234, 5.6e9, 7e15)] == ["0 B", "999 B", "1.23 kB", "5.6 GB", "7 PB"]
        assert [charts.share(n, 10_000) for n in (0, 1, 12, 994, 5000, 9950, 9999, 10_000)] == [
            "0 %", "< 0.1 %", "0.1 %", "9.9 %", "50 %", "99.5 %", "> 99.9 %", "100 %",
        ]  # fmt: skip
        assert charts.share(0, 0) == "0 %"


class TestOfARun:
    """What a run shows and keeps of it."""

    @pytest.fixture
    def ref(self, table: Table) -> StageRef:
        work = committed(shards=1, received=33, added=30, refused={"NoCaption": 3})
        work.pictures["evaluation_leaks"] = ingest_gallery.jpeg(Image.new("RGB", (50, 20)))
        files = ingest_report.write(table, work, IngestConfig(), seconds=2.0)
        outputs = {f"report/{name}": uri for name, uri in files.items()} | {"notes": "a note"}
        return StageRef(stage="ingest", run_id="r", uri=table.uri, outputs=outputs)

    def test_copies(self, ref: StageRef, tmp_path: Path) -> None:
        kept = reports.keep(ref, tmp_path / "run")
        assert {path.name for path in kept} == {
            "README.md", "report.html", "report.md", "report.json", "gallery.jpg", "evaluation_leaks.jpg",
        }  # fmt: skip
        assert all(path.read_bytes() == Path(ref.outputs[f"report/{path.name}"]).read_bytes() for path in kept)
        Path(ref.outputs["report/gallery.jpg"]).unlink()
        assert "gallery.jpg" not in reports.read(ref), "a takedown removed it"

    @pytest.mark.prefect
    def test_artifacts(self, ref: StageRef, prefect_server: str) -> None:
        from prefect import flow
        from prefect.artifacts import Artifact

        from tasks import artifacts

        @flow(name="report")
        def show() -> None:
            artifacts.ingest_report(ref)

        show()
        found = {key: Artifact.get(key) for key in ("ingest-statistics", "ingest-funnel", "ingest-gallery", "ingest-evaluation-leaks")}
        data = {key: str(artifact.data) for key, artifact in found.items() if artifact is not None}  # type: ignore[union-attr]
        assert data["ingest-statistics"] == Path(ref.outputs["report/report.md"]).read_text()
        steps = json.loads(data["ingest-funnel"])
        assert [(steps[0]["step"], steps[0]["left"]), (steps[-1]["step"], steps[-1]["left"])] == [("received", 33), ("rows added", 30)]
        assert data["ingest-gallery"].startswith("data:image/jpeg;base64,")
        assert set(data) == set(found)
