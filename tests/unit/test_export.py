"""The exported folders answer as the trained model does, to libraries that know nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mtv_core import export
from mtv_core.export import convert, model_card
from mtv_core.export.config import ExportConfig
from mtv_core.export.model_card import ModelFacts
from mtv_core.model.config import ModelConfig, TextConfig
from mtv_core.model.mtv import create_model, load_model, save_model
from mtv_core.model.preprocess import pixel_values, token_ids

CONFIG = ModelConfig(
    backbone_args={"patch_size": 12, "embed_dim": 48, "depth": 2, "num_heads": 3},
    image_size=48,
    text=TextConfig(width=32, depth=2, heads=2),
)
FACTS = ModelFacts(
    run_id="20260101T000000-abcdef",
    tag="mtv-0123456789ab",
    experts={"depth": {"revision": "d" * 16, "model": "blocks:depth-r1", "license": "apache-2.0"}},
    data_licenses=["CC0-1.0"],
    metrics={"zero_shot/top1": 0.5, "zero_shot/top1_ci95": 0.04, "baseline/zero_shot/top1": 0.02, "baseline/zero_shot/top1_ci95": 0.01},
    protocols={"zero_shot": "zero-shot classification/v1 on blocks-v1"},
    config={"table": {"uri": "t", "storage_options": {"secret": "hunter2"}}},
)
TEXTS = ["a red sphere", "a photo of a blue cube", "nothing like it"]

# What a user's interpreter without MTV and without a network does.
ALONE = """
import importlib.abc, json, socket, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mtv_core", "tasks", "flows", "infra", "lance", "mlflow", "prefect"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
def refuse(*_): raise AssertionError("the network was asked for something")
socket.socket.connect = refuse

folder, picture, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
answers = {}

from transformers import AutoProcessor, AutoTokenizer, SiglipModel, SiglipProcessor, pipeline
found = pipeline("zero-shot-image-classification", model=folder)(picture, candidate_labels=texts, hypothesis_template="{}")
answers["pipeline"] = {row["label"]: row["score"] for row in found}
model, info = SiglipModel.from_pretrained(folder, output_loading_info=True)
answers["loading"] = [sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
processor = AutoProcessor.from_pretrained(folder)
answers["processor"] = type(processor).__name__
tokenizers = [SiglipProcessor.from_pretrained(folder).tokenizer, processor.tokenizer, AutoTokenizer.from_pretrained(folder)]
answers["ids"] = [tokenizer(texts[0], padding="max_length")["input_ids"] for tokenizer in tokenizers]

import timm, torch
from PIL import Image
backbone = timm.create_model("local-dir:" + folder + "/timm", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=backbone))
with torch.inference_mode():
    # Of the model's size, since timm resizes with PIL and SigLIP's processor with torchvision.
    answers["timm"] = backbone(transform(Image.open(picture).crop((0, 0, 48, 48)))[None])[0].tolist()
