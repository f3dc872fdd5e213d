"""Exports, opened by the libraries they are meant for: every row once, with its labels, and nothing that only looks whole."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import export_tables
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from export_tables import boxes_of, depth_of, truth
from PIL import Image

from mtv_core import ingest
from mtv_core.data import sources
from mtv_core.data.captions import CaptionConfig, choose
from mtv_core.data.files import Files
from mtv_core.data.schema import sample_uid
from mtv_core.data.sources import SourceConfig
from mtv_core.data.sources.base import RawSample
from mtv_core.dataset_export import rows
from mtv_core.dataset_export.config import DatasetExportConfig
from mtv_core.dataset_export.plan import Manifest, read_manifest
from mtv_core.dataset_export.run import run
from mtv_core.executor import SerialExecutor
from mtv_core.ingest_config import IngestConfig
from mtv_core.store import exports as copies
from mtv_core.store.slice_config import SliceConfig
from mtv_core.store.table import Table
from mtv_core.store.view import View

FORMATS = ("webdataset", "parquet", "hf")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, str]:
    return export_tables.make(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def exports(made: tuple[Table, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One export in each format, five and more rows a shard."""
    folder = tmp_path_factory.mktemp("exports")
    for name in FORMATS:
        run(made[0], config(name, folder / name), tag=made[1])
    return {name: folder / name for name in FORMATS}


def config(format_name: str, out: Path | str, **changes: Any) -> DatasetExportConfig:
    return DatasetExportConfig.model_validate({"format": format_name, "out": str(out), "shard_size": 9, **changes})


def by_split(found: dict[str, dict[str, Any]]) -> dict[str, set[str]]:
    return {split: {uid for uid, row in found.items() if row["split"] == split} for split in ("train", "held_out")}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_depth(found: Any, index: int) -> bool:
    """Whether it is the depth of a row but for half a step of its quantisation, and the rounding of float32."""
    wanted = depth_of(index)
    assert wanted is not None
    step = float(np.nanmax(wanted) - np.nanmin(wanted)) / 4094
    assert (np.isnan(found) == np.isnan(wanted)).all()
    return bool(np.nanmax(np.abs(found.astype(np.float64) - wanted)) <= 0.5 * step + 1e-6 * np.nanmax(wanted))


