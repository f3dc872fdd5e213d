"""Pure losses against naive loops in float64, their shapes and gradients."""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Callable

import jaxtyping
import numpy as np
import pytest
import torch
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st

from mtv_core.objectives import contrastive, depth, distillation, gram, grounding, masked
from mtv_core.objectives.config import MaskedConfig
from mtv_core.objectives.masks import draw_mask


def typed(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function with its declared shapes checked at every call; jaxtyping is for tests only, so modules import it for types alone."""
    module = vars(__import__(function.__module__, fromlist=["_"]))
    names = {name: getattr(jaxtyping, name) for name in ("Float", "Bool", "Int")}
    inner = getattr(function, "__wrapped__", function)
    inner.__annotations__ = typing.get_type_hints(inner, globalns={**module, **names})
    return jaxtyping.jaxtyped(typechecker=beartype)(inner)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_sigmoid_contrast_is_the_sum_over_pairs() -> None:
    left, right = draw(3, 5), draw(4, 5, seed=1)
    positive = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).bool()
    ignored = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).bool()
    scale, bias = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    found = typed(contrastive.sigmoid_contrast)(left, right, positive, ignored, scale, bias)
    for i in range(3):
        expected = 0.0
        for j in range(4):
            if not ignored[i, j]:
                sign = 1 if positive[i, j] else -1
                expected -= log_sigmoid(sign * (math.exp(0.7) * cosine(left[i], right[j]) - 1.3))
        assert found[i].item() == pytest.approx(expected, rel=1e-12)


def test_sigmoid_contrast_is_siglips() -> None:
    """transformers' own loss of the same embeddings."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": 30, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": None}
    siglip = SiglipModel(SiglipConfig(text_config=small | tokens, vision_config=small | {"image_size": 16, "patch_size": 8}))
    with torch.no_grad():
        siglip.logit_scale.fill_(1.2)
        siglip.logit_bias.fill_(-2.0)
    out = siglip.eval()(input_ids=torch.randint(3, 30, (4, 64)), pixel_values=torch.randn(4, 3, 16, 16), return_loss=True)
    own = torch.eye(4, dtype=torch.bool)
    rows = contrastive.sigmoid_contrast(
        out.text_embeds, out.image_embeds, own, torch.zeros_like(own), siglip.logit_scale[0], siglip.logit_bias[0]
    )
    assert rows.mean().item() == pytest.approx(out.loss.item(), rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 7), chunk=st.integers(1, 8) | st.none(), kinds=st.integers(1, 7), seed=st.integers(0, 1000))
def test_paired_contrast_is_the_sum_over_pairs_with_its_gradient(rows: int, chunk: int | None, kinds: int, seed: int) -> None:
    images, texts = draw(rows, 5, seed=seed).requires_grad_(), draw(rows, 5, seed=seed + 1).requires_grad_()
    alike = torch.randint(kinds, (rows,), generator=torch.Generator().manual_seed(seed))
    scale, bias = torch.tensor(1.1).double().requires_grad_(), torch.tensor(-2.0).double().requires_grad_()
    inputs = (images, texts, scale, bias)
    own = torch.eye(rows, dtype=torch.bool)
    expected = contrastive.sigmoid_contrast(images, texts, own, (alike[:, None] == alike[None]) & ~own, scale, bias).mean()
    found = typed(contrastive.paired_contrast)(images, texts, alike, scale, bias, chunk=chunk)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, slow in zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True):
        assert torch.allclose(ours, slow, rtol=1e-10, atol=1e-13)


