"""Two labels compared: depth after alignment, boxes within a phrase, scores as distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtv_core.label_checks import iou
from mtv_core.label_compare import FAR, abs_rel, align, ks_distance, matched

SCENE = np.random.default_rng(0).uniform(0.2, 1.0, (9, 7)).astype(np.float32)


@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_scale_and_shift_of_a_new_map_are_its_own(scale: float, shift: float) -> None:
    assert abs_rel(SCENE, SCENE * scale + shift) == pytest.approx(0, abs=1e-3)


def test_abs_rel_is_the_mean_over_pixels_of_what_the_aligned_depths_differ_by() -> None:
    new = SCENE + np.random.default_rng(1).normal(0, 0.1, SCENE.shape).astype(np.float32)
    design = np.stack([new.ravel(), np.ones(new.size)], 1).astype(np.float64)
    aligned = design @ np.linalg.lstsq(design, SCENE.ravel().astype(np.float64), rcond=None)[0]
    floor = FAR * np.percentile(SCENE, 99)
    errors = []
    for a, b in zip(aligned, SCENE.ravel(), strict=True):
        far, near = 1 / max(a, floor), 1 / max(b, floor)
        errors.append(abs(far - near) / near)
    assert abs_rel(SCENE, new) == pytest.approx(np.mean(errors), rel=1e-6)


def test_near_and_far_exchanged_is_as_bad_as_saying_nothing() -> None:
    nothing = abs_rel(SCENE, np.ones_like(SCENE))
    assert nothing > 0.2
    assert abs_rel(SCENE, -SCENE) == pytest.approx(nothing)
    assert align(-SCENE.ravel(), SCENE.ravel()).std() < 1e-12


def test_what_is_infinitely_far_does_not_count_without_end() -> None:
    sky = SCENE.copy()
    sky[:4] = 0
    assert abs_rel(sky, np.where(sky == 0, 1e-4, sky)) < 1e-2
    assert np.isfinite(abs_rel(sky, np.random.default_rng(2).random(sky.shape)))


def test_maps_of_other_sizes_are_compared_place_by_place() -> None:
    large = np.kron(SCENE, np.ones((3, 3), np.float32))
    assert abs_rel(SCENE, large) == pytest.approx(0, abs=1e-6)
    assert abs_rel(large, SCENE) == pytest.approx(0, abs=1e-6)


def test_missing_values_are_left_out_and_nothing_known_is_nan() -> None:
    holes = SCENE.copy()
    holes[2] = np.nan
    assert abs_rel(SCENE, holes) == pytest.approx(0, abs=1e-6)
    assert np.isnan(abs_rel(SCENE, np.full_like(SCENE, np.nan)))
    assert np.isnan(abs_rel(np.ones_like(SCENE), SCENE))


def test_a_map_that_goes_below_zero_is_compared_too() -> None:
    assert abs_rel(SCENE - 5, SCENE) == pytest.approx(0, abs=0.05)
    assert abs_rel(SCENE - 5, -SCENE) > 0.2


def naive(old: np.ndarray, olds: list[str], new: np.ndarray, news: list[str]) -> list[tuple[int, int, float]]:
    pairs = [(float(iou(old[i : i + 1], new[j : j + 1])[0, 0]), i, j) for i in range(len(old)) for j in range(len(new))]
    taken: list[tuple[int, int, float]] = []
    for overlap, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if overlap > 0 and olds[i] == news[j] and all(i != a and j != b for a, b, _ in taken):
            taken.append((i, j, overlap))
    return taken


@given(seed=st.integers(0, 10_000), old=st.integers(0, 6), new=st.integers(0, 6))
def test_boxes_are_matched_best_first_within_a_phrase(seed: int, old: int, new: int) -> None:
    chance = np.random.default_rng(seed)

    def some(count: int) -> tuple[np.ndarray, list[str]]:
        corner = chance.uniform(0, 0.6, (count, 2))
        return np.concatenate([corner, corner + chance.uniform(0.1, 0.4, (count, 2))], 1).astype(np.float32), [
            str(word) for word in chance.choice(["a", "b"], count)
        ]

    (a, words), (b, others) = some(old), some(new)
    assert matched(a, words, b, others) == naive(a, words, b, others)


@given(
    st.lists(st.floats(0, 1, width=16), min_size=1, max_size=20),
    st.lists(st.floats(0, 1, width=16), min_size=1, max_size=20),
)
def test_the_distance_of_scores_is_that_of_their_distribution_functions(old: list[float], new: list[float]) -> None:
    a, b = np.array(old), np.array(new)
    assert ks_distance(a, b) == pytest.approx(max(abs((a <= t).mean() - (b <= t).mean()) for t in [*old, *new]))
    assert ks_distance(a, a) == 0


def test_no_scores_have_no_distance() -> None:
    assert np.isnan(ks_distance(np.array([]), np.array([0.5])))
