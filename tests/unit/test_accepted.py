"""Accepted and rejected revisions, as the table knows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from label_tables import make_table

from mtv_core.store.table import Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return make_table(tmp_path / "table", count=2)


def test_a_refused_revision_is_known_until_it_is_accepted(table: Table) -> None:
    table.accept("depth", "r1", {"model": "one"})
    table.reject("depth", "r2", "AbsRel 0.4 > 0.1")
    table.reject("detection", "d2", "a person said no")
    table.reject("depth", "r3", "worse")
    assert [(one.revision, one.reason) for one in table.rejected()["depth"]] == [("r2", "AbsRel 0.4 > 0.1"), ("r3", "worse")]
    assert table.accepted()["depth"].revision == "r1"
    table.accept("depth", "r2", {"model": "two"})
    assert [one.revision for one in table.rejected()["depth"]] == ["r3"]
    assert [one.revision for one in table.rejected()["detection"]] == ["d2"]
    table.accept("depth", "r3", {})
    assert "depth" not in table.rejected()


def test_refused_twice_is_one_refusal_with_the_new_reason(table: Table) -> None:
    for reason in ("first", "second"):
        table.reject("depth", "r2", reason)
    assert [one.reason for one in table.rejected()["depth"]] == ["second"]


def test_the_accepted_revision_cannot_be_refused(table: Table) -> None:
    table.accept("depth", "r1", {})
    with pytest.raises(ValueError, match="r1 is the accepted one of the depth expert"):
        table.reject("depth", "r1", "no")


def test_what_is_said_already_makes_no_version(table: Table) -> None:
    table.accept("depth", "r1", {"model": "one"})
    version = table.version
    table.accept("depth", "r1", {"model": "one"})
    assert table.version == version


def test_a_refusal_makes_no_version(table: Table) -> None:
    table.accept("depth", "r1", {})
    version = table.version
    table.reject("depth", "r2", "no")
    assert table.version == version


def test_what_is_accepted_is_not_refused_even_if_a_kill_left_it_on_the_list(table: Table) -> None:
    table.reject("depth", "r2", "no")
    entry = table.files.read("_rejected/depth.json")
    table.accept("depth", "r2", {})
    table.files.write("_rejected/depth.json", entry)
    assert "depth" not in table.rejected()
