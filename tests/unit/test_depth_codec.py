"""The depth codec keeps what it promises: shape, missing values, half a step of error."""

import blosc2
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.data import depth as codec

maps = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.floats(np.float32(-1e30).item(), np.float32(1e30).item(), width=32)
    | st.floats(0, 10, width=32)
    | st.sampled_from([np.nan, np.inf]),
)


@settings(max_examples=200, deadline=None)
@given(maps)
def test_error_is_half_a_step_and_missing_stays_missing(depth: np.ndarray) -> None:
    back = codec.decode(codec.encode(depth))
    assert back.shape == depth.shape
    assert back.dtype == np.float32
    valid = np.isfinite(depth)
    assert np.array_equal(np.isnan(back), ~valid)
    if valid.any():
        known = depth[valid].astype(np.float64)
        half_step = (known.max() - known.min()) / codec.LEVELS / 2
        rounding = 4 * np.finfo(np.float32).eps * np.abs(known).max()
        tiny = float(np.finfo(np.float32).tiny)  # a step below it is rounded to few digits, or to nothing
        assert np.abs(back[valid] - known).max() <= half_step + rounding + tiny


def test_a_range_too_small_for_steps_is_lost() -> None:
    depth = np.array([[1.61e-43, 0]], np.float32)
    assert np.abs(codec.decode(codec.encode(depth)) - depth).max() <= np.finfo(np.float32).tiny


@settings(max_examples=50, deadline=None)
@given(maps)
def test_bytes_are_deterministic_and_order_is_kept(depth: np.ndarray) -> None:
    data = codec.encode(depth)
    assert data == codec.encode(depth.copy())
    valid = np.isfinite(depth)
    order = np.argsort(depth[valid], kind="stable")
    assert (np.diff(codec.decode(data)[valid][order]) >= 0).all()


def test_error_is_that_of_float16_on_disparities_near_one() -> None:
    depth = np.random.default_rng(0).uniform(0.0, 2.0, (64, 64)).astype(np.float32)
    ours = np.abs(codec.decode(codec.encode(depth)) - depth).max()
    assert ours <= np.abs(depth.astype(np.float16).astype(np.float32) - depth).max()


def test_not_contiguous_and_float64_maps() -> None:
    depth = np.arange(48.0).reshape(6, 8)[::2, ::-1]
    assert np.allclose(codec.decode(codec.encode(depth)), depth, atol=48 / codec.LEVELS)


def test_all_missing_and_constant() -> None:
    assert np.isnan(codec.decode(codec.encode(np.full((3, 5), np.nan, np.float32)))).all()
    assert (codec.decode(codec.encode(np.full((3, 5), 0.1, np.float32))) == np.float32(0.1)).all()


@pytest.mark.parametrize("depth", [np.zeros((2, 2, 2)), np.zeros((0, 4)), np.zeros((1, 70_000))])
def test_wrong_shapes_are_refused(depth: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        codec.encode(depth)


def test_damage_is_an_error_not_a_picture() -> None:
    data = codec.encode(np.random.default_rng(0).normal(size=(32, 32)))
    for damaged in (b"", data[:10], b"\x07" + data[1:], data[: codec.HEADER.size], data[: codec.HEADER.size + 20], data[:-200]):
        with pytest.raises(ValueError, match="depth label"):
            codec.decode(damaged)
    # A chunk of another size than the header says must not be read as this picture.
    swapped = data[: codec.HEADER.size] + blosc2.compress2(np.zeros(7, np.uint16), typesize=2)
    with pytest.raises(ValueError, match="depth label"):
        codec.decode(swapped)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [((96, 96), 256, (96, 96)), ((512, 384), 256, (256, 192)), ((100, 1000), 256, (26, 256)), ((4, 4000), 256, (1, 256))],
)
def test_stored_size(size: tuple[int, int], limit: int, expected: tuple[int, int]) -> None:
    assert codec.stored_size(*size, limit) == expected