def test_paired_contrast_keeps_no_logits_and_is_float32_under_autocast() -> None:
    images, texts = torch.randn(64, 16).requires_grad_(), torch.randn(64, 16).requires_grad_()
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        found = contrastive.paired_contrast(images, texts, torch.arange(64), torch.tensor(2.3), torch.tensor(-10.0), chunk=8)
    assert max(kept) <= 64 * 16
    expected = contrastive.paired_contrast(images, texts, torch.arange(64), torch.tensor(2.3), torch.tensor(-10.0))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_sinkhorn_alternates_columns_and_rows() -> None:
    logits = draw(6, 4).clamp(-1, 1)
    q = np.exp(logits.numpy() / 0.1)
    for _ in range(3):
        for k in range(4):
            q[:, k] = q[:, k] / q[:, k].sum() / 4
        for m in range(6):
            q[m] = q[m] / q[m].sum() / 6
    assert np.allclose(typed(distillation.sinkhorn)(logits, 0.1, 3).numpy(), q * 6, rtol=1e-12)


def test_sinkhorn_spreads_samples_that_all_prefer_one_prototype() -> None:
    logits = draw(64, 4).clamp(-1, 1) * 0.1 + torch.tensor([0.5, 0.0, 0.0, 0.0])
    assert (logits.argmax(1) == 0).all()
    assigned = distillation.sinkhorn(logits, 0.05, 20)
    assert torch.allclose(assigned.sum(0), torch.full((4,), 16.0).double(), atol=0.5)
    assert torch.allclose(assigned.sum(1), torch.ones(64).double())


def test_cross_entropy_is_the_sum_over_prototypes() -> None:
    student, target = draw(3, 5), draw(3, 5, seed=1).softmax(-1)
    for i, found in enumerate(typed(distillation.cross_entropy)(student, target, 0.1)):
        scores = [math.exp(float(s) / 0.1) for s in student[i]]
        expected = -sum(float(t) * math.log(s / sum(scores)) for t, s in zip(target[i], scores, strict=True))
        assert found.item() == pytest.approx(expected)


def test_koleo_is_the_log_distance_to_the_nearest() -> None:
    x = draw(5, 3)
    unit = [v / v.norm() for v in x]
    nearest = [min(float((a - b).norm()) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    assert typed(distillation.koleo)(x).item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-6)


def test_spread_tells_collapse() -> None:
    assert distillation.spread(draw(512, 16)).item() == pytest.approx(1.0, abs=0.01)
    assert distillation.spread(draw(1, 16).expand(512, 16)).item() < 1e-6


def test_crop_mean_weighs_crops_alike() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).bool()
    losses = torch.tensor([1.0, 2.0, 6.0, 10.0])
    assert typed(masked.crop_mean)(losses, mask).item() == pytest.approx((1 + 2 + 6) / 3 + 10)


def test_gram_distance_is_the_mean_over_pairs_of_patches() -> None:
    patches, anchor = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    for c, found in enumerate(typed(gram.gram_distance)(patches, anchor)):
        pairs = [(cosine(patches[c, i], patches[c, j]) - cosine(anchor[c, i], anchor[c, j])) ** 2 for i in range(3) for j in range(3)]
        assert found.item() == pytest.approx(sum(pairs) / 9)


def test_alike_is_containment_of_words() -> None:
    phrases = [[7, 8, 9], [9, 8, 7], [7, 9, 1], [8, 9, 9], [7, 8, 5]]
    rows = torch.tensor(phrases)
    found = typed(grounding.alike)(rows, rows)
    for (i, a), (j, b) in itertools.product(enumerate(phrases), repeat=2):
        assert bool(found[i, j]) == (set(a) <= set(b) or set(a) >= set(b)), (a, b)


