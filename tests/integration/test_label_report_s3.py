"""The report of labels and `mtv show` on a table in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from label_tables import config, quick_experts, sample_rows
from typer.testing import CliRunner

from flows.cli import app
from mtv_core import label_report, labelling
from mtv_core.executor import SerialExecutor
from mtv_core.report import StageRef
from mtv_core.store.table import Table
from tasks import reports


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from quick_experts(monkeypatch)


@pytest.fixture
def table(bucket: str) -> Table:
    table = Table.create_or_open(f"{bucket}/table")
    table.append(sample_rows(6), 3)
    labelling.run(table.uri, config(), SerialExecutor())
    return table


def test_a_report_lies_beside_the_table(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_report, "KEPT", 1)
    label_report.write(table, table.version - 1, {}, None, config())
    table.files.write(f"_reports/labels/{table.version}/gone.html", b"of another run")
    files = label_report.write(table, table.version, {}, None, config())
    assert label_report.written(table, table.version) == dict(sorted(files.items()))
    assert table.files.names("_reports/labels") == [str(table.version)]
    ref = StageRef(stage="label", run_id="r", uri=table.uri, outputs={f"report/labels/{name}": uri for name, uri in files.items()})
    found = reports.read(ref)
    assert found["labels/index.html"].startswith(b"<!doctype html>")
    assert found["labels/random.jpg"].startswith(b"\xff\xd8")


def test_rows_are_shown_and_pages_go_where_they_are_asked_for(table: Table, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", "-t", table.uri, "-n", "2"])
    assert result.exit_code == 0, result.exception
    assert "--html FOLDER" in result.output
    assert table.files.names("_reports") == []
    result = CliRunner().invoke(app, ["show", "-t", table.uri, "--html", str(tmp_path / "out"), "--slice", "random"])
    assert result.exit_code == 0, result.exception
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"random.html", "random.jpg"}
