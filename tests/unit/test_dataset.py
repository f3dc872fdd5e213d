"""Publication: all at once, once, and never over rows that the caller has not seen."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest
from lance.fragment import FragmentMetadata

from mtv_core.store.dataset import RowsAddedError, last_fragment, open_dataset, publish, publish_unless_added, write

SCHEMA = pa.schema([pa.field("uid", pa.string(), nullable=False)])


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path if request.param == 'local' else request.getfixturevalue('bucket')}/samples.lance"


def written(uri: str, *uids: str) -> list[FragmentMetadata]:
    return write(pa.table({"uid": list(uids)}, schema=SCHEMA), uri, 2)


def uids(uri: str) -> list[str]:
    dataset = open_dataset(uri)
    return [] if dataset is None else dataset.to_table()["uid"].to_pylist()


def test_what_was_seen_is_what_is_added_to(uri: str) -> None:
    publish_unless_added(written(uri, "a", "b", "c"), SCHEMA, uri, None)
    seen = last_fragment(open_dataset(uri))
    assert seen == 1
    publish_unless_added(written(uri, "d"), SCHEMA, uri, seen)
    assert uids(uri) == ["a", "b", "c", "d"]
    for stale in (None, -1, seen):
        with pytest.raises(RowsAddedError, match="run again"):
            publish_unless_added(written(uri, "e"), SCHEMA, uri, stale)
    assert uids(uri) == ["a", "b", "c", "d"]


def test_again_changes_nothing(uri: str) -> None:
    first, second = written(uri, "a"), written(uri, "b")
    publish_unless_added(first, SCHEMA, uri, None)
    publish_unless_added(first, SCHEMA, uri, None)
    publish_unless_added([*first, *second], SCHEMA, uri, 0)
    publish_unless_added([*first, *second], SCHEMA, uri, 0)
    assert uids(uri) == ["a", "b"]


def test_a_table_without_rows_left_can_be_added_to(uri: str) -> None:
    publish(written(uri, "a"), SCHEMA, uri)
    dataset = open_dataset(uri)
    assert dataset is not None
    dataset.delete("true")
    assert last_fragment(open_dataset(uri)) == -1
    publish_unless_added(written(uri, "b"), SCHEMA, uri, -1)
    assert uids(uri) == ["b"]


@pytest.mark.parametrize("new", [True, False])
def test_of_several_without_any_lock_one_wins(uri: str, new: bool) -> None:
    if not new:
        publish(written(uri, "a"), SCHEMA, uri)
    seen = last_fragment(open_dataset(uri))
    before = len(uids(uri))
    mine = [written(uri, f"u{number}") for number in range(6)]
    lost: list[BaseException] = []
    barrier = threading.Barrier(len(mine))

    def run(fragments: list[FragmentMetadata]) -> None:
        barrier.wait()
        try:
            publish_unless_added(fragments, SCHEMA, uri, seen)
        except RowsAddedError as error:
            lost.append(error)

    threads = [threading.Thread(target=run, args=(fragments,)) for fragments in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 5
    assert len(uids(uri)) == before + 1
    dataset = open_dataset(uri)
    assert dataset is not None
    assert dataset.has_stable_row_ids


def test_changes_that_add_no_rows_do_not_stop_it(uri: str) -> None:
    """Accepted revisions, label columns and labels are written beside an ingest."""
    publish(written(uri, "a"), SCHEMA, uri)
    done = threading.Event()

    def configure() -> None:
        number = 0
        while not done.is_set():
            dataset = open_dataset(uri)
            assert dataset is not None
            dataset.update_config({"mtv.accepted.depth": str(number)})
            number += 1

    thread = threading.Thread(target=configure)
    thread.start()
    try:
        for number in range(8):
            publish_unless_added(written(uri, f"u{number}"), SCHEMA, uri, last_fragment(open_dataset(uri)))
    finally:
        done.set()
        thread.join()
    assert uids(uri) == ["a", *(f"u{number}" for number in range(8))]
