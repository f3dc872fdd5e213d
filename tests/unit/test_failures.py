"""`mtv failures`: groups, exports and retries what was refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from label_tables import QuickExpert, columns, config, make_table
from PIL import Image
from tars import picture, sample, tar
from typer.testing import CliRunner, Result

from flows.cli import app
from mtv_core import experts, ingest, labelling, labelling_retry, labelling_worker
from mtv_core.data.sources.config import SourceConfig
from mtv_core.executor import SerialExecutor
from mtv_core.experts.config import ExpertConfig
from mtv_core.ingest_config import IngestConfig
from mtv_core.reasons import REASONS
from mtv_core.report import Reject, RejectClass
from mtv_core.store.reopen import fates, reopen
from mtv_core.store.table import Table
from tasks.retry import sources_of

ROOT = Path(__file__).parents[2]


def refusal(key: str, error: str = "NoCaption", **more: object) -> Reject:
    fields = {"stage": "ingest", "location": f"/in/0.tar#{key}", "message": f"[odd] {error} of {key}"} | more
    return Reject(shard="s", key=key, error=error, **fields)


MANY = [
    *(refusal(f"a{i}") for i in range(5)), refusal("b", "BrokenImage"), refusal("", "TruncatedShard", location="/in/0.tar"),
    refusal("c", "CaptionWords"), refusal("d", "KeyError", stage="depth", reject_class=RejectClass.BUG, uid="u", location=""),
]  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table(str(tmp_path / "t"))
    table.rejects.append(MANY)
    return table


def call(table: Table, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["failures", "--table", table.uri, *arguments])


class TestShow:
    def test_groups(self, table: Table) -> None:
        result = call(table)
        assert result.exit_code == 0, result.output
        lines = [line.strip() for line in result.stdout.splitlines()]
        assert lines[0].startswith("9 refusals in ")
        assert [line for line in lines if line in ("depth  1", "ingest  8")] == ["depth  1", "ingest  8"]
        [no_caption] = [line for line in lines if line.startswith("NoCaption")]
        assert no_caption.split()[1:3] == ["5", "data"]
        assert REASONS["NoCaption"].what in no_caption
        assert f"→ {REASONS['NoCaption'].do}" in lines
        assert sum("[odd] NoCaption of a" in line for line in lines) == 2, "two examples of each"
        assert "s#d: [odd] KeyError of d" in lines
        assert any("the filter caption_words does not want it" in line for line in lines)

    def test_narrowed(self, table: Table) -> None:
        def shown(*arguments: str) -> dict[str, int]:
            result = call(table, "--json", *arguments)
            assert result.exit_code == 0, result.output
            return {group["reason"]: group["rows"] for group in json.loads(result.stdout)["groups"]}

        assert shown("--stage", "depth") == {"KeyError": 1}
        assert shown("--reason", "NoCaption", "--reason", "BrokenImage") == {"NoCaption": 5, "BrokenImage": 1}
        assert shown("--class", "bug") == {"KeyError": 1}
        assert shown("--location", "/in/*#b") == {"BrokenImage": 1}
        assert shown("--attempt", "2") == {}

    def test_as_json(self, table: Table) -> None:
        document = json.loads(call(table, "--json", "--examples", "1").stdout)
        assert (document["table"], document["rows"]) == (table.uri, 9)
        [group] = [one for one in document["groups"] if one["reason"] == "NoCaption"]
        assert set(group) == {"stage", "reason", "class", "rows", "what", "do", "failure", "examples"}
        assert [example["key"] for example in group["examples"]] == ["a0"]

    def test_nothing_is_meant(self, table: Table) -> None:
        assert f"no refusals in {table.uri} that fit these options" in call(table, "--stage", "detection").stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [(("--class", "odd"), "there is no class 'odd'"), (("--export", "x.doc"), "cannot tell the format"),
         (("--retry", "--location", "/in"), "--retry takes whole reasons"), (("--retry", "--stage", "none"), "nothing was refused"),
         (("--retry", "--reason", "NoCaptoin"), "nothing was refused for NoCaptoin in "),
         (("--retry", "--reason", "NoCaption", "--reason", "x"), "BrokenImage, CaptionWords, KeyError, NoCaption, TruncatedShard"),
         (("--retry", "--reason", "KeyError", "--stage", "ingest"), "there are BrokenImage, CaptionWords, NoCaption, TruncatedShard")],
    )  # fmt: skip
    def test_mistakes_are_said(self, table: Table, arguments: tuple[str, ...], message: str) -> None:
        result = call(table, *arguments)
        assert result.exit_code != 0
        assert message in (result.output if isinstance(result.exception, SystemExit) else str(result.exception))

    def test_shards_are_not_retried(self, table: Table) -> None:
        assert "mtv ingest" in str(call(table, "--retry", "--reason", "TruncatedShard").exception)

    def test_no_table(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, ["failures", "--table", str(tmp_path / "none")])
        assert isinstance(result.exception, FileNotFoundError)
        assert "there is no table" in str(result.exception)

    def test_export(self, table: Table, tmp_path: Path) -> None:
        result = call(table, "--export", str(tmp_path / "x.jsonl"), "--stage", "ingest")
        assert result.exit_code == 0, result.output
        assert "8 refusals written" in result.stderr
        keys = [json.loads(line)["key"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
        assert keys == ["", "a0", "a1", "a2", "a3", "a4", "b", "c"]


def test_every_reason_is_in_the_guide() -> None:
    text = (ROOT / "docs" / "failures.md").read_text()
    from mtv_core.data.filters import Filter

    assert [name for name in [*REASONS, *(one.reason for one in Filter.__subclasses__())] if f"`{name}`" not in text] == []


class TestLabels:
    """An expert failed on rows for good; they are labelled again."""

    @pytest.fixture
    def odd(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
        """Captions on which the depth expert fails; the real experts' place is taken by quick ones."""
        failing: set[str] = set()

        class Odd(QuickExpert):
            def __call__(self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Any = None) -> pa.RecordBatch:
                if self.name == "depth" and failing & {*captions}:
                    raise RuntimeError("odd picture")
                return super().__call__(images, captions, phrases)

        def load(name: str, expert: ExpertConfig) -> QuickExpert:
            return Odd(name, expert)

        monkeypatch.setattr(experts, "load", load)
        labelling_worker.loaded.cache_clear()
        yield failing
        labelling_worker.loaded.cache_clear()

    def label(self, table: Table) -> None:
        labelling.run(table.uri, config(), SerialExecutor())

    def retry(self, table: Table, **fields: object) -> None:
        labelling_retry.retry(table.uri, config(), SerialExecutor(), stage="depth", **fields)  # type: ignore[arg-type]

    def test_what_works_now_is_labelled_and_the_rest_is_refused_again(self, tmp_path: Path, odd: set[str]) -> None:
        undisturbed, table = make_table(tmp_path / "u"), make_table(tmp_path / "t")
        self.label(undisturbed)
        captions = table.dataset().to_table(columns=["caption"])["caption"].to_pylist()
        odd |= {captions[0], captions[9], captions[10]}
        self.label(table)
        bad = [i for i, caption in enumerate(captions) if caption in odd]
        assert table.rejects.counts("depth") == {"RuntimeError": len(bad)}
        odd -= {captions[9], captions[10]}
        still = sorted(f"{i:05d}" for i, caption in enumerate(captions) if caption in odd)
        before = columns(table)
        self.retry(table)
        after = columns(table)
        assert {caption for caption, label in zip(after["caption"], after["depth"], strict=True) if label is None} == odd
        assert after["boxes"] == before["boxes"]
        left = table.rejects.read().to_pylist()
        assert sorted((row["key"], row["attempt"]) for row in left) == [(key, 2) for key in still]
        odd.clear()
        self.retry(table, reasons=["RuntimeError"])
        assert table.rejects.count() == 0
        assert columns(table) == columns(undisturbed)
        with pytest.raises(ValueError, match="no such refusals"):
            self.retry(table)

    def test_only_rows_that_were_refused_become_stale(self, tmp_path: Path, odd: set[str]) -> None:
        table = make_table(tmp_path / "t")
        captions = table.dataset().to_table(columns=["caption"])["caption"].to_pylist()
        odd |= {captions[3]}
        self.label(table)
        uids = table.dataset().to_table(columns=["uid"])["uid"].to_pylist()
        bad = {uid for uid, caption in zip(uids, captions, strict=True) if caption in odd}
        revision = table.accepted()["depth"].revision
        assert fates(table, "depth", set(uids)) == (set(uids) - bad, bad)
        table.dataset().delete(f"uid = '{uids[5]}'")
        assert reopen(table, "depth", set(uids)) == len(bad)
        assert table.stale("depth", revision).num_stale == len(bad)
        assert fates(table, "depth", set(uids)) == (set(uids) - bad, set())
        assert reopen(table, "depth", set(uids)) == 0
        odd.clear()
        self.retry(table)
        assert table.rejects.count() == 0
        assert table.stale("depth", revision).num_stale == 0

    def test_an_expert_that_is_not_configured(self, tmp_path: Path, odd: set[str]) -> None:
        with pytest.raises(ValueError, match=r"set label\.depth"):
            labelling_retry.retry(str(tmp_path), config().model_copy(update={"depth": None}), SerialExecutor(), stage="depth")


