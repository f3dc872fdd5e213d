"""The model: crops of other sizes, hidden patches, its file format, its export's premise, and what it says to mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mtv_core.export.convert import refusal
from mtv_core.model.config import ModelConfig, TextConfig
from mtv_core.model.heads import DepthHead, Prompter, PrototypeHead, overlap, sinusoid
from mtv_core.model.mtv import MTV, create_model, load_model, load_tokenizer, save_model
from mtv_core.model.preprocess import token_ids

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TEXT = TextConfig(width=8, depth=1, heads=2)


def small(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"backbone_args": SMALL, "image_size": 24, "text": TEXT} | changes)


def test_shapes() -> None:
    model, tokenizer = create_model(small())
    pixels = torch.randn(3, 3, 24, 24)
    assert model.encode_image(pixels).shape == (3, 16)
    assert model.encode_image(pixels[..., :16, :16]).shape == (3, 16)
    assert model.encode_text(token_ids(tokenizer, ["a red cube", "a blue ring"])).shape == (2, 16)
    assert model.patch_features(pixels).shape == (3, 9, 16)
    assert [layer.shape for layer in model.patch_features(pixels, layers=[0, 1])] == [(3, 9, 16)] * 2


def test_features_are_timms_own() -> None:
    model, _ = create_model(small())
    pixels = torch.randn(2, 3, 24, 24)
    features = model.backbone.forward_features(pixels)
    assert torch.allclose(model.patch_features(pixels), features, atol=1e-6)
    assert torch.allclose(model.encode_image(pixels), model.backbone.forward_head(features, pre_logits=True), atol=1e-6)
    first = model.backbone.forward_intermediates(pixels, indices=[0], output_fmt="NLC", intermediates_only=True)[0]
    assert torch.allclose(model.patch_features(pixels, layers=[0])[0], first, atol=1e-6)


def test_patches_are_row_by_row_and_prefix_tokens_are_left_out() -> None:
    config = small(backbone="vit_small_patch16_224", backbone_args=SMALL | {"depth": 1})
    model = MTV(config, 30).eval()
    assert model.patch_features(torch.randn(1, 3, 24, 24)).shape == (1, 9, 16)
    pixels = torch.zeros(1, 3, 24, 24)
    embedded = model.backbone.patch_embed(pixels)
    pixels[..., 0:8, 16:24] = 1.0
    changed = (model.backbone.patch_embed(pixels) != embedded).any(-1)
    assert changed.flatten().nonzero().tolist() == [[2]]


def test_the_canonical_backbone_can_be_exported_with_crops_on() -> None:
    assert refusal(MTV(small(), 30).backbone) is None


def test_positions_can_start_from_sines() -> None:
    found = MTV(small(positions="sincos"), 30).backbone.pos_embed.detach()[0]
    gram = found @ found.T
    here = gram.diagonal()
    assert torch.allclose(here, here[0].expand(9))
    assert (gram - torch.diag(here)).max() < 0.95 * here[0], "two places look alike"
    # Row and column are told apart, and a step to the right is the same step everywhere.
    assert torch.allclose(gram[0, 1], gram[4, 5])
    assert not torch.allclose(found[1], found[3])
    with pytest.raises(ValueError, match="sincos needs"):
        MTV(small(backbone="vit_small_patch16_224", positions="sincos"), 30)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokenizer = create_model(small(init_scale=7.0))
    folder = save_model(model, tokenizer, tmp_path / "model")
    assert {"model.safetensors", "model.json", "tokenizer"} == {p.name for p in folder.iterdir()}
    again, words = load_model(folder)
    assert not again.training
    pixels, ids = torch.randn(2, 3, 24, 24), token_ids(words, ["a red cube"])
    assert torch.equal(ids, token_ids(tokenizer, ["a red cube"]))
    assert torch.equal(again.encode_image(pixels), model.eval().encode_image(pixels))
    assert torch.equal(again.encode_text(ids), model.encode_text(ids))
    assert again.logit_scale.exp().item() == pytest.approx(7.0)
    assert again.config == model.config


def test_a_save_that_was_cut_off_is_no_model(tmp_path: Path) -> None:
    model, tokenizer = create_model(small())
    folder = save_model(model, tokenizer, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / ".model.safetensors.partial")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_model(folder)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = save_model(*create_model(small()), tmp_path / "model")
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backbone": "vit_base_patch16_siglip_223"}, "timm cannot make"),
        ({"backbone": "resnet18", "backbone_args": {}}, "take a `vit_"),
        ({"backbone_args": {"no_such": 1}}, "timm cannot make"),
        ({"backbone_args": {"img_size": 32}}, "leave img_size out"),
        ({"image_size": 20}, "multiple of the patch size"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MTV(small(**changes), 30)


def test_a_config_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"model\.text\.heads"):
        TextConfig(width=10, heads=3)
    with pytest.raises(ValidationError, match="extra"):
        ModelConfig.model_validate({"depth": 3})


def test_a_tokenizer_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    for name in (str(tmp_path), "blocks:none"):
        with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
            load_tokenizer(name)


def test_prototypes_are_compared_by_direction() -> None:
    head = PrototypeHead(16, hidden=8, layers=3, bottleneck=4, prototypes=6)
    x = torch.randn(5, 16)
    before = head(x)
    with torch.no_grad():
        head.prototypes *= 7.0
    assert before.abs().max() <= 1.0 + 1e-6
    assert torch.allclose(head(x), before, atol=1e-6)


def test_sinusoid_is_sines_and_cosines() -> None:
    found = sinusoid(torch.tensor([[0.25, 0.5]]), 2)
    pi = torch.pi
    expected = torch.tensor([[pi / 4, pi / 2], [pi / 2, pi]])
    assert torch.allclose(found, torch.cat([expected.sin(), expected.cos()], dim=-1).flatten()[None], atol=1e-6)


def test_overlap_is_the_share_of_a_patch_inside_a_box() -> None:
    box = torch.tensor([0.1, 0.3, 0.7, 0.9])
    found = overlap(box[None, None], 4)[0, 0].view(4, 4)
    fine = (torch.arange(400) + 0.5) / 400
    inside = ((fine > box[1]) & (fine < box[3]))[:, None] & ((fine > box[0]) & (fine < box[2]))[None]
    assert torch.allclose(found, inside.float().view(4, 100, 4, 100).mean(dim=(1, 3)), atol=1e-5)


def test_a_prompted_region_depends_on_its_box_alone() -> None:
    torch.manual_seed(0)
    prompter = Prompter(16, heads=2)
    patches, boxes = torch.randn(2, 9, 16), torch.rand(2, 3, 4)
    together = prompter(patches, boxes)
    assert together.shape == (2, 3, 16)
    assert torch.allclose(together[:, 1:2], prompter(patches, boxes[:, 1:2]), atol=1e-6)
    assert not torch.allclose(together[:, 0], prompter(patches, boxes[:, 1:2])[:, 0])
    with pytest.raises(ValueError, match="must divide"):
        Prompter(16, heads=3)


def test_the_depth_head_makes_any_size_and_keeps_places() -> None:
    torch.manual_seed(0)
    head = DepthHead(16, num_layers=2, channels=8)
    layers = [torch.randn(1, 81, 16) for _ in range(2)]
    assert head(layers, (20, 30)).shape == (1, 20, 30)
    moved = [layer.clone() for layer in layers]
    moved[0][:, 0] *= -1.0  # the top left patch of 9 × 9; a shift would be normalised away
    changed = (head(moved, (36, 36)) - head(layers, (36, 36)))[0].abs() > 1e-7
    assert changed[:4, :4].all()
    assert not changed[32:, 32:].any()


def test_it_runs_without_the_platform() -> None:
    """On a bare GPU machine: torch, timm, transformers and little else."""
    code = (
        "import sys\n"
        "import mtv_core.model.mtv, mtv_core.objectives.system\n"
        "banned = {'lance', 'prefect', 'mlflow', 'dask', 'fsspec', 'typer', 'jaxtyping'} & set(sys.modules)\n"
        "assert not banned, banned\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_configurations_are_cheap_to_read() -> None:
    code = (
        "import sys\n"
        "import mtv_core.model.config, mtv_core.objectives.config\n"
        "assert not {'torch', 'timm', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
