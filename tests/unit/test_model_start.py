"""What a training starts from: before its first step the model answers as the one its weights are from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sentencepiece import SentencePieceTrainer
from transformers import (
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTextConfig,
    SiglipTokenizer,
    SiglipVisionConfig,
    pipeline,
)

from mtv_core.blocks.shards import truth
from mtv_core.export import convert
from mtv_core.model.config import ModelConfig, TextConfig
from mtv_core.model.mtv import create_model, load_model, load_tokenizer, save_model
from mtv_core.model.preprocess import pixel_values, token_ids
from mtv_core.model.start import from_siglip, load_start

CONFIG = ModelConfig(
    backbone_args={"patch_size": 12, "embed_dim": 48, "depth": 2, "num_heads": 3},
    image_size=48,
    text=TextConfig(width=32, depth=2, heads=2),
)
NAMES = [f"{colour} {shape}" for colour in ("red", "blue", "yellow") for shape in ("sphere", "cube", "ring")]


def siglip(folder: Path, *, hidden_act: str = "gelu_pytorch_tanh", **text: object) -> Path:
    """A folder as SigLIP is published, of random weights that are not small; with its own tokenizer, if it has one."""
    torch.manual_seed(1)
    tokenizer = load_tokenizer(folder if folder.exists() else "blocks:tokenizer")
    words = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = SiglipConfig(
        text_config=SiglipTextConfig(**{**words, **ids, "projection_size": 48, **text}).to_dict(),  # type: ignore[arg-type]
        vision_config=SiglipVisionConfig(
            hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=3, image_size=48, patch_size=12,
            hidden_act=hidden_act,
        ).to_dict(),
    )  # fmt: skip
    model = SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(2.0)
    model.save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 48, "width": 48}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip(tmp_path_factory.mktemp("siglip") / "siglip")


def pictures(count: int) -> list[NDArray[np.uint8]]:
    return [truth(3, index, 48, 48).rendered.rgb for index in range(count)]


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
def test_features_are_those_of_the_siglip_model(hidden_act: str, tmp_path: Path) -> None:
    folder = siglip(tmp_path / "siglip", hidden_act=hidden_act)
    model, tokenizer = load_start(folder, CONFIG)
    original = SiglipModel.from_pretrained(folder).eval()
    pixels, ids = pixel_values(pictures(3), 48), token_ids(tokenizer, NAMES)
    with torch.inference_mode():
        torch.testing.assert_close(
            model.eval().encode_image(pixels), original.get_image_features(pixels).pooler_output, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(model.encode_text(ids), original.get_text_features(ids).pooler_output, rtol=1e-4, atol=1e-5)
    assert (model.logit_scale.item(), model.logit_bias.item()) == (original.logit_scale.item(), original.logit_bias.item())
    assert len({tuple(row.tolist()) for row in model.encode_image(pixels)}) == 3  # and they tell pictures apart


def test_zero_shot_before_training_is_the_originals(published: Path) -> None:
    model, tokenizer = load_start(published, CONFIG)
    classify = pipeline("zero-shot-image-classification", model=str(published))
    images = pictures(16)
    with torch.inference_mode():
        image = torch.nn.functional.normalize(model.eval().encode_image(pixel_values(images, 48)), dim=-1)
        text = torch.nn.functional.normalize(model.encode_text(token_ids(tokenizer, NAMES)), dim=-1)
        ours = torch.sigmoid(image @ text.T * model.logit_scale.exp() + model.logit_bias)
    for row, picture in zip(ours, images, strict=True):
        found = {one["label"]: one["score"] for one in classify(Image.fromarray(picture), candidate_labels=NAMES, hypothesis_template="{}")}
        assert NAMES[int(row.argmax())] == max(found, key=lambda name: found[name])
        np.testing.assert_allclose(row.numpy(), [found[name] for name in NAMES], rtol=1e-3, atol=1e-6)


def test_there_and_back_again() -> None:
    torch.manual_seed(2)
    model, _ = create_model(CONFIG)
    state = convert.siglip_state(model.backbone.state_dict(), model.text.state_dict(), model.logit_scale, model.logit_bias)
    back = from_siglip(state)
    expected = {name.replace("text.text_model.", "text."): value for name, value in model.state_dict().items()}
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in back)


def test_a_model_of_our_own_goes_on_with_its_weights_and_activation(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, tokenizer = create_model(CONFIG.model_copy(update={"activation": "gelu_tanh"}))
    start, _ = load_start(save_model(model, tokenizer, tmp_path / "model"), CONFIG)
    pixels = pixel_values(pictures(2), 48)
    assert start.config.activation == "gelu_tanh"
    torch.testing.assert_close(start.encode_image(pixels), model.encode_image(pixels))


def test_position_embeddings_are_resized(published: Path) -> None:
    small, _ = load_start(published, CONFIG)
    large, _ = load_start(published, CONFIG.model_copy(update={"image_size": 96}))
    assert small.backbone.pos_embed is not None
    assert large.backbone.pos_embed is not None
    before, after = (one.backbone.pos_embed.detach()[0].view(one.grid, one.grid, -1) for one in (small, large))
    assert after.shape == (8, 8, 48)
    # Averaged back to the old grid they are what they were, nearly; noise would not be.
    again = after.unfold(0, 2, 2).unfold(1, 2, 2).mean(dim=(-1, -2))
    assert torch.corrcoef(torch.stack([again.flatten(), before.flatten()]))[0, 1] > 0.9
    names = [name for name, _ in small.named_parameters() if name != "backbone.pos_embed"]
    assert all(torch.equal(small.get_parameter(name), large.get_parameter(name)) for name in names)


def test_another_architecture_says_what_to_configure(published: Path) -> None:
    with pytest.raises(
        ValueError, match=r"width 48, 2 blocks, 3 heads, patches of 12 px, and train.model.text: {width: 32, depth: 2, heads: 2"
    ):
        load_start(published, CONFIG.model_copy(update={"text": TextConfig(width=64, depth=2, heads=2)}))


def test_what_cannot_be_continued_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        load_start(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="77 positions"):
        load_start(siglip(tmp_path / "long", max_position_embeddings=77), CONFIG)
    SiglipVisionConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="siglip_vision_model"):
        load_start(tmp_path / "other", CONFIG)
    whole = siglip(tmp_path / "pickled")
    (whole / "model.safetensors").rename(whole / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_start(whole, CONFIG)


def test_siglips_own_tokenizer_is_read_and_kept(tmp_path: Path) -> None:
    """SigLIP is published with a sentencepiece model."""
    model = io.BytesIO()
    sentences = iter(["a red sphere left of a blue cube", "a photo of a yellow ring on the floor"] * 50)
    SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, vocab_size=60, hard_vocab_limit=False, pad_id=-1, bos_id=-1, unk_id=2, eos_id=1,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    SiglipTokenizer(str(tmp_path / "spiece.model")).save_pretrained(tmp_path / "siglip")
    tokenizer = load_tokenizer(siglip(tmp_path / "siglip", vocab_size=len(load_tokenizer(tmp_path / "siglip"))))
    start, kept = load_start(tmp_path / "siglip", CONFIG)
    again, words = load_model(save_model(start, kept, tmp_path / "model"))
    ids = token_ids(words, ["A Red sphere!"])
    assert torch.equal(ids, token_ids(tokenizer, ["a red sphere"]))  # as SigLIP reads: no capitals, no punctuation
    assert torch.equal(start.encode_text(ids), again.encode_text(ids))
