"""The order is that of the slow loop, from any sample on, for any number of ranks; rows come decoded, with what labels they have."""

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_world import make_table

from mtv_core.store.loader import Loader, Row, decode
from mtv_core.store.loader_config import LoaderConfig
from mtv_core.store.order import Order
from mtv_core.store.table import Table
from mtv_core.store.view import View

ROWS, HELD_OUT = 23, 4


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    uri, _, tag = make_table(tmp_path_factory.mktemp("loader"), ROWS, held_out=HELD_OUT)
    return Table.at(uri, tag=tag)


def loader(view: View, batch: int = 8, rank: int = 0, ranks: int = 1, config: LoaderConfig | None = None) -> Loader[list[Row]]:
    experts = ("depth", "detection")
    return Loader(view, list, global_batch=batch, seed=5, experts=experts, config=config, rank=rank, ranks=ranks)


def seen(batches: object) -> list[tuple[str, int]]:
    return [(row.uid, row.epoch) for batch in batches for row in batch]  # type: ignore[attr-defined]


def slow_order(num_rows: int, seed: int, block: int, window: int, epochs: int) -> list[tuple[int, int]]:
    """Every epoch written out as the docstring of Order says it."""
    out = []
    for epoch in range(epochs):
        blocks = [list(range(start, min(start + block, num_rows))) for start in range(0, num_rows, block)]
        blocks = [blocks[i] for i in np.random.default_rng([seed, epoch, 0]).permutation(len(blocks))]
        for index, start in enumerate(range(0, len(blocks), window)):
            rows = [row for part in blocks[start : start + window] for row in part]
            out += [(epoch, row) for row in np.random.default_rng([seed, epoch, 1 + index]).permutation(rows).tolist()]
    return out


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(0, 180), min_size=2, max_size=6))
def test_any_slice_is_that_of_the_slow_loop(num_rows: int, block: int, window: int, cuts: list[int]) -> None:
    order = Order(num_rows, 3, block, window)
    truth = slow_order(num_rows, 3, block, window, epochs=180 // num_rows + 1)
    for start, stop in itertools.pairwise(cuts):
        epochs, rows = order(min(start, stop), max(start, stop))
        assert list(zip(epochs.tolist(), rows.tolist(), strict=True)) == truth[min(start, stop) : max(start, stop)]


def test_epochs_and_seeds_differ_and_each_has_every_row() -> None:
    first, second = (Order(1000, 0)(start, start + 1000)[1] for start in (0, 1000))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert (first != second).mean() > 0.9
    assert (first != Order(1000, 1)(0, 1000)[1]).mean() > 0.9
    # Epoch e + 1 of a seed is not epoch e of the next one, nor a window the one of another epoch.
    assert (second != Order(1000, 1)(0, 1000)[1]).mean() > 0.9


def test_every_training_row_once_an_epoch_across_batches(view: View) -> None:
    rows = ROWS - HELD_OUT
    samples = seen(loader(view).batches(0, rows))  # 8 epochs of 19 rows in 19 batches of 8: batches that lie over the end of an epoch
    for epoch in range(8):
        assert len({uid for uid, e in samples if e == epoch}) == rows
    assert len(samples) == 8 * rows
    held_out = next(iter(view.scan(columns=["uid"], condition="split = 'held_out'")))["uid"].to_pylist()
    assert not {uid for uid, _ in samples} & set(held_out)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("first", [0, 3])
def test_ranks_share_the_same_global_batch(view: View, ranks: int, first: int) -> None:
    whole = [seen([batch]) for batch in loader(view).batches(0, 7)][first:]
    parts = [[seen([batch]) for batch in loader(view, rank=rank, ranks=ranks).batches(first, 7)] for rank in range(ranks)]
    assert [list(itertools.chain(*shares)) for shares in zip(*parts, strict=True)] == whole


def test_size_of_reads_and_cache_change_nothing(view: View) -> None:
    reference = list(loader(view, config=LoaderConfig(take_rows=1, cache_mb=0)).batches(0, 6))
    for config in (LoaderConfig(), LoaderConfig(take_rows=16, decode_threads=3), LoaderConfig(cache_mb=1, prefetch=1)):
        for batch, other in zip(reference, loader(view, config=config).batches(0, 6), strict=True):
            for row, same in zip(batch, other, strict=True):
                assert (row.uid, row.epoch, row.captions, row.phrases) == (same.uid, same.epoch, same.captions, same.phrases)
                assert torch.equal(row.image, same.image)


def test_cached_rows_are_read_once(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = view.take
    monkeypatch.setattr(view, "take", lambda indices, columns: taken.extend(indices) or take(indices, columns))
    list(loader(view).batches(0, 9))
    assert len(taken) == len(set(taken)) == ROWS - HELD_OUT
    taken.clear()
    list(loader(view, config=LoaderConfig(cache_mb=0, take_rows=8)).batches(0, 9))
    assert len(taken) > 3 * (ROWS - HELD_OUT)


def test_labels_are_there_or_none(view: View) -> None:
    rows = {row.uid: row for batch in loader(view).batches(0, 3) for row in batch}
    table = view.take(list(range(HELD_OUT, ROWS)), ["uid"])["uid"].to_pylist()
    for index, uid in enumerate(table, start=HELD_OUT):
        row = rows[uid]
        assert (row.depth is None) == (index >= 2 * ROWS // 3)
        assert row.boxes is not None
        assert len(row.boxes) == len(row.phrases) == (0 if index % 5 == 0 else len(row.boxes))
        assert row.image.shape == (3, 48, 48)


def test_mistakes_are_said(view: View) -> None:
    with pytest.raises(ValueError, match="19 rows to train on, fewer than one global batch"):
        loader(view, batch=20)
    with pytest.raises(ValueError, match="multiple of the number of ranks"):
        loader(view, ranks=3)


def test_an_error_in_the_thread_is_raised_and_no_thread_stays(view: View) -> None:
    def fail(rows: list[Row]) -> None:
        raise KeyError(rows[0].uid)

    with pytest.raises(KeyError):
        next(Loader(view, fail, global_batch=8, seed=0).batches())
    endless = loader(view).batches()
    next(endless)
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mtv-")]


def test_pil_decodes_the_same_where_torchvision_cannot(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = view.take([7], ["uid", "image", "captions"]).to_pylist()
    reference = decode(row).image
    monkeypatch.setattr(torch.ops, "image", object())
    assert torch.equal(decode(row).image, reference)


def test_a_damaged_picture_names_its_row() -> None:
    with pytest.raises(ValueError, match=r"row abc cannot be decoded"):
        decode({"uid": "abc", "image": b"\xff\xd8 no jpeg", "captions": []})
