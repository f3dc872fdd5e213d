"""`mtv forget`: what a person types, what it says, and where it says copies are."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import takedown_tables as tables
from takedown_tables import everything, image, on_disk, row
from typer.testing import CliRunner, Result

from mtv_core import runs
from mtv_core.config import PipelineConfig
from mtv_core.report import StageRef
from mtv_core.runs import RunRecord, RunStatus, StageRecord, TableState
from mtv_core.store import exports, takedown_journal
from mtv_core.store.denylist import KEY_VARIABLE, Denylist
from mtv_core.store.exports import ExportRecord
from mtv_core.store.slice_config import SliceConfig
from mtv_core.store.table import Table
from tasks import takedown, tracking

Forget = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTV_HOME", str(tmp_path))
    for name in (KEY_VARIABLE, "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def made(home: Path) -> tuple[Table, dict[str, str]]:
    return tables.make(home / "table")


@pytest.fixture
def table(made: tuple[Table, dict[str, str]]) -> Table:
    return made[0]


@pytest.fixture
def forget(table: Table) -> Forget:
    def run(*arguments: str, input: str | None = None) -> Result:  # noqa: A002
        from flows.cli import app

        return CliRunner().invoke(app, ["forget", "--table", table.uri, *arguments], input=input)

    return run


def refusal(result: Result) -> str:
    return f"{result.output} {result.exception}"


def test_nothing_happens_without_yes(forget: Forget, table: Table) -> None:
    before = everything(table)
    for arguments, code in ((["--dry-run"], 0), ([], 2)):
        result = forget("--uid", row(3)["uid"], *arguments)
        assert result.exit_code == code, refusal(result)
        assert "found      2 rows, in 2 fragments to be rewritten; 2 refusals" in result.output
        assert everything(table) == before
        assert not Path(table.uri, "_takedowns").exists()


def test_options_files_and_standard_input_together(forget: Forget, table: Table, tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "urls.txt").write_text("\ufeffhttp://example.org/9.jpg\r\n\r\nhttps://nowhere.org/x\n")
    lines = "".join(f"{hashlib.sha256(image(n)).hexdigest()}\n" for n in (10, 11, 500))
    result = forget("--uid", row(3)["uid"], "--urls", str(tmp_path / "urls.txt"), "--image-hashes", "-", "--yes", "--json", input=lines)
    assert result.exit_code == 0, refusal(result)
    said = json.loads(result.stdout)
    assert said["plan"]["asked"] == {"uids": 1, "images": 3, "urls": 2}
    assert {kind: len(entries) for kind, entries in said["plan"]["not_found"].items()} == {"images": 1, "urls": 1}
    assert [one["state"] for one in said["takedowns"]] == ["done"]
    assert on_disk(Path(table.uri), [3, 9, 10, 11, 30]) == []
    assert len(everything(table)) == 27
    assert Denylist.load(table).denies(hashlib.sha256(image(500)).hexdigest(), None)


def test_what_it_says_when_it_is_done(forget: Forget, made: tuple[Table, dict[str, str]]) -> None:
    result = forget("--uid", row(3)["uid"], "--uid", "ee" * 16, "--key", "nobody:1", "--reason", "asked by its owner", "--yes")
    assert result.exit_code == 0, refusal(result)
    table, tags = made
    [successor] = table.tags()
    for line in (
        f"table      {table.uri}",
        "not found  1 by uid, on the deny-list all the same: " + "ee" * 16,
        "not found  1 by key, a key alone cannot be denied: nobody:1",
        f"tag        {tags['one']} → {successor}",
        "(asked by its owner): 2 rows and 2 refusals are gone from every file of the table",
        "7 new on the deny-list",
    ):
        assert line in result.output, result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to forget"),
        (["--uid", "abc"], "'abc' is not a uid, which has 32 hexadecimal digits"),
        (["--uids", "-", "--urls", "-"], "only one list can come from standard input"),
        (["--uids", "nowhere.txt"], "nowhere.txt"),
        (["--key", "000001"], "stand for several images"),
        (["--resume", "--uid", "ab" * 16], "leave out what to forget"),
    ],
)
def test_mistakes(forget: Forget, arguments: list[str], said: str) -> None:
    result = forget(*arguments)
    assert result.exit_code != 0
    assert said in refusal(result)


def test_a_table_that_is_not_there(home: Path) -> None:
    from flows.cli import app

    result = CliRunner().invoke(app, ["forget", "--table", str(home / "typo"), "--uid", "ab" * 16, "--yes"])
    assert isinstance(result.exception, FileNotFoundError)
    assert not (home / "typo").exists()


def test_it_says_who_is_at_work(forget: Forget, table: Table) -> None:
    from mtv_core.store import locks

    asked = ["--uid", row(3)["uid"]]
    with locks.writing(table, "an ingest"):
        for arguments, code in ((["--dry-run"], 0), ([], 2)):
            result = forget(*asked, *arguments)
            assert result.exit_code == code
            assert "--yes would be refused now: an ingest (process" in " ".join(result.output.split())
        [busy] = json.loads(forget(*asked, "--dry-run", "--json").stdout)["busy"]
        assert busy.startswith("an ingest")
        assert isinstance(forget(*asked, "--yes").exception, OSError)
    assert "would be refused" not in forget(*asked, "--dry-run").output


def test_a_refused_copy(forget: Forget, table: Table) -> None:
    result = forget("--url", "http://elsewhere.org/copy.jpg", "--uid", "c0" * 16, "--dry-run")
    assert result.exit_code == 0, refusal(result)
    said = " ".join(result.output.split())
    assert "a copy that was refused as a duplicate has no URL in the table: name its picture by --image-hash or --key" in said
    assert f"1 row with almost the picture of a refusal that was named: {row(3)['uid']}" in said
    assert "has no URL in the table" not in forget("--uid", row(3)["uid"], "--dry-run").output
    assert "is found by shard:key only" in " ".join(forget("--key", "source0:copy", "--dry-run").output.split())


def test_resume(forget: Forget, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtv_core.store import takedown as core

    assert "no takedown" in forget("--resume").output

    def die(name: str) -> None:
        if name == "takedown.deleted":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(core, "fault_point", die)
        assert forget("--uid", row(3)["uid"], "--yes").exit_code != 0
    [journal] = takedown_journal.pending(table)
    assert f"{journal.id}, of 2 rows, was not finished" in forget("--uid", row(20)["uid"], "--dry-run").output
    assert "done" in forget("--resume").output
    assert on_disk(Path(table.uri), [3, 30]) == []


# Traces


def record(table: Table, tag: str | None, name: str, uri: str | None = None, **fields: Any) -> RunRecord:
    """A run folder, as a run on a tag leaves it."""
    made = RunRecord(run_id=f"20260101T00000{name}", status=RunStatus.COMPLETED, **fields)
    made.table = TableState(uri=uri or table.uri, version=table.tags().get(tag or ""), tag=tag)
    made.save()
    return made


def ref(stage: str, run: RunRecord, tag: str, **outputs: str) -> StageRecord:
    where = str(run.folder / stage)
    return StageRecord(status="ran", ref=StageRef(stage=stage, run_id=run.run_id, uri=where, version=1, tag=tag, outputs=outputs))


def test_runs_that_worked_with_the_tags(made: tuple[Table, dict[str, str]]) -> None:
    table, tags = made
    trained = record(table, tags["three"], "0-aaaaaa", config={"export": {"name": "mine"}}, mlflow_run_id="m1")
    trained.stages = {"train": ref("train", trained, tags["three"]), "export": ref("export", trained, tags["three"], model_version="4")}
    trained.save()
    (trained.folder / "reports").mkdir()
    (trained.folder / "reports" / "labels.jpg").write_bytes(b"x")
    record(table, tags["one"], "1-bbbbbb")  # labelled only, and the tag did not have the row
    record(table, tags["three"], "2-cccccc", uri="/another/table")
    at_work = record(table, None, "3-dddddd")  # the record of a training knows its tag only at the end
    at_work.table, at_work.status = TableState(), RunStatus.RUNNING
    at_work.stages = {"train": StageRecord(status="running")}
    at_work.save()
    (at_work.folder / "train.json").write_text(json.dumps({"table_uri": table.uri, "tag": tags["two"]}))
    found = takedown.traces(table, {tags["two"]: 1, tags["three"]: 2}, None)
    one, two = found.runs
    assert (one.run_id, one.rows, one.trained, one.registered) == (trained.run_id, 2, True, ["mine 4"])
    assert (one.model, one.exports) == (str(trained.folder / "train"), [str(trained.folder / "export")])
    assert one.pictures == [str(trained.folder / "reports" / "labels.jpg")]
    assert (two.run_id, two.status, two.trained) == (at_work.run_id, RunStatus.RUNNING, True)
    assert ["MLflow could not be asked" in problem for problem in found.problems] == [True]
    assert runs.load(trained.run_id) == trained
    [alone] = takedown.traces(table, {}, None).runs  # its pictures may be of any row; nothing else of it is
    assert (alone.run_id, alone.tags, alone.rows, alone.trained, alone.model) == (trained.run_id, [], 0, False, None)
    assert (alone.exports, alone.registered, alone.pictures) == ([], [], one.pictures)


def test_previews_of_an_ingest_are_named(forget: Forget, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tag has its rows yet, and of some pictures not even a row was made."""
    config = json.loads(PipelineConfig.model_validate({"sources": "blocks://8", "table": {"uri": table.uri}}).model_dump_json())
    ingested = record(table, None, "0-aaaaaa", prefect_flow_run_id="00000000-0000-0000-0000-000000000001")
    killed = record(table, None, "1-bbbbbb", config=config, prefect_flow_run_id="00000000-0000-0000-0000-000000000002")
    killed.table = TableState()  # it is written down at the end of a stage
    killed.save()
    record(table, None, "2-cccccc", uri="/another/table", prefect_flow_run_id="00000000-0000-0000-0000-000000000003")
    folder = ingested.folder / "reports" / "ingest"
    folder.mkdir(parents=True)
    shown = {
        "gallery.jpg": b"x",
        "near_duplicates.jpg": b"x",
        "evaluation_pairs.jpg": b"x",
        "report.html": b"<img src='data:image/jpeg;base64,a'>",
    }
    for name, content in {**shown, "report.md": b"figures only", "other.html": b"<p>figures</p>"}.items():
        (folder / name).write_bytes(content)
    (killed.folder / "page.md").write_text("![x](data:image/png;base64,abc)")
    asked: list[str] = []

    def previews(api: str | None, flow_runs: list[str]) -> list[takedown.Preview]:
        asked.extend(flow_runs)
        return []

    monkeypatch.setattr(takedown, "previews", previews)
    found = takedown.traces(table, {}, None)
    assert [(use.run_id, use.tags) for use in found.runs] == [(ingested.run_id, []), (killed.run_id, [])]
    assert found.runs[0].pictures == sorted(str(folder / name) for name in shown)
    assert [one[-1] for one in asked] == ["1", "2"]
    for arguments in (["--uid", row(3)["uid"]], ["--url", "http://example.org/900.jpg"]):  # a row; a refusal alone
        said = "".join(forget(*arguments, "--dry-run").output.split())
        for name in shown:
            assert "".join(str(folder / name).split()) in said, name


