"""Labels published while others write: what does not fit any more is left out, the rest comes through, and nothing is written over."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lance import LanceDataset

from mtv_core.data.schema import SAMPLES, label_schema
from mtv_core.store import again, label_commit
from mtv_core.store.labels import LabelConflictError, StagedLabels
from mtv_core.store.table import Table


def rows(first: int, last: int) -> pa.Table:
    fixed = {"image": b"x", "width": 1, "height": 1, "caption": "a", "captions": [{"text": "a", "kind": "web"}], "caption_raw": "a"}
    origin = {"source": "s", "shard": "t", "sha256": "0", "split": "train", "ingest_id": "i"}
    return pa.Table.from_pylist([fixed | origin | {"uid": f"{n:032x}", "key": str(n)} for n in range(first, last)], schema=SAMPLES)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """40 rows in 4 fragments, with columns for depth."""
    table = Table.create_or_open(str(tmp_path / "table"))
    table.append(rows(0, 40), 10)
    table.ensure_columns("depth")
    return table


def stage(table: Table, fragment_id: int, revision: str, version: int | None = None) -> StagedLabels:
    """Labels that name their row and revision."""
    version = version or table.version
    keys = table.read_fragment(version, fragment_id, ["key"])["key"].to_pylist()
    labels = {"depth": [f"{revision} {key}".encode() for key in keys], "depth_rev": [revision] * len(keys)}
    return table.stage_labels("depth", version, fragment_id, pa.table(labels, schema=label_schema("depth")))


def fragments(table: Table) -> list[int]:
    return [fragment.fragment_id for fragment in table.dataset().get_fragments()]


def delete_fragment(table: Table, fragment_id: int) -> None:
    uids = table.read_fragment(table.version, fragment_id, ["uid"])["uid"].to_pylist()
    table.dataset().delete(f"uid in ({', '.join(map(repr, uids))})")


def compact(table: Table) -> None:
    table.dataset().optimize.compact_files(target_rows_per_fragment=15)


def labels(table: Table) -> dict[str, str | None]:
    """Key → revision; each label is that of its row and its revision."""
    found = table.dataset().to_table(columns=["key", "depth", "depth_rev"]).to_pylist()
    for row in found:
        assert row["depth"] == (f"{row['depth_rev']} {row['key']}".encode() if row["depth_rev"] else None)
    return {row["key"]: row["depth_rev"] for row in found}


def records(table: Table) -> list[str]:
    return table.files.names("_staging/labels/depth/r1")


class Meddled:
    """Lance's commit of labels, before which others do something: the first of them before the first commit, and so on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *meddle: Callable[[], object]) -> None:
        self.left, self.calls, self.meddling, self.honest = list(meddle), 0, False, LanceDataset.commit
        monkeypatch.setattr(LanceDataset, "commit", self)

    def __call__(self, *args: Any, **options: Any) -> LanceDataset:
        if not self.meddling:
            self.calls += 1
            self.meddling = True
            if self.left:
                self.left.pop(0)()
            self.meddling = False
        return self.honest(*args, **options)


def test_a_fragment_that_is_gone_keeps_no_other_away(table: Table) -> None:
    staged = [stage(table, fragment, "r1") for fragment in range(4)]
    delete_fragment(table, 2)
    with pytest.raises(LabelConflictError, match=r"since version 2: 2$") as raised:
        table.commit_labels(staged, whole=False)
    assert [one.fragment_id for one in raised.value.lost] == [2]
    assert set(labels(table).values()) == {"r1"}
    assert records(table) == []


def test_a_fragment_that_another_run_labelled_keeps_its_labels_and_no_other_away(table: Table) -> None:
    staged = [stage(table, fragment, "r1") for fragment in range(4)]
    table.commit_labels([stage(table, 1, "r2")])
    with pytest.raises(LabelConflictError) as raised:
        table.commit_labels(staged, whole=False)
    assert [one.fragment_id for one in raised.value.lost] == [1]
    assert labels(table) == {str(n): "r2" if 10 <= n < 20 else "r1" for n in range(40)}


def test_what_a_compaction_left_alone_is_published(table: Table) -> None:
    staged = [stage(table, fragment, "r1") for fragment in range(4)]
    table.append(rows(40, 43), 3)
    table.append(rows(43, 46), 3)
    table.dataset().optimize.compact_files(target_rows_per_fragment=10)  # the small ones at the end
    assert fragments(table)[:4] == [0, 1, 2, 3]
    delete_fragment(table, 0)
    table.dataset().delete(f"uid = '{11:032x}'")
    with pytest.raises(LabelConflictError):
        table.commit_labels(staged, whole=False)
    assert labels(table) == {str(n): "r1" if n < 40 else None for n in range(10, 46) if n != 11}


