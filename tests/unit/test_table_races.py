"""Columns and accepted revisions, written while others write: they come through, or it is said that they cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import label_tables
import pytest
from label_tables import config, make_table, sample_rows
from lance import LanceDataset

from mtv_core import labelling
from mtv_core.executor import SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.store import again
from mtv_core.store.table import Table

quick = pytest.fixture(autouse=True)(label_tables.quick_experts)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return make_table(tmp_path / "table", 6, 3)


def before(monkeypatch: pytest.MonkeyPatch, method: str, meddle: Callable[[], object], times: int = 1) -> None:
    """Whoever calls a method of a dataset that it has opened is too late: others did something just now."""
    honest, left = getattr(LanceDataset, method), [meddle] * times

    def late(self: LanceDataset, *args: Any, **options: Any) -> Any:
        if left:
            left.pop()()
        return honest(self, *args, **options)

    monkeypatch.setattr(LanceDataset, method, late)


def test_columns_are_added_though_rows_come(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, "add_columns", lambda: table.append(sample_rows(2, first=10)))
    table.ensure_columns("depth")
    assert table.label_counts() == {"depth": {"": 8}}


def test_columns_that_another_run_adds_are_there_once(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, "add_columns", lambda: table.ensure_columns("depth"))
    table.ensure_columns("depth")
    assert table.dataset().schema.names.count("depth_rev") == 1


@pytest.mark.parametrize("theirs", ["depth", "detection"])
def test_two_experts_are_accepted_at_once(table: Table, monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    before(monkeypatch, "update_config", lambda: table.accept(theirs, "r1", {"model": "theirs"}))
    table.accept("depth", "r1", {"model": "mine"})
    found = {name: accepted.source["model"] for name, accepted in table.accepted().items()}
    assert found == {theirs: "theirs", "depth": "mine"}


def test_others_that_write_all_the_time_are_named(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "_LONGEST_WAIT", 0.0)
    numbers = iter(range(again.ATTEMPTS))
    before(monkeypatch, "add_columns", lambda: table.append(sample_rows(1, first=10 + next(numbers))), again.ATTEMPTS)
    with pytest.raises(OSError, match=r"others write to .* all the time; run again"):
        table.ensure_columns("depth")


def test_another_error_is_not_tried_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def broken(*_: object) -> None:
        tried.append(1)
        raise OSError("no space left")

    monkeypatch.setattr(LanceDataset, "add_columns", broken)
    with pytest.raises(OSError, match="no space left"):
        table.ensure_columns("depth")
    assert len(tried) == 1


@pytest.mark.parametrize("attempt", range(4))
def test_two_labellers_start_on_a_fresh_table_beside_appends(tmp_path: Path, attempt: int) -> None:
    table = make_table(tmp_path / "table", 24, 6)
    begin = threading.Barrier(3)
    failures: list[BaseException] = []

    def work(what: Callable[[], object]) -> None:
        begin.wait()
        try:
            what()
        except BaseException as error:
            failures.append(error)

    both = config(commit_fragments=1, allow_mixed=True)
    labellers = [both.model_copy(update={name: None}) for name in ("depth", "detection")]

    def label(one: LabelConfig) -> Callable[[], object]:
        return lambda: labelling.run(table.uri, one, SerialExecutor())

    def append() -> None:
        for number in range(4):
            table.append(sample_rows(2, first=100 + 2 * number), 2)

    threads = [threading.Thread(target=work, args=(what,)) for what in (label(labellers[0]), label(labellers[1]), append)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    result = labelling.run(table.uri, config(), SerialExecutor())
    assert table.label_counts() == {name: {revision: 32} for name, revision in result.revisions.items()}
