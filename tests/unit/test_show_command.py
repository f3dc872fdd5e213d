"""`mtv show` says what the rows say, for people and for programs, and writes pages where it was told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from label_tables import make_table
from test_label_report import NASTY, NEW, OLD, accept, check_page, nasty, random_labels, relabelled, uids_of, write_labels
from typer.testing import CliRunner

from flows.cli import app
from mtv_core.store.table import Table


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, int]:
    return relabelled(tmp_path_factory.mktemp("show"), 7, 14)


@pytest.fixture
def table(tables: tuple[Table, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setenv("MTV_HOME", str(tmp_path / "home"))
    return tables[0]


def call(table: Table, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["show", "-t", table.uri, *map(str, arguments)])


def said(table: Table, *arguments: object) -> dict[str, Any]:
    result = call(table, "--json", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.output)
    return found


def rows_of(table: Table, version: int | None = None) -> list[dict[str, Any]]:
    return sorted(table.at(table.uri, version=version).dataset.to_table().to_pylist(), key=lambda row: row["uid"])


def test_json_is_what_is_stored(table: Table) -> None:
    found = said(table, "-n", 30)
    assert (found["version"], found["accepted"]) == (table.version, {"depth": NEW, "detection": NEW})
    [group] = found["groups"]
    rows = rows_of(table)
    assert [row["uid"] for row in group["rows"]] == [row["uid"] for row in rows]
    for shown, row in zip(group["rows"], rows, strict=True):
        assert (shown["caption"], shown["detection_rev"], shown["depth_rev"]) == (row["caption"], NEW, NEW)
        assert (shown["depth"] is None) == (row["depth"] is None)
        if row["boxes"] is None:
            assert shown["boxes"] is None
        else:
            assert [(box["phrase"], box["score"]) for box in shown["boxes"]] == [
                (phrase, pytest.approx(score, abs=1e-4)) for phrase, score in zip(row["phrases"], row["scores"], strict=True)
            ]


def test_rows_by_uid(table: Table, tmp_path: Path) -> None:
    uids = uids_of(table)
    result = call(table, uids[4], uids[2][:12], "--expert", "depth", "--html", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    first, second = (result.output.index(uid) for uid in (uids[4], uids[2]))
    assert first < second
    assert "boxes" not in result.output
    assert f"page      {tmp_path}/out/rows.html" in result.output
    page = check_page((tmp_path / "out/rows.html").read_text(), set())
    assert [attributes["id"] for tag, attributes in page.tags if tag == "figure"] == [uids[4], uids[2]]


def test_what_nobody_can_mean(table: Table) -> None:
    uids = uids_of(table)
    assert "has no row" in str(call(table, "f" * 31).exception)
    assert "no uid" in str(call(table, "zebra").exception)
    shared = next(digit for digit in "0123456789abcdef" if sum(uid.startswith(digit) for uid in uids) > 1)
    assert "say more of it" in str(call(table, shared).exception)
    assert "no version 99999" in str(call(table, "--slice", "largest-change", "--before", 99999).exception)
    for wrong in (("--tag", "x", "--at", 1), (uids[0], "--slice", "none"), ("--before", 1)):
        assert call(table, *wrong).exit_code == 2


def test_slices(table: Table, tables: tuple[Table, int]) -> None:
    rows = rows_of(table)
    none = said(table, "--slice", "none", "--count", 3)
    assert [row["uid"] for row in none["groups"][0]["rows"]] == [row["uid"] for row in rows if row["boxes"] == []][:3]
    changed = said(table, "--slice", "largest-change", "--before", tables[1], "-n", 2)
    assert [group["name"] for group in changed["groups"]] == ["largest-change-depth", "largest-change-detection"]
    old = {row["uid"]: row for row in rows_of(table, tables[1])}
    for group in changed["groups"]:
        for row in group["rows"]:
            assert row["before"][f"{group['name'].removeprefix('largest-change-')}_rev"] == OLD
            assert row["uid"] in old
    assert all(Path(file).exists() for file in changed["files"])
    assert {Path(file).parent for file in changed["files"]} == {Path(table.uri) / "_reports/show"}, "where a takedown finds them"


def test_the_tag_before_is_found(tmp_path: Path) -> None:
    table = make_table(tmp_path, 6, 3)
    depth, _ = random_labels(uids_of(table), 1)
    write_labels(table, "depth", depth, OLD)
    assert "no earlier tag" in str(call(table, "--slice", "largest-change").exception)
    assert "no detection labels" in str(call(table, "--slice", "most-boxes").exception)
    table.tag({"depth": OLD})
    write_labels(table, "depth", random_labels(uids_of(table), 2)[0], NEW)
    [group] = said(table, "--slice", "largest-change")["groups"]
    assert group["rows"][0]["before"]["depth_rev"] == OLD


def test_a_table_without_labels(tmp_path: Path) -> None:
    table = make_table(tmp_path, 6, 3)
    for arguments in ((), ("--html", tmp_path / "out"), (uids_of(table)[0],)):
        result = call(table, *arguments)
        assert result.exit_code == 1
        assert "has no depth or detection labels; run `mtv label`" in str(result.exception)
    write_labels(table, "depth", random_labels(uids_of(table), 1)[0], OLD)
    assert "has no detection labels; run `mtv label`" in str(call(table, "--expert", "detection").exception)
    assert call(table).exit_code == 0


def test_a_version_is_shown_as_it_was(table: Table, tables: tuple[Table, int]) -> None:
    found = said(table, "--at", tables[1], "-n", 50)
    assert [row["uid"] for row in found["groups"][0]["rows"]] == [row["uid"] for row in rows_of(table, tables[1])]
    result = call(table, "--at", tables[1], "-n", 1)
    assert f"(revision {OLD})" in result.output


def test_the_whole_report(table: Table, tables: tuple[Table, int], tmp_path: Path) -> None:
    result = call(table, "--html", tmp_path / "all", "--before", tables[1])
    assert result.exit_code == 0, result.exception
    assert f"page      {tmp_path}/all/index.html" in result.output
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert {"index.html", "random.html", "largest-change-depth.html", "report.json"} <= names
    check_page((tmp_path / "all/index.html").read_text(), names)


def test_rows_are_shown_where_nothing_can_be_written(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(files: Any, name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(type(table.files), "write", full)
    result = call(table, "-n", 1)
    assert result.exit_code == 0, result.exception
    assert rows_of(table)[0]["uid"] in result.output
    assert "No space left on device" in result.output
    assert "--html FOLDER" in result.output


def test_words_of_the_data_command_no_terminal(tmp_path: Path) -> None:
    table = nasty(tmp_path)
    result = call(table)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "<script>alert(1)</script>" in result.output
    assert "[a](http://x)" in result.output, "no markup"
    assert said(table, "-n", 1)["groups"][0]["rows"][0]["caption"] == NASTY


def test_a_table_without_rows(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3, 3)
    write_labels(table, "depth", random_labels(uids_of(table), 1)[0], NEW)
    table.dataset().delete("true")
    assert "no row is like that" in call(table).output
    accept(table, "depth", NEW)
    assert f"depth     {NEW}" in call(table).output