def test_a_run_of_a_tag_that_was_dropped_before_is_named(forget: Forget, made: tuple[Table, dict[str, str]]) -> None:
    table, tags = made
    trained = record(table, tags["one"], "0-aaaaaa")
    trained.stages = {"train": ref("train", trained, tags["one"])}
    trained.save()
    assert trained.run_id in forget("--uid", row(4)["uid"], "--yes").output
    second = forget("--uid", row(5)["uid"], "--yes")
    assert f"run        {trained.run_id}  {tags['one']}  trained on it" in second.output
    assert f"run        {trained.run_id}  {tags['one']}  trained on it" in forget("--list").output  # asked again
    assert trained.run_id not in forget("--uid", row(26)["uid"], "--yes").output  # came after the tag


def test_exports(forget: Forget, made: tuple[Table, dict[str, str]]) -> None:
    table, tags = made
    for uri, tag in (("/a", tags["three"]), ("/b", tags["one"]), ("/c", None)):
        record = ExportRecord(
            uri=uri, export="e", state="done", format="webdataset", version=3, tag=tag,
            data=SliceConfig(where=f"uid <> '{row(26)['uid']}'"), split="train", columns=["image"], rows=24, started=datetime.now(UTC),
        )  # fmt: skip
        table.files.write(f"exports/{record.id}.json", record.model_dump_json().encode())
    assert sorted(record.uri for record in takedown.traces(table, {tags["three"]: 1}, None).exports) == ["/a", "/c"]
    result = forget("--uid", row(26)["uid"], "--yes")
    assert f"export     /a  24 rows as webdataset, of {tags['three']}" in result.output
    assert "export     /c  24 rows as webdataset, of version 3, whether it had the rows is not known" in result.output
    assert "export     /b" not in result.output
    assert len(exports.read_all(table)) == 3  # the record of a copy stays, whatever it says