print(json.dumps(answers))
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny operations on two busy cores wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model none of whose parameters has its initial value, so that swapping or forgetting one shows."""
    torch.manual_seed(5)
    model, tokenizer = create_model(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return save_model(model, tokenizer, tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = export.run(trained, ExportConfig(), tmp_path_factory.mktemp("exported") / "export", FACTS)
    assert result.max_error <= 1e-5
    assert result.formats == ("siglip", "timm")
    return result.folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 50, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def alone(exported: Path, picture: Path) -> dict[str, Any]:
    """What the other libraries alone say of the folder."""
    command = [sys.executable, "-I", "-c", ALONE, str(exported), str(picture), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_transformers_pipeline_alone_answers_as_the_trained_model(trained: Path, picture: Path, alone: dict[str, Any]) -> None:
    scores = alone["pipeline"]
    model, tokenizer = load_model(trained)
    with torch.inference_mode():
        image = torch.nn.functional.normalize(model.encode_image(pixel_values([Image.open(picture)], 48)), dim=-1)
        text = torch.nn.functional.normalize(model.encode_text(token_ids(tokenizer, TEXTS)), dim=-1)
        expected = torch.sigmoid(image @ text.T * model.logit_scale.exp() + model.logit_bias)[0]
    assert [scores[text] for text in TEXTS] == pytest.approx(expected.tolist(), abs=1e-5, rel=1e-4)
    assert len({round(score, 7) for score in scores.values()}) == 3


def test_siglip_classes_alone_load_every_weight(alone: dict[str, Any]) -> None:
    assert alone["loading"] == [[], [], []]
    assert alone["processor"] == "SiglipProcessor"
    first, *others = alone["ids"]
    assert len(first) == 64
    assert all(ids == first for ids in others)


def test_timm_alone_answers_as_the_trained_backbone(trained: Path, picture: Path, alone: dict[str, Any]) -> None:
    with torch.inference_mode():
        expected = load_model(trained)[0].encode_image(pixel_values([Image.open(picture).crop((0, 0, 48, 48))], 48))[0]
    np.testing.assert_allclose(alone["timm"], expected.numpy(), atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "key", ["text_model.head.bias", "vision_model.head.probe", "logit_bias", "vision_model.encoder.layers.1.mlp.fc1.bias"]
)
def test_a_difference_is_an_error_and_keeps_the_earlier_export(
    key: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "export"
    timm_alone = ExportConfig(formats=["timm"])
    export.run(trained, timm_alone, out, FACTS)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    honest = convert.siglip_state

    def altered(*arguments: Any) -> Mapping[str, Tensor]:
        state = honest(*arguments)
        assert key in state
        return state | {key: state[key] + 1e-3}

    monkeypatch.setattr(convert, "siglip_state", altered)
    with pytest.raises(RuntimeError, match="differs from the trained model"):
        export.run(trained, ExportConfig(formats=["siglip"]), out, FACTS)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_export_replaces_an_earlier_one_but_nothing_else(trained: Path, tmp_path: Path) -> None:
    config = ExportConfig(formats=["timm"])
    out = tmp_path / "export"
    export.run(trained, ExportConfig(), out, FACTS)
    (tmp_path / ".export.partial").mkdir()  # what a kill left
    (tmp_path / ".export.partial" / "junk").touch()
    export.run(trained, config, out, FACTS)
    assert {path.name for path in out.iterdir()} == {"README.md", "timm"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="something else"):
        export.run(trained, config, tmp_path / "mine", FACTS)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(FileNotFoundError, match="holds no model"):
        export.run(tmp_path, config, out, FACTS)


def test_an_export_is_the_same_every_time(trained: Path, exported: Path, tmp_path: Path) -> None:
    again = export.run(trained, ExportConfig(), tmp_path / "again", FACTS).folder
    files = sorted(path.relative_to(exported) for path in exported.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((exported / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert not [file for file in files if str(tmp_path.parent) in (again / file).read_text(errors="replace")]


@pytest.mark.parametrize(
    ("backbone", "arguments", "reason"),
    [
        ("vit_base_patch16_224", {}, "class token"),
        ("vit_base_patch16_siglip_224", {"init_values": 1e-5}, "scale their layers"),
        ("vit_base_patch16_siglip_224", {"qk_norm": True}, "normalises queries"),
        ("vit_base_patch16_siglip_gap_224", {}, "attention head"),
    ],
)
def test_a_backbone_without_a_counterpart_is_refused_before_training(backbone: str, arguments: dict[str, Any], reason: str) -> None:
    model = ModelConfig(backbone=backbone, backbone_args=arguments)
    with pytest.raises(ValueError, match=reason) as refused:
        export.check(model, ExportConfig())
    assert "export.formats" in str(refused.value)
    export.check(model, ExportConfig(formats=["timm"]))


def test_a_siglip_backbone_is_accepted() -> None:
    export.check(ModelConfig(), ExportConfig())
    export.check(CONFIG, ExportConfig())


def test_the_card_says_what_the_model_is(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| zero_shot/top1 | 0.500 ± 0.040 | 0.020 ± 0.010 | zero-shot classification/v1 on blocks-v1 |" in card
    assert FACTS.tag is not None
    for fact in (FACTS.tag, "blocks:depth-r1", "d" * 16, "CC0-1.0", "differs from the trained model by at most"):
        assert fact in card
    assert "hunter2" not in card


@pytest.mark.parametrize(
    ("experts", "data", "expected"),
    [
        (["Apache-2.0", "mit"], ["CC0-1.0"], "apache-2.0"),
        (["cc-by-nc-4.0", "mit"], ["CC0-1.0"], "other"),
        (["unknown"], ["CC0-1.0"], "other"),
        (["mit"], ["proprietary"], "other"),
        (["mit"], [], "other"),  # nothing is known of the data
    ],
)
def test_the_licence_is_open_only_if_everything_is(experts: list[str], data: list[str], expected: str) -> None:
    facts = ModelFacts(experts={str(i): {"license": name} for i, name in enumerate(experts)}, data_licenses=data)
    assert model_card.weights_license(facts) == expected
    assert ("before you use the weights" in model_card.render(facts, "m", ["timm"], {})) == (expected == "other")


def test_configuration_is_read_without_torch() -> None:
    code = "import sys, mtv_core.export.config, mtv_core.evaluation.config; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]