def test_with_whole_nothing_is_published_if_anything_is_lost(table: Table) -> None:
    staged = [stage(table, fragment, "r1") for fragment in range(4)]
    table.commit_labels([stage(table, 1, "r2")])
    version = table.version
    with pytest.raises(LabelConflictError):
        table.commit_labels(staged)
    assert table.version == version
    assert records(table) == []


@pytest.mark.parametrize("whole", [True, False])
def test_columns_that_came_meanwhile_are_no_conflict(table: Table, whole: bool) -> None:
    staged = [stage(table, fragment, "r1") for fragment in range(4)]
    table.ensure_columns("detection")
    table.accept("detection", "d1", {})
    version = table.version
    assert table.commit_labels(staged, whole) == version + 1
    assert set(labels(table).values()) == {"r1"}


def test_what_comes_between_comparison_and_commit_is_seen(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = [stage(table, fragment, "r1") for fragment in range(4)]
    meddled = Meddled(
        monkeypatch,
        lambda: table.ensure_columns("detection"),  # Lance says no to all of them
        lambda: table.commit_labels([stage(table, 3, "r2")]),  # after they were compared
    )
    with pytest.raises(LabelConflictError) as raised:
        table.commit_labels(staged, whole=False)
    assert [one.fragment_id for one in raised.value.lost] == [3]
    assert meddled.calls == 3
    assert labels(table) == {str(n): "r2" if n >= 30 else "r1" for n in range(40)}


def test_where_others_are_always_quicker_it_is_said_and_nothing_is_lost(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = [stage(table, fragment, "r1") for fragment in range(4)]
    numbers = iter(range(100))

    def add_column() -> None:
        table.dataset().add_columns(pa.schema([pa.field(f"extra{next(numbers)}", pa.string())]))

    with monkeypatch.context() as patch:
        Meddled(patch, *[add_column] * again.ATTEMPTS)
        with pytest.raises(OSError, match=r"others write to .* all the time; run again"):
            table.commit_labels(staged, whole=False)
    assert table.staged("depth", "r1") == staged
    table.commit_labels(staged)
    assert set(labels(table).values()) == {"r1"}


def test_what_a_scan_says_that_is_gone_is_lost(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = [stage(table, 0, "r1")]
    table.ensure_columns("detection")
    monkeypatch.setattr(label_commit, "open_dataset", lambda *_: None)
    with pytest.raises(LabelConflictError):
        table.commit_labels(staged, whole=False)
    assert set(labels(table).values()) == {None}


@pytest.mark.parametrize("seed", range(25))
def test_whatever_comes_between_no_label_is_written_over_or_put_on_another_row(table: Table, seed: int) -> None:
    chance = random.Random(seed)
    staged = [stage(table, fragment, "r1") for fragment in fragments(table)]
    steps: dict[str, Callable[[], object]] = {
        "label": lambda: table.commit_labels([stage(table, chance.choice(fragments(table)), "r2")]),
        "delete": lambda: table.dataset().delete(f"uid = '{chance.randrange(40):032x}'"),
        "delete a fragment": lambda: delete_fragment(table, chance.choice(fragments(table))),
        "append": lambda: table.append(rows(100 + table.version * 10, 103 + table.version * 10), 3),
        "compact": lambda: compact(table),
        "columns": lambda: table.ensure_columns("detection"),
        "accept": lambda: table.accept("depth", chance.choice("ab"), {}),
    }
    for _ in range(chance.randint(1, 4)):
        steps[chance.choice(list(steps))]()
    theirs = {key for key, revision in labels(table).items() if revision == "r2"}
    before = table.dataset()
    untouched = {one.fragment_id: [file.path for file in one.data_files()] for one in before.get_fragments() if one.fragment_id in range(4)}
    lost: list[int] = []
    try:
        table.commit_labels(staged, whole=False)
    except LabelConflictError as error:
        lost = [one.fragment_id for one in error.lost]
    after = labels(table)
    assert theirs == {key for key, revision in after.items() if revision == "r2"}
    published = {one.fragment_id for one in staged} - set(lost)
    assert published == {fragment for fragment, files in untouched.items() if not any(name.startswith("label-depth") for name in files)}
    wanted = {str(n) for fragment in published for n in range(10 * fragment, 10 * fragment + 10)}
    assert {key for key, revision in after.items() if revision == "r1"} == wanted & after.keys()
    assert records(table) == []