def test_a_record_of_another_version_is_not_passed_over(forget: Forget, table: Table) -> None:
    table.files.write("exports/0123456789abcdef.json", json.dumps({"uri": "/copies/of/old", "shape": "new"}).encode())
    table.files.write("exports/1123456789abcdef.json", b"{broken")
    said = " ".join(forget("--uid", row(26)["uid"], "--dry-run").output.split())
    assert "0123456789abcdef.json records, at /copies/of/old: the record is damaged or was written by another version" in said
    assert "1123456789abcdef.json records, at a place that cannot be read" in said


def test_mlflow_runs_pictures_and_models(made: tuple[Table, dict[str, str]], tmp_path: Path) -> None:
    table, tags = made
    config = PipelineConfig(sources="blocks://8")
    tracked = {}
    for name, uri, tag in (("a", table.uri, tags["three"]), ("b", table.uri, tags["one"]), ("c", "/another", tags["three"])):
        labelled = StageRef(stage="label", run_id=name, uri=uri, version=1, tag=tag)
        tracked[name] = tracking.start_run(RunRecord(run_id=name), config, labelled)
    (tmp_path / "retrieval.png").write_bytes(b"x")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "model.safetensors").write_bytes(b"x")
    one = tracked["a"]
    one.client.log_artifact(one.run_id, str(tmp_path / "retrieval.png"), "plots")
    assert one.register(tmp_path / "export", "mine") == 1
    [found] = tracking.traces(table.uri, [tags["three"]], [])
    assert (found.run_id, found.name, found.pictures, found.models) == (one.run_id, "a", ["plots/retrieval.png"], ["mine 1 @champion"])
    named = tracking.traces(table.uri, [], [tracked["b"].run_id, "0" * 32])
    assert [trace.name for trace in named] == ["b"]
    assert one.client.get_run(one.run_id).info.lifecycle_stage == "active"


def test_no_record_is_made_by_asking(table: Table, home: Path) -> None:
    with pytest.raises(ConnectionError, match="no record of any run"):
        tracking.traces(table.uri, ["mtv-0"], [])
    assert not (home / "services").exists()


@pytest.mark.prefect
def test_prefect_previews(prefect_server: str) -> None:
    from PIL import Image
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    from tasks import artifacts

    seen: list[str] = []

    @flow(name="preview")
    def shows(key: str) -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append(str(context.flow_run.id))
        artifacts.picture(key, Image.new("RGB", (4, 4)), "Labels")
        create_markdown_artifact("![x](data:image/jpeg;base64,abc)", key=f"{key}-report")
        create_markdown_artifact("figures only", key=f"{key}-text")

    shows("one")
    shows("two")
    found = takedown.previews(prefect_server, [seen[0]])
    assert sorted((preview.key, preview.flow_run_id) for preview in found) == [("one", seen[0]), ("one-report", seen[0])]
    with pytest.raises(ConnectionError, match="no server is known"):
        takedown.previews(None, seen)
