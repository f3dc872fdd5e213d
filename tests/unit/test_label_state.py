"""What the manifest says of labels is what a scan of every row says, whatever happened to the table; and it opens no data file."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from label_tables import sample_rows
from lance import LanceDataset

from mtv_core.data.schema import label_schema
from mtv_core.store import labels
from mtv_core.store.label_state import LabelState
from mtv_core.store.table import Table

REVISIONS = ("r1", "r1-2", "a.b_c")


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return sample_rows(120)


def slow_truth(dataset: LanceDataset, expert: str) -> dict[int, Counter[str]]:
    """Fragment → revision → rows, from every row."""
    found: dict[int, Counter[str]] = {}
    column = f"{expert}_rev"
    if column not in dataset.schema.names:
        return {fragment.fragment_id: Counter({"": fragment.count_rows()}) for fragment in dataset.get_fragments()}
    for fragment in dataset.get_fragments():
        found[fragment.fragment_id] = Counter(str(value or "") for value in fragment.to_table(columns=[column])[0].to_pylist())
    return found


def label(table: Table, expert: str, fragment_id: int, revision: str, share: float, chance: random.Random) -> None:
    """Stage and commit labels, of which the rows beyond a share failed for now; what has the revision keeps it."""
    table.ensure_columns(expert)
    version, schema = table.version, label_schema(expert)
    old = table.read_fragment(version, fragment_id, [f"{expert}_rev"])[0].to_pylist()
    revisions = [revision if known == revision or chance.random() < share else None for known in old]
    batch = pa.Table.from_pylist([{f"{expert}_rev": one} for one in revisions], schema=schema)
    table.commit_labels([table.stage_labels(expert, version, fragment_id, batch, (), revision)])


def check(table: Table) -> None:
    state = table.label_state()
    for expert in ("depth", "detection"):
        truth = slow_truth(state.dataset, expert)
        total: Counter[str] = sum(truth.values(), Counter())
        assert LabelState(state.dataset).any_labelled(expert) == bool(total.keys() - {""})
        assert state.counts(expert) == dict(total)
        for revision in REVISIONS:
            stale = {fragment: counts.total() - counts[revision] for fragment, counts in truth.items() if counts.total() > counts[revision]}
            plan = state.stale(expert, revision)
            assert {task.fragment_id: task.num_stale for task in plan.fragments} == stale
            physical = {one.fragment_id: one.physical_rows for one in state.dataset.get_fragments()}
            assert all(task.physical_rows == physical[task.fragment_id] for task in plan.fragments)
            assert plan.num_stale == sum(stale.values())


def steps(table: Table, rows: pa.Table, chance: random.Random) -> Iterator[str]:
    """Things that happen to tables, one after the other."""
    appended = 24
    for _ in range(14):
        what = chance.choice(["label", "label", "label", "part", "delete", "delete label", "append", "compact"])
        fragments = [one.fragment_id for one in table.dataset().get_fragments()]
        expert, revision = chance.choice(["depth", "detection"]), chance.choice(REVISIONS)
        if what in ("label", "part"):
            for fragment in chance.sample(fragments, k=chance.randint(1, len(fragments))):
                label(table, expert, fragment, revision, 1.0 if what == "label" else chance.random(), chance)
        elif what == "append":
            table.append(rows.slice(appended, 7), 4)
            appended += 7
        elif what == "compact":
            table.dataset().optimize.compact_files(target_rows_per_fragment=12, materialize_deletions_threshold=0.0)
        else:
            version = table.version
            table.dataset().delete(f"key in ({', '.join(repr(f'{chance.randrange(appended):05d}') for _ in range(3))})")
            if what == "delete label":  # the fragment was read before the rows were deleted
                fragment = chance.choice(fragments)
                table.ensure_columns(expert)
                physical = table.fragment(table.dataset(version), fragment).physical_rows
                batch = pa.Table.from_pylist([{f"{expert}_rev": revision}] * physical, schema=label_schema(expert))
                if any(one.fragment_id == fragment for one in table.dataset().get_fragments()):
                    table.commit_labels([table.stage_labels(expert, table.version, fragment, batch, (), revision)])
        yield what


@pytest.mark.parametrize("seed", range(12))
def test_it_says_what_a_scan_says(tmp_path: Path, rows: pa.Table, seed: int) -> None:
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(rows.slice(0, 24), 6)
    check(table)
    for _ in steps(table, rows, random.Random(seed)):
        check(table)


def test_tables_labelled_before_names_said_it_are_read(tmp_path: Path, rows: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_WHOLE", "")
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(rows.slice(0, 12), 6)
    label(table, "depth", 0, "r1", 1.0, random.Random(0))
    check(table)
    assert table.label_counts() == {"depth": {"r1": 6, "": 6}}


def test_no_data_file_is_opened_where_labels_are_whole(tmp_path: Path, rows: pa.Table) -> None:
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(rows.slice(0, 24), 6)
    for expert in ("depth", "detection"):
        for fragment in range(3):
            label(table, expert, fragment, "r1", 1.0, random.Random(0))
    table.dataset().delete("key in ('00001', '00020')")
    label(table, "depth", 3, "r1", 1.0, random.Random(0))
    data = Path(table.uri) / "samples.lance" / "data"
    data.rename(data.with_name("elsewhere"))
    with pytest.raises(ValueError, match="Not found"):
        table.dataset().to_table(columns=["depth_rev"])
    assert table.label_counts() == {"depth": {"r1": 22}, "detection": {"r1": 17, "": 5}}
    assert table.stale("depth", "r1").fragments == []
    assert [(task.fragment_id, task.physical_rows, task.num_stale) for task in table.stale("detection", "r1").fragments] == [(3, 6, 5)]