class TestWebDataset:
    def test_tarfile_finds_every_row_with_everything(self, exports: dict[str, Path]) -> None:
        wanted, found = truth(), {}
        for path in sorted(exports["webdataset"].glob("*/*.tar")):
            with tarfile.open(path) as tar:
                names = [member.name for member in tar]
                assert [name.partition(".")[2] for name in names] == ["jpg", "txt", "json", "depth.npy"] * (len(names) // 4)
                assert len(names) <= 9 * 4
                for at in range(0, len(names), 4):
                    uid = names[at].partition(".")[0]
                    jpg, txt, document, depth = (tar.extractfile(name).read() for name in names[at : at + 4])  # type: ignore[union-attr]
                    row, said = wanted[uid], json.loads(document)
                    assert (jpg, txt.decode()) == (row["image"], row["caption"])
                    plain = ("captions", "caption_raw", "url", "license", "source", "meta", "key", "sha256", "split", "width", "height")
                    assert {name: said[name] for name in plain} == {name: row[name] for name in plain}
                    assert path.parent.name == row["split"]
                    assert int(said["phash"], 16) == row["phash"]
                    assert (said["boxes"], said["depth_rev"], said["detection_rev"]) == (boxes_of(row["index"]), "depth-1", "detection-1")
                    values = np.load(io.BytesIO(depth))
                    assert values.dtype == np.float32
                    assert values.shape == (0, 0) if depth_of(row["index"]) is None else same_depth(values, row["index"])
                    found[uid] = row
        assert found.keys() == wanted.keys()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
    def test_webdataset_reads_it(self, exports: dict[str, Path]) -> None:
        import webdataset as wds

        wanted = by_split(truth())
        for split, uids in wanted.items():
            paths = sorted(str(path) for path in (exports["webdataset"] / split).glob("*.tar"))
            samples = list(wds.WebDataset(paths, shardshuffle=False, empty_check=False).decode("rgb8"))
            assert {sample["__key__"] for sample in samples} == uids
            assert len(samples) == len(uids)
            for sample in samples:
                row = truth()[sample["__key__"]]
                assert sample["txt"] == row["caption"]
                assert (sample["jpg"] == np.asarray(Image.open(io.BytesIO(row["image"])))).all()
                assert sample["json"]["license"] == row["license"]
                assert sample["depth.npy"].shape == (0, 0) or same_depth(sample["depth.npy"], row["index"])
        gc.collect()  # webdataset leaves its files to the garbage collector

    def read_back(self, folder: Path, **columns: Any) -> Iterator[RawSample]:
        source = SourceConfig.model_validate({"uri": f"{folder}/*/*.tar", "columns": columns})
        for shard in sources.expand(source):
            for sample in sources.read(shard, 1 << 20):
                assert isinstance(sample, RawSample), sample
                yield sample

    def test_mtv_reads_it_back_with_the_same_uids(self, exports: dict[str, Path]) -> None:
        """What the docs say: name `caption_raw` as the caption, and images that had passed through keep their uids."""
        found = {}
        for sample in self.read_back(exports["webdataset"], captions=["caption_raw", "web_captions"]):
            chosen = choose(sample.captions, CaptionConfig())
            assert sample.image is not None
            assert sample_uid(sample.image, chosen.raw) == sample.key
            row = found[sample.key] = truth()[sample.key]
            assert [{"text": caption.text, "kind": caption.kind} for caption in chosen.kept] == row["captions"]
            assert (sample.url, sample.license) == (row["url"], row["license"])
        assert found.keys() == truth().keys()

    def test_ingest_makes_the_same_rows_of_them(self, exports: dict[str, Path], tmp_path: Path) -> None:
        source = SourceConfig(uri=f"{exports['webdataset']}/*/*.tar", columns={"captions": ["caption_raw", "web_captions"]})
        limits = IngestConfig.model_validate({"dedup": {"near_threshold": None}, "filters": [], "held_out": 0.2})
        ingest.run([source], str(tmp_path / "table"), limits, SerialExecutor())
        made = {row["uid"]: row for row in Table.at(str(tmp_path / "table")).dataset.to_table().to_pylist()}
        assert made.keys() == truth().keys()
        for uid, row in truth().items():
            same = ("image", "caption", "captions", "caption_raw", "url", "license", "sha256", "split")
            assert {name: made[uid][name] for name in same} == {name: row[name] for name in same}
            assert made[uid]["key"] == uid

    @pytest.mark.parametrize("name", ["parquet", "hf"])
    def test_mtv_reads_the_other_formats_too(self, exports: dict[str, Path], name: str) -> None:
        uids = set()
        folder = exports[name] / ("data" if name == "parquet" else "train")
        for shard in sources.expand(SourceConfig(uri=str(folder), columns={"captions": ["caption_raw"]})):
            for sample in sources.read(shard, 1 << 20):
                assert isinstance(sample, RawSample), sample
                assert sample.image is not None
                uids.add(sample_uid(sample.image, choose(sample.captions, CaptionConfig()).raw))
        assert uids == (set(truth()) if name == "parquet" else by_split(truth())["train"])

    def test_by_default_the_cleaned_caption_counts(self, exports: dict[str, Path]) -> None:
        for sample in self.read_back(exports["webdataset"]):
            row = truth()[sample.key]
            kept = choose(sample.captions, CaptionConfig()).kept
            assert kept[0].text == row["caption"]
            assert [caption.text for caption in kept if caption.kind == "synthetic"] == [
                caption["text"] for caption in row["captions"] if caption["kind"] == "synthetic"
            ]


def check_rows(found: Any) -> None:
    """Rows as `datasets` gives them: every one once, in its split, with everything."""
    wanted = truth()
    assert {split: sorted(part["uid"]) for split, part in found.items()} == {s: sorted(uids) for s, uids in by_split(wanted).items()}
    depth = decoder()
    for part in found.values():
        for row in part:
            true = wanted[row["uid"]]
            assert row["image"].size == (32, 24)
            assert (np.asarray(row["image"]) == np.asarray(Image.open(io.BytesIO(true["image"])))).all()
            names = ("width", "caption", "captions", "caption_raw", "license", "url", "meta", "phash", "split", "sha256")
            assert {name: row[name] for name in names} == {name: true[name] for name in names}
            assert row["boxes"] == boxes_of(true["index"])
            assert (row["phrases"] is None) == (row["scores"] is None) == (row["boxes"] is None)
            assert (row["depth"] is None) == (depth_of(true["index"]) is None)
            assert row["depth"] is None or same_depth(depth(row["depth"]), true["index"])


DECODER: dict[str, Any] = {}


def decoder() -> Any:
    """The decoder that the card shows, as somebody would copy it."""
    return DECODER["depth"]


@pytest.fixture(autouse=True, scope="module")
def copied_from_the_card(exports: dict[str, Path]) -> None:
    for name in ("parquet", "hf"):
        blocks = re.findall(r"```python\n(.*?)```", (exports[name] / "README.md").read_text(), re.DOTALL)
        exec(next(block for block in blocks if "blosc2" in block), DECODER)


class TestParquet:
    def test_datasets_shows_rows_with_images(self, exports: dict[str, Path], tmp_path: Path) -> None:
        from datasets import load_dataset

        folder = exports["parquet"]
        files = {split: str(folder / f"data/{split}-*.parquet") for split in ("train", "held_out")}
        check_rows(load_dataset("parquet", data_files=files, cache_dir=str(tmp_path)))

    def test_the_card_names_the_splits(self, exports: dict[str, Path], tmp_path: Path) -> None:
        from datasets import load_dataset

        found = load_dataset(str(exports["parquet"]), cache_dir=str(tmp_path))
        assert {split: set(part["uid"]) for split, part in found.items()} == by_split(truth())
        assert type(found["train"].features["image"]).__name__ == "Image"

    def test_pyarrow_reads_the_table_it_was(self, made: tuple[Table, str], exports: dict[str, Path]) -> None:
        table = pa.concat_tables(pq.read_table(path) for path in sorted(exports["parquet"].glob("data/*.parquet"))).sort_by("uid")
        original = Table.at(made[0].uri, tag=made[1]).dataset.to_table().sort_by("uid")
        assert table.column_names == original.column_names
        for name in original.column_names:
            column = pa.compute.struct_field(table[name], "bytes") if name == "image" else table[name]
            assert column.to_pylist() == original[name].to_pylist(), name
        assert pa.compute.struct_field(table["image"], "path").to_pylist() == [f"{uid}.jpg" for uid in original["uid"].to_pylist()]
        for path in exports["parquet"].glob("data/*.parquet"):
            assert pq.read_metadata(path).num_rows <= 9

    def test_row_groups_are_pieces(self, made: tuple[Table, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rows, "FIRST", 2)
        monkeypatch.setattr(rows, "PIECE", 10_000)  # some four rows
        run(made[0], config("parquet", tmp_path / "out", shard_size=100), tag=made[1])
        (path,) = (tmp_path / "out" / "data").glob("train-*.parquet")
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        assert sizes[0] == 2
        assert 2 < max(sizes[1:]) < 9
        assert sum(sizes) == len(by_split(truth())["train"])


class TestHuggingFace:
    def test_load_from_disk(self, exports: dict[str, Path]) -> None:
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(str(exports["hf"]))
        assert isinstance(found, DatasetDict)
        check_rows(found)
        assert {split: part.split for split, part in found.items()} == {"train": "train", "held_out": "held_out"}

    def test_features_are_those_datasets_would_write(self, exports: dict[str, Path], tmp_path: Path) -> None:
        """Saved again by the real library, the schema in the files is the same, so nothing is cast when it is opened."""
        from datasets import load_from_disk

        found = load_from_disk(str(exports["hf"]))
        found.save_to_disk(str(tmp_path / "again"))
        ours, theirs = (
            pa.ipc.open_stream(next((folder / "train").glob("*.arrow")).read_bytes()).schema
            for folder in (exports["hf"], tmp_path / "again")
        )
        assert ours.remove_metadata() == theirs.remove_metadata()
        check_rows(load_from_disk(str(tmp_path / "again")))
        state = json.loads((exports["hf"] / "train" / "state.json").read_text())
        again = json.loads((tmp_path / "again" / "train" / "state.json").read_text())
        assert state.keys() == again.keys()
        assert json.loads((exports["hf"] / "dataset_dict.json").read_text()) == json.loads(
            (tmp_path / "again/dataset_dict.json").read_text()
        )


class TestWhatIsExported:
    @pytest.mark.parametrize(
        "part", [SliceConfig(where="license = 'cc-by-4.0'"), SliceConfig(fraction=0.4), SliceConfig(limit=7), SliceConfig(limit=1)]
    )
    @pytest.mark.parametrize("split", ["all", "train"])
    def test_a_slice_is_that_of_a_training(self, made: tuple[Table, str], tmp_path: Path, part: SliceConfig, split: str) -> None:
        manifest = run(made[0], config("parquet", tmp_path / "out", data=part, split=split), tag=made[1])
        view = Table.at(made[0].uri, tag=made[1])
        wanted = view.take(view.indices(part, None if split == "all" else split), ["uid"])["uid"].to_pylist()
        found = [uid for path in (tmp_path / "out" / "data").iterdir() for uid in pq.read_table(path)["uid"].to_pylist()]
        assert sorted(found) == sorted(wanted)
        assert manifest.num_rows == len(wanted) == sum(file.rows for file in manifest.files)

    def test_columns(self, made: tuple[Table, str], tmp_path: Path) -> None:
        run(made[0], config("parquet", tmp_path / "p", columns=["caption", "boxes"]), tag=made[1])
        table = pq.read_table(next((tmp_path / "p" / "data").iterdir()))
        assert table.column_names == ["uid", "caption", "boxes"]
        run(made[0], config("webdataset", tmp_path / "w", columns=["license"]), tag=made[1])
        with tarfile.open(tmp_path / "w/train/00000.tar") as tar:
            assert {name.partition(".")[2] for name in tar.getnames()} == {"jpg", "json"}
            document = json.loads(tar.extractfile(tar.getnames()[1]).read())  # type: ignore[union-attr]
            assert document.keys() == {"uid", "license"}
        card = (tmp_path / "w/README.md").read_text()
        assert "depth" not in card
        assert "none yet" not in card

    def test_the_card_says_whose_terms_hold(self, exports: dict[str, Path]) -> None:
        for name in FORMATS:
            text = (exports[name] / "README.md").read_text()
            front = yaml.safe_load(text.split("---\n")[1])
            assert front["configs"][0]["data_files"][0]["split"] == "train"
            assert "| depth | `depth` | `depth-1` | maker/depth | apache-2.0 | 44 |" in text
            assert "| detection | `boxes`, `phrases`, `scores` | `detection-1` | maker/detection | cc-by-nc-4.0 | 44 |" in text
            rows = list(truth().values())
            share = sum(row["license"] == "cc-by-4.0" for row in rows) / sum(row["license"] is not None for row in rows)
            assert f"| cc-by-4.0 | {share:.1%} |" in text
            assert "CC BY-NC \\| 2.0" in text
            assert f"Of {sum(row['license'] is None for row in rows)} rows it is unknown." in text

    def test_the_manifest_holds_every_file(self, made: tuple[Table, str], exports: dict[str, Path]) -> None:
        for name in FORMATS:
            manifest = Manifest.model_validate_json((exports[name] / "manifest.json").read_text())
            files = contents(exports[name])
            listed = {file.path: (file.bytes, file.sha256) for file in manifest.files}
            there = {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()}
            assert listed == {path: said for path, said in there.items() if path not in ("manifest.json", "export.json")}
            assert (manifest.plan.tag, manifest.plan.table, manifest.num_rows) == (made[1], made[0].uri, len(truth()))
            assert manifest.revisions == {"depth": {"depth-1": 44}, "detection": {"detection-1": 44}}

    def test_the_table_keeps_book_of_its_copies(self, made: tuple[Table, str], exports: dict[str, Path]) -> None:
        records = {record.uri: record for record in copies.read_all(made[0])}
        for name in FORMATS:
            record = records[str(exports[name])]
            assert (record.state, record.tag, record.rows, record.format) == ("done", made[1], 44, name)
            assert record.finished is not None
            assert record.export == json.loads((exports[name] / "manifest.json").read_text())["id"]

    def test_a_tag_stays_what_it_was(self, tmp_path: Path) -> None:
        table, tag = export_tables.make(tmp_path)
        table.append(pa.Table.from_pylist([export_tables.sample(100)], schema=View(table.uri, 1).schema))
        now = run(table, config("parquet", tmp_path / "now"))
        then = run(table, config("parquet", tmp_path / "then"), tag=tag)
        assert (now.num_rows, then.num_rows) == (45, 44)
        assert now.revisions["depth"] == {"": 1, "depth-1": 44}
        assert now.plan.tag is None
        assert "| depth | `depth` | none yet |  |  | 1 |" in (tmp_path / "now/README.md").read_text()


class TestAgain:
    @pytest.mark.parametrize("name", FORMATS)
    def test_the_same_bytes_alone_or_side_by_side(
        self, made: tuple[Table, str], exports: dict[str, Path], tmp_path: Path, name: str
    ) -> None:
        run(made[0], config(name, tmp_path / "again"), tag=made[1], executor=SerialExecutor())
        assert contents(tmp_path / "again") == contents(exports[name])

    def test_what_is_there_is_not_written_again(self, made: tuple[Table, str], tmp_path: Path) -> None:
        run(made[0], config("hf", tmp_path / "out"), tag=made[1])
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrow")}
        told: list[tuple[int, int]] = []
        run(made[0], config("hf", tmp_path / "out"), tag=made[1], progress=lambda done, total, message="": told.append((done, total)))
        assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.arrow")}
        assert told == [(44, 44)]

    def test_a_file_that_was_lost_is_written_again(self, made: tuple[Table, str], exports: dict[str, Path], tmp_path: Path) -> None:
        run(made[0], config("parquet", tmp_path / "out"), tag=made[1])
        next((tmp_path / "out" / "data").iterdir()).unlink()
        run(made[0], config("parquet", tmp_path / "out"), tag=made[1])
        assert contents(tmp_path / "out") == contents(exports["parquet"])

    def test_progress_counts_rows(self, made: tuple[Table, str], tmp_path: Path) -> None:
        told: list[int] = []
        run(made[0], config("webdataset", tmp_path / "out"), tag=made[1], progress=lambda done, total, message="": told.append(done))
        assert told[0] == 0
        assert told == sorted(told)
        assert told[-1] == 44

    def test_an_error_leaves_nothing_that_looks_whole(
        self, made: tuple[Table, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take, calls = View.take, []

        def fails(self: View, *args: Any) -> pa.Table:
            calls.append(1)
            if len(calls) == 4:
                raise OSError("the store does not answer")
            return take(self, *args)

        monkeypatch.setattr(View, "take", fails)
        with pytest.raises(OSError, match="does not answer"):
            run(made[0], config("parquet", tmp_path / "out"), tag=made[1])
        assert read_manifest(Files(str(tmp_path / "out"))) is None
        assert not (tmp_path / "out" / "README.md").exists()
        (record,) = (record for record in copies.read_all(made[0]) if record.uri == str(tmp_path / "out"))
        assert record.state == "writing"
        for path in (tmp_path / "out" / "data").glob("*.parquet"):
            pq.read_table(path)  # those that are there are whole


class TestRefusals:
    def test_a_folder_of_something_else(self, made: tuple[Table, str], tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="is not empty and holds no export"):
                run(made[0], config("hf", tmp_path), overwrite=overwrite)
        assert (tmp_path / "README.md").read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
        with pytest.raises(ValueError, match="is a file"):
            run(made[0], config("hf", tmp_path / "README.md"))

    def test_another_export(self, made: tuple[Table, str], tmp_path: Path) -> None:
        run(made[0], config("webdataset", tmp_path / "out"), tag=made[1])
        before = contents(tmp_path / "out")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        other = config("parquet", tmp_path / "out", data=SliceConfig(limit=4))
        with pytest.raises(ValueError, match=r"something else \(format webdataset, not parquet; data all rows, not limit 4\).*--overwrite"):
            run(made[0], other, tag=made[1])
        assert {**before, "notes.txt": b"mine"} == contents(tmp_path / "out")
        run(made[0], other, tag=made[1], overwrite=True)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "README.md",
            "data",
            "export.json",
            "manifest.json",
            "notes.txt",
        ]
        assert [record.format for record in copies.read_all(made[0]) if record.uri == str(tmp_path / "out")] == ["parquet"]

    @pytest.mark.parametrize("name", FORMATS)
    @pytest.mark.parametrize("whole", [True, False])
    def test_overwrite_leaves_the_files_of_others_where_they_are(
        self, made: tuple[Table, str], tmp_path: Path, name: str, whole: bool
    ) -> None:
        out = tmp_path / "out"
        run(made[0], config(name, out), tag=made[1])
        shard = next(path for path in sorted(out.rglob("*")) if path.suffix in (".tar", ".parquet", ".arrow"))
        shard.with_name(f".{shard.name}.123.abcdef01.partial").write_bytes(b"of a writer that was killed")
        if not whole:
            (out / "manifest.json").unlink()
        mine = {f"{folder}/{file}": b"mine" for folder in ("train", "held_out", "data", "other") for file in ("notes.txt", "mine.tar")}
        for path, content in mine.items():
            (out / path).parent.mkdir(exist_ok=True)
            (out / path).write_bytes(content)
        other = config("webdataset" if name == "hf" else "hf", out, data=SliceConfig(limit=4))
        run(made[0], other, tag=made[1], overwrite=True)
        run(made[0], other.model_copy(update={"out": str(tmp_path / "alone")}), tag=made[1])
        assert contents(out) == {**contents(tmp_path / "alone"), **mine}

    def test_a_manifest_that_was_tampered_with_reaches_nothing_outside(self, made: tuple[Table, str], tmp_path: Path) -> None:
        run(made[0], config("hf", tmp_path / "out"), tag=made[1])
        (tmp_path / "mine.txt").write_text("mine")
        manifest = json.loads((tmp_path / "out/manifest.json").read_text())
        manifest["files"] += [
            {"path": path, "bytes": 4, "sha256": ""} for path in ("../mine.txt", str(tmp_path / "mine.txt"), "x/../../mine.txt")
        ]
        (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
        run(made[0], config("webdataset", tmp_path / "out"), tag=made[1], overwrite=True)
        assert (tmp_path / "mine.txt").read_text() == "mine"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"columns": ["caption", "capton"]}, "no column 'capton'; its columns are uid, image"),
            ({"data": {"where": "widht > 3"}}, "No field named widht"),
            ({"data": {"where": "width > 1000"}}, "nothing to export .* 44 rows, 0 after where"),
        ],
    )
    def test_requests_that_make_no_sense(self, made: tuple[Table, str], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            run(made[0], config("hf", tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()

    def test_places_and_versions(self, made: tuple[Table, str], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="lies inside the table"):
            run(made[0], config("hf", f"{made[0].uri}/copy"))
        with pytest.raises(ValueError, match="a tag or a version"):
            run(made[0], config("hf", tmp_path / "out"), tag=made[1], version=1)
        with pytest.raises(FileNotFoundError, match="mtv-none"):
            run(made[0], config("hf", tmp_path / "out"), tag="mtv-none")
        with pytest.raises(FileNotFoundError, match="no version 99"):
            run(made[0], config("hf", tmp_path / "out"), version=99)

    def test_a_version_that_goes_away_meanwhile(self, made: tuple[Table, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Table, "version_exists", lambda self, version: False)
        with pytest.raises(FileNotFoundError, match="went away while it was exported"):
            run(made[0], config("hf", tmp_path / "out"), tag=made[1])
        assert not (tmp_path / "out" / "dataset_dict.json").exists()
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_commands(made: tuple[Table, str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    def mtv(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["data", *arguments, "--table", made[0].uri, "--tag", made[1]], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    part = ["--where", "license = 'cc-by-4.0'", "--fraction", "0.5"]
    view = Table.at(made[0].uri, tag=made[1])
    left = {split: view.select(SliceConfig(where=part[1], fraction=0.5), split).counts for split in ("train", "held_out")}
    counted = mtv("count", *part)
    for split, counts in left.items():
        assert re.search(rf"{split} +{counts['split']} rows, {counts['where']} after where, {counts['fraction']} after fraction", counted)
    assert "44 depth-1" in counted
    shown = mtv("show", "--limit", "3", "--picture", str(tmp_path / "rows.jpg"))
    smallest = sorted(truth())[:3]
    assert all(uid in shown and str(truth()[uid]["caption"]) in shown for uid in smallest)
    with Image.open(tmp_path / "rows.jpg") as picture:
        assert picture.size[1] > 100
    said = mtv("export", "--format", "parquet", "--out", str(tmp_path / "out"), *part, "--columns", "caption, license", "--split", "train")
    assert f"{left['train']['fraction']} rows ({left['train']['fraction']} train)" in said
    (path,) = (tmp_path / "out" / "data").iterdir()
    assert pq.read_table(path).column_names == ["uid", "caption", "license"]


CHILD = """
import sys
from mtv_core.dataset_export.config import DatasetExportConfig
from mtv_core.dataset_export.run import run
from mtv_core.store.table import Table
run(Table.open(sys.argv[1]), DatasetExportConfig(format=sys.argv[2], out=sys.argv[3], shard_size=9))
"""


@pytest.mark.fault
@pytest.mark.parametrize(
    ("point", "name"),
    [
        ("data_export.planned", "hf"),
        ("data_export.begun", "webdataset"),
        ("data_export.shard_written", "webdataset"),
        ("data_export.shard_written:3", "parquet"),
        ("data_export.shard_recorded:2", "hf"),
        ("data_export.described", "hf"),
        ("data_export.whole", "parquet"),
    ],
)
def test_killed_and_run_again_it_ends_the_same(tmp_path: Path, point: str, name: str) -> None:
    """The table grows in between: an export that goes on keeps its version."""
    table, _ = export_tables.make(tmp_path)
    reference = run(table, config(name, tmp_path / "reference"))
    out = tmp_path / "out"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, table.uri, name, str(out)], cwd=ROOT, env={**os.environ, "MTV_FAULT": point}, check=False, timeout=120
    )
    assert child.returncode == -signal.SIGKILL
    whole = point == "data_export.whole"
    assert (out / "manifest.json").exists() == whole
    assert [record.state for record in copies.read_all(table) if record.uri == str(out)] == (
        [] if point.endswith("planned") else ["writing"]
    )
    if whole:
        version = reference.plan.version
    else:
        table.append(pa.Table.from_pylist([export_tables.sample(100)], schema=View(table.uri, 1).schema))
        version = None
    there = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".tar", ".parquet", ".arrow")}
    assert run(table, config(name, out), version=version) == reference
    assert contents(out) == contents(tmp_path / "reference")
    kept = sum(path.stat().st_mtime_ns == time for path, time in there.items())
    assert kept >= len(there) - 1  # only the one whose record was missing is written again
    assert all(record.state == "done" for record in copies.read_all(table))


def test_object_store(bucket: str, tmp_path: Path, exports: dict[str, Path]) -> None:
    """Table and export in S3: the same rows, no half-written object, and refused where something else lies."""
    local, _ = export_tables.make(tmp_path)
    table = Table.create_or_open(f"{bucket}/table")
    table.append(Table.at(local.uri, version=1).dataset.to_table(), 10)
    for name in FORMATS:
        manifest = run(table, config(name, f"{bucket}/{name}"))
        again = run(table, config(name, f"{bucket}/{name}"))
        assert again == manifest
        folder = Files(f"{bucket}/{name}")
        assert folder.names("_state") == []
        for file in manifest.files:
            data = folder.read(file.path)
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        here = run(Table.open(local.uri), config(name, tmp_path / name), version=1)
        assert [file.rows for file in here.files] == [file.rows for file in manifest.files]
    assert {record.uri for record in copies.read_all(table)} == {f"{bucket}/{name}" for name in FORMATS}
    with pytest.raises(ValueError, match="is not empty"):
        run(table, config("hf", bucket))
