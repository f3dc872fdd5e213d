"""A changed expert is tried, refused, tried again and accepted on a table in an object store."""

from __future__ import annotations

import pytest
from canary_experts import cleared, seeing_experts
from label_tables import columns, config, sample_rows

from mtv_core import canary, labelling
from mtv_core.executor import SerialExecutor, silent
from mtv_core.store.table import Table

fresh = pytest.fixture(autouse=True)(cleared)


def test_tried_refused_and_accepted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing_experts(monkeypatch)
    table = Table.create_or_open(f"{bucket}/table")
    table.append(sample_rows(12), 4)
    labelling.run(table.uri, config(), SerialExecutor())
    before, version = columns(table), table.version
    changed = config("blocks:depth-r2")

    [tried] = canary.try_out(table.uri, changed, SerialExecutor())
    assert tried.passed, tried.reason
    assert tried.page.startswith(bucket)
    folder = f"{canary.FOLDER}/depth-{tried.revision}"
    assert {"canary.json", "canary.html"} <= set(table.files.names(folder))
    assert canary.latest(table.uri, changed) == [tried]
    assert canary.try_out(table.uri, changed, SerialExecutor()) == [tried]  # not made twice

    canary.reject(table.uri, tried, "blurred")
    assert [one.reason for one in table.rejected()["depth"]] == ["blurred"]
    assert canary.proposed(table.uri, changed) == []
    assert (columns(table), table.version) == (before, version)

    [forced] = canary.try_out(table.uri, changed, SerialExecutor(), silent, force=True)
    canary.accept(table.uri, forced, changed)
    assert table.rejected() == {}
    labelling.run(table.uri, changed, SerialExecutor())
    after = columns(table)
    assert [name for name in before if before[name] != after[name]] == ["depth", "depth_rev"]
    assert set(after["depth_rev"]) == {tried.revision}