def naive_normalised(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    known = sorted(values[valid])
    median = known[(len(known) - 1) // 2]
    deviation = sum(abs(v - median) for v in known) / len(known)
    return (values - median) / max(deviation, 1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_depth_losses_are_the_sums_over_pixels(seed: int) -> None:
    prediction, target = draw(2, 7, 6, seed=seed), draw(2, 7, 6, seed=seed + 10)
    valid = draw(2, 7, 6, seed=seed + 20) > -0.5
    invariant = typed(depth.scale_shift_invariant)(prediction, target, valid)
    matching = typed(depth.gradient_matching)(prediction, target, valid, 3)
    for b in range(2):
        v = valid[b].numpy()
        d = naive_normalised(prediction[b].numpy(), v) - naive_normalised(target[b].numpy(), v)
        assert invariant[b].item() == pytest.approx(np.abs(d[v]).mean(), rel=1e-10)
        expected = 0.0
        for k in (1, 2, 4):
            dk, vk, total = d[::k, ::k], v[::k, ::k], 0.0
            for y, x in np.argwhere(vk):
                for to_y, to_x in ((y + 1, x), (y, x + 1)):
                    if to_y < vk.shape[0] and to_x < vk.shape[1] and vk[to_y, to_x]:
                        total += abs(dk[to_y, to_x] - dk[y, x])
            expected += total / vk.sum()
        assert matching[b].item() == pytest.approx(expected, rel=1e-10)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.1, 50), shift=st.floats(-100, 100))
def test_depth_losses_do_not_see_scale_and_shift(scale: float, shift: float) -> None:
    prediction, target, valid = draw(1, 6, 6), draw(1, 6, 6, seed=1), torch.ones(1, 6, 6, dtype=torch.bool)
    before = depth.scale_shift_invariant(prediction, target, valid) + depth.gradient_matching(prediction, target, valid, 2)
    moved = prediction * scale + shift
    after = depth.scale_shift_invariant(moved, target * 3 - 1, valid) + depth.gradient_matching(moved, target * 3 - 1, valid, 2)
    assert after.item() == pytest.approx(before.item(), rel=1e-6)


def test_a_map_without_a_valid_pixel_counts_nothing_and_hides_no_nan() -> None:
    prediction = draw(2, 4, 4).requires_grad_()
    target = draw(2, 4, 4, seed=1)
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[0] = True
    loss = depth.scale_shift_invariant(prediction, target, valid) + depth.gradient_matching(prediction, target, valid, 2)
    loss.sum().backward()
    assert loss[1] == 0
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
    assert (prediction.grad[1] == 0).all()
    assert (prediction.grad[0] != 0).any()


def test_gradients_are_those_of_finite_differences() -> None:
    own = torch.eye(3, dtype=torch.bool)
    scale, bias = torch.tensor(0.5).double().requires_grad_(), torch.tensor(-1.0).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b, s, c: contrastive.sigmoid_contrast(a, b, own, torch.zeros_like(own), s, c),
        (draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_(), scale, bias),
    )
    valid, target = draw(1, 5, 5, seed=3) > -1, draw(1, 5, 5, seed=2)
    for loss in (depth.scale_shift_invariant, lambda p, t, v: depth.gradient_matching(p, t, v, 2)):
        assert torch.autograd.gradcheck(lambda p, f=loss: f(p, target, valid), (draw(1, 5, 5, seed=4).requires_grad_(),))


@settings(deadline=None, max_examples=60)
@given(grid=st.integers(2, 16), low=st.floats(0.05, 0.9), width=st.floats(0, 0.5), seed=st.integers(0, 2**32))
def test_masks_hide_the_share_drawn(grid: int, low: float, width: float, seed: int) -> None:
    high = min(1.0, low + width)
    mask = draw_mask(np.random.default_rng(seed), grid, MaskedConfig(probability=1.0, ratio_low=low, ratio_high=high))
    assert mask.shape == (grid * grid,)
    assert max(1, round(low * grid * grid)) <= mask.sum() <= max(1, round(high * grid * grid))


def test_masks_are_left_out_as_often_as_configured() -> None:
    rng = np.random.default_rng(0)
    some = np.mean([draw_mask(rng, 4, MaskedConfig(probability=0.25)).any() for _ in range(2000)])
    assert some == pytest.approx(0.25, abs=0.04)
    assert not draw_mask(rng, 4, None).any()