def test_samples_are_retried_with_new_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command, with a real cluster of one worker."""
    monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
    large = [("large.jpg", picture(7, (400, 300))), ("large.txt", b"a large thing on a table")]
    silent = [("silent.jpg", picture(8))]
    tar(tmp_path / "in" / "0.tar", [*sample(1), *large, *silent, *sample(2)])
    source, table = SourceConfig(uri=str(tmp_path / "in" / "*.tar")), Table(str(tmp_path / "t"))
    ingest.run([source], table.uri, IngestConfig(max_pixels=100_000), SerialExecutor())
    assert table.rejects.counts() == {"NoCaption": 1, "TooManyPixels": 1}
    options = ["--sources", source.uri, "--set", "compute.workers=1", "--set", "ingest.max_pixels=200000"]
    result = call(table, *options, "--retry", "--json")
    assert result.exit_code == 0, result.output
    assert "ingest: 2 tried again, 1 new rows, 1 refused" in result.stderr
    assert sorted(table.dataset().to_table(columns=["key"])["key"].to_pylist()) == ["000001", "000002", "large"]
    [group] = json.loads(result.stdout)["groups"]
    assert (group["reason"], group["rows"], group["examples"][0]["attempt"]) == ("NoCaption", 1, 2)


class TestSourcesOfTheTable:
    """Without --sources, they are those that the ledger names, never those of the preset."""

    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
        return tmp_path / "home"

    def ingested(self, tmp_path: Path, **source: object) -> Table:
        large = [("large.jpg", picture(7, (400, 300))), ("large.txt", b"a large thing on a table")]
        tar(tmp_path / "in" / "0.tar", [*sample(1), *large])
        tar(tmp_path / "in" / "1.tar", sample(2))
        table = Table(str(tmp_path / "t"))
        given = SourceConfig.model_validate({"uri": str(tmp_path / "in" / "*.tar"), **source})
        ingest.run([given], table.uri, IngestConfig(max_pixels=100_000), SerialExecutor())
        assert table.rejects.counts() == {"TooManyPixels": 1}
        return table

    def test_files_are_found_again(self, tmp_path: Path, home: Path) -> None:
        table = self.ingested(tmp_path, name="mine")
        result = call(table, "--retry", "--set", "compute.workers=1", "--set", "ingest.max_pixels=200000")
        assert result.exit_code == 0, (result.output, result.exception)
        assert "ingest: 1 tried again, 1 new rows, 0 refused" in result.stdout
        rows = table.dataset().to_table(columns=["key", "source"]).to_pylist()
        assert sorted((row["key"], row["source"]) for row in rows) == [("000001", "mine"), ("000002", "mine"), ("large", "mine")]
        assert table.rejects.count() == 0
        assert not (home / "blocks").exists()

    def test_a_format_that_was_named(self, tmp_path: Path, home: Path) -> None:
        [source] = sources_of(self.ingested(tmp_path, format="webdataset"), ["TooManyPixels"])
        assert (source.uri, source.format) == (str(tmp_path / "in" / "0.tar"), "webdataset")

    def test_columns_that_were_named(self, tmp_path: Path, home: Path) -> None:
        table = self.ingested(tmp_path, columns={"captions": ["txt"]})
        result = call(table, "--retry")
        assert "0.tar was read with columns that were named" in str(result.exception)
        assert "--sources" in str(result.exception)
        assert not home.exists()

    def test_parts_of_a_folder(self, tmp_path: Path, home: Path) -> None:
        (tmp_path / "in").mkdir()
        for number in range(3):
            (tmp_path / "in" / f"{number}.jpg").write_bytes(picture(number))
        table = Table(str(tmp_path / "t"))
        with pytest.raises(ValueError, match="not one usable"):
            ingest.run([SourceConfig(uri=str(tmp_path / "in"), format="imagefolder")], table.uri, IngestConfig(), SerialExecutor())
        assert table.rejects.counts() == {"NoCaption": 3}
        result = call(table, "--retry")
        assert "is a part of a folder" in str(result.exception)
        assert "name its source with --sources" in str(result.exception)
        assert not home.exists()
