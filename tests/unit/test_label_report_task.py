"""What a run keeps of the report of labels, and what Prefect shows of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from label_tables import config
from test_label_report import NEW, relabelled

from mtv_core import label_report as core
from mtv_core.report import StageRef, StageReport
from mtv_core.store.config import TableConfig
from mtv_core.store.table import Table
from tasks import label_report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, int]:
    return relabelled(tmp_path_factory.mktemp("task"), 2, 12)


def run() -> Any:
    return SimpleNamespace(config=SimpleNamespace(table=TableConfig(), label=config()))


def ref_of(table: Table, **fields: Any) -> StageRef:
    revisions = {"depth": NEW, "detection": NEW}
    return StageRef(stage="label", run_id="r", uri=table.uri, version=table.version, tag="mtv-1", revisions=revisions, **fields)


def test_a_stage_is_not_failed_by_its_report(made: tuple[Table, int], monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    table, before = made
    ref = ref_of(table)
    assert label_report.report(run(), ref.model_copy(update={"version": 9999}), before) == {}
    assert "report could not be written" in caplog.text

    def full(files: Any, name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(type(table.files), "write", full)
    assert label_report.report(run(), ref, before) == {}
    assert "No space left" in caplog.text


def test_where_nothing_was_labelled_the_report_is_the_one_there_is(made: tuple[Table, int], monkeypatch: pytest.MonkeyPatch) -> None:
    table, before = made
    busy = ref_of(table, report=StageReport(rows_out=1))
    first = label_report.report(run(), busy, before)
    calls = []
    write = core.write
    monkeypatch.setattr(core, "write", lambda *arguments, **options: calls.append(arguments) or write(*arguments, **options))
    assert label_report.report(run(), ref_of(table), before) == dict(sorted(first.items()))
    assert not calls
    assert label_report.report(run(), busy, before) == first
    assert len(calls) == 1
    Path(first["report/labels/report.json"]).unlink()  # as a kill leaves it
    assert label_report.report(run(), ref_of(table), before) == first


@pytest.mark.prefect
def test_artifacts(made: tuple[Table, int], prefect_server: str) -> None:
    from prefect import flow
    from prefect.artifacts import Artifact

    table, before = made
    outputs = label_report.report(run(), ref_of(table), before)
    assert all(name.startswith("report/labels/") and Path(uri).stat().st_size for name, uri in outputs.items())
    ref = ref_of(table, outputs=outputs)

    @flow(name="labels")
    def show() -> None:
        label_report.artifacts(ref)

    show()
    groups = [name.removeprefix("report/labels/").removesuffix(".jpg") for name in outputs if name.endswith(".jpg")]
    assert {"random", "none", "largest-change-depth", "largest-change-detection"} <= set(groups)
    for group in groups:
        picture: Any = Artifact.get(f"labels-{group}")
        assert str(picture.data).startswith("data:image/jpeg;base64,")
    text, link = (str(getattr(Artifact.get(key), "data", None)) for key in ("label-report", "label-pages"))
    start = outputs["report/labels/index.html"]
    assert Path(outputs["report/labels/report.md"]).read_text() in text
    assert start in text
    assert start in link
    Path(outputs["report/labels/none.jpg"]).unlink()
    show()  # a takedown removed a picture: the others are shown
