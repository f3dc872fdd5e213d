"""Rows deleted, fragments compacted and rows added, between labellings and during them: every row has its own label, told by its uid."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from label_tables import QuickExpert, columns, config, quick_experts, sample_rows
from PIL import Image

from mtv_core import labelling
from mtv_core.data.schema import LABELS
from mtv_core.executor import Outcome, SerialExecutor
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table

CONFIGS = [
    config(depth, detection, accept="immediate", commit_fragments=2)
    for depth, detection in (
        ("blocks:depth-r1", "blocks:detection-r1"),
        ("blocks:depth-r2", "blocks:detection-r1"),
        ("blocks:depth-r2", "blocks:detection-r2"),
    )
]


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return sample_rows(72)


quick = pytest.fixture(autouse=True)(quick_experts)


@pytest.fixture
def table(tmp_path: Path, rows: pa.Table) -> Table:
    """24 rows without labels in 4 fragments."""
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(rows.slice(0, 24), 6)
    return table


def truth(rows: pa.Table, with_config: LabelConfig) -> dict[str, dict[str, Any]]:
    """Uid → what the experts say of that picture."""
    quick = [QuickExpert(name, expert) for name, expert in with_config.experts().items()]
    said = {}
    for row in rows.to_pylist():
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
        said[row["uid"]] = {f"{one.name}_rev": one.revision for one in quick}
        for one in quick:
            said[row["uid"]] |= one.label(image, row["caption"])
    return said


def labels(found: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Uid → the labels that are stored."""
    names = [name for expert in LABELS for name in (*LABELS[expert].names, f"{expert}_rev")]
    return {uid: {name: found[name][i] for name in names} for i, uid in enumerate(found["uid"])}


def check(table: Table, rows: pa.Table, with_config: LabelConfig, deleted: set[str]) -> None:
    wanted = truth(rows, with_config)
    stored = columns(table)
    assert labels(stored) == {uid: said for uid, said in wanted.items() if uid not in deleted}
    images = dict(zip(rows["uid"].to_pylist(), rows["image"].to_pylist(), strict=True))
    assert all(images[uid] == image for uid, image in zip(stored["uid"], stored["image"], strict=True))


def delete(table: Table, uids: Sequence[str]) -> set[str]:
    table.dataset().delete(f"uid in ({', '.join(map(repr, uids))})")
    return set(uids)


def compact(table: Table, target: int = 16) -> None:
    table.dataset().optimize.compact_files(target_rows_per_fragment=target, materialize_deletions_threshold=0.0)


def run(table: Table, with_config: LabelConfig, executor: Any = None) -> labelling.LabelResult:
    return labelling.run(table.uri, with_config, executor or SerialExecutor())


@pytest.mark.parametrize("target", [5, 16, 1000])
def test_deletions_and_compactions_between_refreshes(table: Table, rows: pa.Table, target: int) -> None:
    chance = random.Random(target)
    deleted: set[str] = set()
    end, tags = 24, []
    for with_config in CONFIGS:
        tags.append((run(table, with_config), columns(table)))
        check(table, rows.slice(0, end), with_config, deleted)
        deleted |= delete(table, chance.sample(sorted(set(rows["uid"].to_pylist()[:end]) - deleted), 5))
        check(table, rows.slice(0, end), with_config, deleted)
        new = chance.choice([0, 8])
        if new:
            table.append(rows.slice(end, new), 5)
            end += new
        compact(table, target)
        after = run(table, with_config)  # what was rewritten is not labelled again; what came is
        check(table, rows.slice(0, end), with_config, deleted)
        assert after.report.rows_in == 2 * new
    for result, before in tags:
        old = Table.at(table.uri, tag=result.tag).dataset.to_table().sort_by("uid")
        assert {name: old[name].to_pylist() for name in old.column_names} == {name: before[name] for name in old.column_names}


def test_a_compaction_alone_makes_nothing_stale(table: Table, rows: pa.Table) -> None:
    first = run(table, CONFIGS[0])
    deleted = delete(table, rows["uid"].to_pylist()[3:9])
    compact(table)
    again = run(table, CONFIGS[0])
    assert (again.report.rows_in, again.report.rows_skipped) == (0, 36)
    assert again.revisions == first.revisions
    check(table, rows.slice(0, 24), CONFIGS[0], deleted)


class Meddler(SerialExecutor):
    """An executor that does something else to the table after some results."""

    def __init__(self, after: int, meddle: Callable[[], object]) -> None:
        self.after, self.meddle = after, meddle

    def map(self, function: Any, items: Sequence[Any], *, resources: Mapping[str, float] | None = None) -> Iterator[Outcome[Any, Any]]:
        for index, outcome in enumerate(super().map(function, items)):
            if index == self.after:
                self.meddle()
                self.after = -1
            yield outcome


@pytest.mark.parametrize("after", range(7))
def test_a_deletion_and_a_compaction_while_labels_are_written(table: Table, rows: pa.Table, after: int) -> None:
    run(table, CONFIGS[0])
    uids = rows["uid"].to_pylist()
    deleted = delete(table, [uids[2]])

    def meddle() -> None:
        deleted.update(delete(table, [uids[0], uids[7], uids[8], uids[23]]))
        compact(table)

    run(table, CONFIGS[2], Meddler(after, meddle))
    check(table, rows.slice(0, 24), CONFIGS[2], deleted)
    assert run(table, CONFIGS[2]).report.rows_in == 0
