"""Protocols against naive loops and encoders whose results are known; the suite on a tiny model."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as fn

from mtv_core.evaluation import linear_depth, linear_segmentation, losses, probe, retrieval, statistics, suite, zero_shot
from mtv_core.evaluation.config import EvaluateConfig
from mtv_core.evaluation.datasets.base import Classification, Dense, DenseSplit, Facet, Retrieval
from mtv_core.model.config import ModelConfig, TextConfig
from mtv_core.model.mtv import create_model, save_model

PACKAGE = Path(suite.__file__).parent
LABELS = ("mtv_core.labelling", "mtv_core.experts", "mtv_core.store", "mtv_core.ingest", "lance")


class FakeEncoder:
    """Looks its answers up."""

    def __init__(self, images: torch.Tensor, texts: dict[str, torch.Tensor] | torch.Tensor, name: str = "fake") -> None:
        self.name, self._images, self._texts = name, images, texts

    def images(self, pictures: Any) -> torch.Tensor:
        return fn.normalize(self._images, dim=-1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        found = torch.stack([self._texts[text] for text in texts]) if isinstance(self._texts, dict) else self._texts
        return fn.normalize(found, dim=-1)

    def patches(self, pictures: Any) -> torch.Tensor:
        return torch.from_numpy(pictures).float()[:, 4::8, 4::8]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny operations on two busy cores wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What may be read


def test_no_module_of_evaluation_imports_a_label() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):  # inside functions too
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not [name for name in names if name.startswith(LABELS)], path


def test_nothing_that_evaluation_loads_reads_a_label() -> None:
    code = f"import sys, mtv_core.evaluation.suite, mtv_core.evaluation.plots; print([m for m in sys.modules if m.startswith({LABELS})])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# Zero-shot


def classification(count: int = 60) -> tuple[Classification, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    classes = [f"{colour} {shape}" for colour in "abc" for shape in "xy"]
    prompts = tuple((name, f"a {name}", f"the {name}") for name in classes)
    labels = np.arange(count) % 6
    facets = {"colour": Facet(tuple("abc"), np.arange(6) // 2), "shape": Facet(tuple("xy"), np.arange(6) % 2)}
    data = Classification("fake", np.zeros((count, 2, 2, 3), np.uint8), labels, tuple(classes), prompts, facets)
    texts = {prompt: torch.randn(5, generator=generator) for of_class in prompts for prompt in of_class}
    return data, torch.randn(count, 5, generator=generator), texts


def test_zero_shot_is_the_naive_loop() -> None:
    data, images, texts = classification()
    found = dict(zero_shot.ZeroShot(data)(FakeEncoder(images, texts)))
    right: dict[str, list[bool]] = {"top1": [], "shape_given_colour": [], "colour_given_shape": []}
    for image, label in zip(images, data.labels.tolist(), strict=True):
        scores = []
        for of_class in data.prompts:
            mean = sum(texts[prompt] / texts[prompt].norm() for prompt in of_class) / len(of_class)
            scores.append(float(image @ mean / mean.norm()))
        allowed = {
            "top1": range(6),
            "shape_given_colour": [c for c in range(6) if c // 2 == label // 2],
            "colour_given_shape": [c for c in range(6) if c % 2 == label % 2],
        }
        for metric, among in allowed.items():
            right[metric].append(max(among, key=lambda c: scores[c]) == label)
    for metric, hits in right.items():
        assert found[metric] == pytest.approx(np.mean(hits))
    assert 0.0 < found["top1"] < found["shape_given_colour"]


def test_zero_shot_of_an_oracle_and_its_chances() -> None:
    data, _, _ = classification()
    oracle = {prompt: torch.eye(6)[index] for index, of_class in enumerate(data.prompts) for prompt in of_class}
    found = dict(zero_shot.ZeroShot(data)(FakeEncoder(torch.eye(6)[data.labels], oracle)))
    assert found["top1"] == found["shape_given_colour"] == 1.0
    assert (found["chance"], found["shape_given_colour_chance"], found["colour_given_shape_chance"]) == pytest.approx((1 / 6, 1 / 2, 1 / 3))
    assert found["top1_times_chance"] == pytest.approx(6.0)


# Retrieval


def test_ranks_are_the_naive_loop_with_several_texts_a_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 6, (7, 12), generator=generator).float()  # with ties
    picture_of_text = torch.arange(12) % 7
    right = picture_of_text[None] == torch.arange(7)[:, None]
    for query, place in enumerate(retrieval.ranks(similarity, right).tolist()):
        best = max(similarity[query, t].item() for t in range(12) if right[query, t])
        assert place == sum(similarity[query, t].item() >= best for t in range(12) if not right[query, t])


def test_a_collapsed_encoder_finds_nothing() -> None:
    data = Retrieval("fake", np.zeros((20, 2, 2, 3), np.uint8), tuple(map(str, range(20))), np.arange(20))
    found = dict(retrieval.Retrieval(data)(FakeEncoder(torch.ones(20, 3), torch.ones(20, 3))))
    assert [found[f"{direction}_r{depth}"] for direction in ("i2t", "t2i") for depth in (1, 5, 10)] == [0.0] * 6
    assert found["chance_r1"] == pytest.approx(0.05)


def test_recall_of_a_shifted_encoder() -> None:
    """Text i is nearest to picture i + 1 and second nearest to picture i: nothing at 1, everything at 5."""
    data = Retrieval("fake", np.zeros((20, 2, 2, 3), np.uint8), tuple(map(str, range(20))), np.arange(20))
    found = dict(retrieval.Retrieval(data)(FakeEncoder(torch.eye(20), 0.5 * torch.eye(20) + torch.eye(20).roll(1, 1))))
    assert (found["i2t_r1"], found["t2i_r1"], found["i2t_r5"], found["t2i_r5"]) == (0.0, 0.0, 1.0, 1.0)


# Dense metrics and probes


def test_depth_metrics_are_the_naive_loop() -> None:
    rng = np.random.default_rng(0)
    predicted, true, valid = rng.uniform(0.5, 9, (5, 8, 8)), rng.uniform(0.5, 9, (5, 8, 8)), rng.random((5, 8, 8)) < 0.6
    valid[3] = False  # a picture of sky alone counts for nothing
    rmse, abs_rel, delta = [], [], []
    for p, t, v in zip(predicted, true, valid, strict=True):
        if v.any():
            p, t = p[v], t[v]
            rmse.append(np.sqrt(np.mean((p - t) ** 2)))
            abs_rel.append(np.mean(np.abs(p - t) / t))
            delta.append(np.mean(np.maximum(p / t, t / p) < 1.25))
    found = linear_depth.depth_metrics(*(torch.from_numpy(a) for a in (predicted, true, valid)))
    assert found == pytest.approx({"rmse": np.mean(rmse), "abs_rel": np.mean(abs_rel), "delta1": np.mean(delta)}, rel=1e-5)


def test_sig_loss_forgives_most_of_a_scale() -> None:
    true = torch.linspace(1, 8, 50).view(1, 5, 10)
    valid = torch.ones_like(true, dtype=torch.bool)
    assert linear_depth.sig_loss(2 * true, true, valid) == pytest.approx(np.sqrt(0.15) * np.log(2), rel=1e-3)
    assert linear_depth.sig_loss(true, true, valid) == 0.0


def test_expected_depth_is_a_mean_of_bins() -> None:
    flat = linear_depth.expected_depth(torch.zeros(1, 64, 2, 2), 12.0)
    torch.testing.assert_close(flat, torch.full((1, 1, 2, 2), 6.0005))
    one = torch.zeros(1, 64, 1, 1)
    one[0, 10] = 1e6
    assert float(linear_depth.expected_depth(one, 12.0)) == pytest.approx(10 * 12.0 / 63, abs=1e-2)


def test_mean_iou_is_the_naive_loop() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, (3, 9, 9)), rng.integers(0, 5, (3, 9, 9))  # class 4 is predicted, never true
    ious = [((true == c) & (predicted == c)).sum() / ((true == c) | (predicted == c)).sum() for c in range(4)]
    counts = linear_segmentation.confusion(torch.from_numpy(predicted), torch.from_numpy(true), 5)
    assert linear_segmentation.mean_iou(counts) == pytest.approx(np.mean(ious))
    assert counts.sum() == true.size


def test_thinned_pixels_lie_where_enlarged_values_do() -> None:
    small = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(probe.thin(probe.enlarge(small, 48)[:, 0]), probe.enlarge(small, 16)[:, 0])


def dense(informative: bool, train: int = 48, val: int = 16) -> Dense:
    """Pictures of 8 × 8 tiles whose colour is (noise, depth, class), or noise alone."""
    rng = np.random.default_rng(3)

    def split(count: int) -> DenseSplit:
        tiles = rng.integers(0, 3, (count, 3, 3))
        metres = rng.uniform(1, 9, (count, 3, 3))
        colours = np.stack([rng.uniform(0, 255, tiles.shape), 25 * metres, 0.0 * tiles, 0.0 * tiles], -1)
        colours[..., 2:] = np.stack([200.0 * (tiles == 1), 200.0 * (tiles == 2)], -1)
        if not informative:
            colours = rng.uniform(0, 255, colours.shape)

        def grow(a: Any) -> Any:
            return a.repeat(8, 1).repeat(8, 2)

        return DenseSplit(
            grow(colours).astype(np.uint8), grow(metres).astype(np.float32), np.ones((count, 24, 24), bool), grow(tiles).astype(np.uint8)
        )

    return Dense("fake", split(train), split(val), ("p", "q", "r"), 10.0)


@pytest.mark.parametrize("evaluator", [linear_depth.LinearDepth, linear_segmentation.LinearSegmentation])
def test_probes_find_what_features_hold_and_nothing_else(evaluator: Any) -> None:
    before = torch.get_rng_state()
    found = {
        informative: dict(evaluator(dense(informative), seeds=3, steps=60)(FakeEncoder(*[torch.ones(1, 1)] * 2)))
        for informative in (True, False)
    }
    assert torch.equal(torch.get_rng_state(), before)
    for metric, higher in evaluator(dense(True), seeds=3, steps=1).compared.items():
        with_answer, without = found[True], found[False]
        assert statistics.beyond(with_answer[metric], with_answer[f"{metric}_ci95"], without[metric], without[f"{metric}_ci95"], higher), (
            metric
        )
        assert without[f"{metric}_std"] > 0.0
    again = dict(evaluator(dense(True), seeds=3, steps=60)(FakeEncoder(*[torch.ones(1, 1)] * 2)))
    assert again == found[True]


def test_a_probe_is_trained_once_a_model() -> None:
    evaluator = linear_segmentation.LinearSegmentation(dense(True), seeds=3, steps=5)
    one, other = (FakeEncoder(*[torch.ones(1, 1)] * 2, name=name) for name in ("one", "other"))
    assert evaluator.heads(one) is evaluator.heads(one)
    assert evaluator.heads(one) is not evaluator.heads(other)


# Intervals


def test_seed_interval_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(size=10)
    for n in range(3, 11):
        low, high = stats.t.interval(0.95, n - 1, loc=values[:n].mean(), scale=values[:n].std(ddof=1) / np.sqrt(n))
        estimate = statistics.over_seeds(values[:n].tolist())
        assert (estimate.mean - estimate.ci, estimate.mean + estimate.ci) == pytest.approx((low, high), rel=1e-5)
    with pytest.raises(ValueError, match="3 to 10"):
        statistics.over_seeds([1.0, 2.0])


def test_wilson_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for hits, n in ((0, 30), (7, 30), (30, 30), (120, 384)):
        interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert statistics.wilson(hits / n, n) == pytest.approx((interval.high - interval.low) / 2, rel=1e-5)


def test_beyond_needs_intervals_apart_in_the_right_direction() -> None:
    assert statistics.beyond(0.9, 0.1, 0.6, 0.1, higher=True)
    assert not statistics.beyond(0.9, 0.2, 0.6, 0.1, higher=True)
    assert not statistics.beyond(0.9, 0.1, 0.6, 0.1, higher=False)
    assert statistics.beyond(0.6, 0.1, 0.9, 0.1, higher=False)


# Losses


def write_metrics(path: Path, columns: dict[str, Sequence[float]]) -> Path:
    rows = [{"step": step, **{name: values[step] for name, values in columns.items()}} for step in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_losses_fall_or_do_not(tmp_path: Path) -> None:
    falling = [10.0 - 0.05 * step for step in range(100)]
    file = write_metrics(
        tmp_path / "m.jsonl", {"loss": falling, "loss/up": falling[::-1], "loss/nan": [*falling[:-1], float("nan")], "lr": falling}
    )
    curves = losses.read(file)
    assert {name: curve.fell for name, curve in curves.items()} == {"loss": True, "loss/up": False, "loss/nan": False}
    assert curves["loss"].first == pytest.approx(np.mean(falling[:5]))
    assert curves["loss"].last == pytest.approx(np.mean(falling[90:]))
    found = losses.metrics(curves)
    assert (found["training/loss_fell"], found["training/loss/up_fell"], found["training/all_losses_fell"]) == (1.0, 0.0, 0.0)
    assert "training/loss/nan_last" not in found


def test_losses_say_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the metrics"):
        losses.read(tmp_path / "none")
    (tmp_path / "cut").write_text('{"step": 1, "loss": 1}\n{"st')
    with pytest.raises(ValueError, match="line 2"):
        losses.read(tmp_path / "cut")
    (tmp_path / "other").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="no losses"):
        losses.read(tmp_path / "other")


# The suite

TINY = EvaluateConfig(
    picture_size=48, per_class=1, retrieval_count=10, dense_train=16, dense_val=4, probe_steps=10, batch_size=16, examples=2, threads=1
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    config = ModelConfig(
        backbone_args={"patch_size": 12, "embed_dim": 24, "depth": 1, "num_heads": 2},
        image_size=48,
        text=TextConfig(width=16, depth=1, heads=2),
    )
    for seed, name in enumerate(("model", "init")):
        torch.manual_seed(seed)
        save_model(*create_model(config), root / name)
    write_metrics(root / "metrics.jsonl", {"loss": [100.0 - step for step in range(100)]})
    return root


def test_suite_measures_both_models_and_writes_what_it_returns(models: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    threads = torch.get_num_threads()

    def run(out: Path) -> suite.Evaluation:
        return suite.run(
            models / "model",
            models / "init",
            TINY,
            out,
            models,
            lambda done, total, message="": told.append((done, total)),
            models / "metrics.jsonl",
        )

    found = run(tmp_path / "one")
    assert torch.get_num_threads() == threads
    assert told == [(done, told[0][1]) for done in range(told[0][1] + 1)]
    assert suite.load(tmp_path / "one") == found
    assert str(tmp_path) not in (tmp_path / "one" / suite.FILE).read_text()
    assert set(found.protocols) == {"zero_shot", "retrieval", "depth_probe", "segmentation_probe"}
    for name in found.metrics:
        parts = name.split("/")
        protocol = parts[1] if parts[0] in ("baseline", "gain") else parts[0]
        assert protocol in {*found.protocols, "training"}, name
    for row in found.tables["results"]:
        assert {row["metric"], f"baseline/{row['metric']}", f"gain/{row['metric']}_beyond_interval"} <= set(found.metrics)
        assert "/v1 on blocks-v1" in row["protocol"]
    assert found.metrics["zero_shot/chance"] == pytest.approx(1 / 48)
    assert found.metrics["zero_shot/shape_given_colour_chance"] == pytest.approx(1 / 6)
    assert found.metrics["zero_shot/colour_given_shape_chance"] == pytest.approx(1 / 8)
    assert found.metrics["training/all_losses_fell"] == 1.0
    assert {"summary", "losses", "retrieval", "zero_shot_confusion", "depth_probe", "segmentation_probe"} == set(found.plots)
    for path in found.plots.values():
        with Image.open(path) as picture:
            assert picture.width > 300
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    again = run(tmp_path / "two")
    assert again.metrics == found.metrics


def test_suite_without_a_baseline_has_no_gain(models: Path, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"protocols": ["zero_shot"]})
    found = suite.run(models / "model", None, config, tmp_path, models)
    assert not [name for name in found.metrics if name.startswith(("baseline/", "gain/", "training/"))]
    assert found.tables["results"][0]["untrained"] is None


def test_suite_says_what_is_missing_or_broken(models: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        suite.run(tmp_path / "none", None, TINY, tmp_path / "out", models)
    with pytest.raises(FileNotFoundError, match="mtv evaluate"):
        suite.load(tmp_path)
    config = ModelConfig(
        backbone_args={"patch_size": 12, "embed_dim": 24, "depth": 1, "num_heads": 2},
        image_size=48,
        text=TextConfig(width=16, depth=1, heads=2),
    )
    model, tokenizer = create_model(config)
    torch.nn.init.constant_(model.backbone.norm.weight, float("nan"))
    save_model(model, tokenizer, tmp_path / "nan")
    with pytest.raises(ValueError, match="diverged"):
        suite.run(tmp_path / "nan", None, TINY, tmp_path / "out", models)
    assert not (tmp_path / "out" / suite.FILE).exists()


def test_config_refuses_fewer_than_three_seeds() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 3"):
        EvaluateConfig(probe_seeds=2)
    with pytest.raises(ValueError, match="twice"):
        EvaluateConfig(protocols=["zero_shot", "zero_shot"])
