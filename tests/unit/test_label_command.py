"""`mtv label` still labels; `mtv label import` imports, checks, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from label_tables import config, make_table
from typer.testing import CliRunner

from flows.cli import app
from flows.commands import stages
from mtv_core import labelling_retry, runs
from mtv_core.executor import SerialExecutor
from mtv_core.report import Reject
from mtv_core.store.table import Table
from tasks import retry as retries


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
    return make_table(tmp_path / "table", count=6, rows_per_fragment=4)


def boxes(table: Table, folder: Path) -> Path:
    rows = Table.at(table.uri).take(range(6), ["uid", "width", "height"]).to_pylist()
    file = folder / "mine.jsonl"
    file.write_text(
        "".join(json.dumps({"uid": one["uid"], "boxes": [[0, 0, 24, one["height"]]], "phrases": ["left"]}) + "\n" for one in rows)
    )
    return file


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["label", *map(str, arguments)])


def test_without_a_command_it_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[object, ...]] = []
    monkeypatch.setattr(stages, "label", lambda *arguments: called.append(arguments))
    result = call("--preset", "demo", "-s", "a.tar", "-t", "mine", "--set", "label.batch_size=2")
    assert result.exit_code == 0, result.output
    assert called == [("demo", ["a.tar"], "mine", ["label.batch_size=2"])]
    refused = call("-t", "mine", "import", "x.csv")
    assert refused.exit_code == 2
    assert "go behind its name" in refused.output
    assert len(called) == 1


def test_import(table: Table, tmp_path: Path) -> None:
    file = boxes(table, tmp_path)
    version = table.version
    checked = call("import", file, "-t", table.uri, "--units", "pixels", "--check")
    assert "6 labels, 6 to import" in checked.output
    assert table.version == version
    result = call("import", file, "-t", table.uri, "--units", "pixels", "--license", "cc0-1.0")
    assert result.exit_code == 0, result.output
    accepted = table.accepted()["detection"]
    assert accepted.source["license"] == "cc0-1.0"
    assert f"detection revision {accepted.revision}" in result.output
    assert table.label_counts()["detection"] == {accepted.revision: 6}
    [record] = runs.load_all()[0]
    assert (record.flow, record.status.value, record.table.tag, record.experts) == (
        "label-import", "completed", *table.tags(), {"detection": accepted.revision},
    )  # fmt: skip


def test_refusals_of_an_import_are_not_tried_again(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failures(*options: str) -> Result:
        return CliRunner().invoke(app, ["failures", "-t", table.uri, *options])

    assert f"no refusals in {table.uri}\n" in failures().output
    file = boxes(table, tmp_path)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0].replace("24", "9999"), *lines[1:]]))
    assert call("import", file, "-t", table.uri, "--units", "pixels").exit_code == 0
    shown = failures()
    assert "BadBoxes" in shown.output
    assert "--retry" not in shown.output
    monkeypatch.setattr(retries, "connect", lambda compute: pytest.fail("a cluster was started"))
    for options in ((), ("--stage", "detection"), ("--reason", "BadBoxes")):
        refused = failures("--retry", *options)
        assert refused.exit_code == 1
        assert "imported from mine.jsonl, and no model tries them again: fix the file and import it again" in str(refused.exception)
    with pytest.raises(ValueError, match="fix the file and import it again"):
        labelling_retry.retry(table.uri, config(), SerialExecutor(), stage="detection")
    assert len(runs.load_all()[0]) == 1, "no run was begun"
    table.rejects.append([Reject(uid=None, shard="s", key="a", stage="ingest", error="NoCaption", message="none")])
    assert "--retry tries them again, but for those of imports (detection)" in failures().output


def test_mistakes(table: Table, tmp_path: Path) -> None:
    assert "no file or folder" in str(call("import", tmp_path / "none.csv", "-t", table.uri).exception)
    (tmp_path / "maps").mkdir()
    assert "--values depth" in str(call("import", tmp_path / "maps", "-t", table.uri).exception)
    assert "mtv ingest" in str(call("import", boxes(table, tmp_path), "-t", tmp_path / "other").exception)
    wrong = call("import", boxes(table, tmp_path), "-t", table.uri)
    assert "every label was refused" in str(wrong.exception)
    wrong = call("import", boxes(table, tmp_path), "-t", table.uri, "--set", "label.failures.min_samples=1")
    assert "label.failures.share" in str(wrong.exception)
    checked = call("import", boxes(table, tmp_path), "-t", table.uri, "--check")
    assert checked.exit_code == 1
    assert "refused: 6 × BadBoxes" in checked.output
    for scale in ("0", "-1", "nan", "inf"):
        refused = call("import", tmp_path / "maps", "-t", table.uri, "--values", "depth", "--scale", scale)
        assert (refused.exit_code, "a number above 0" in " ".join(refused.output.replace("│", " ").split())) == (2, True), refused.output
    assert "detection" not in table.accepted()
