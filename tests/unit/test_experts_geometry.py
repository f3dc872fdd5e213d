"""Where labels lie: boxes and depth at eight aspect ratios, of pictures whose truth is known, also of originals that lie on their side.

Two kinds of truth. Models with weights made by hand see colours and brightness and nothing else, so what they must say is known exactly,
whatever the picture's shape. And blocks' trained experts see rendered scenes, where a share of them is enough.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tiny_experts import save_depth_anything, save_owlv2
from torchvision.ops import box_iou

from mtv_core import experts
from mtv_core.blocks.shards import truth
from mtv_core.data import depth as stored_depth
from mtv_core.data import images
from mtv_core.experts.config import DepthExpertConfig, DetectionExpertConfig
from mtv_core.experts.depth import DepthExpert
from mtv_core.experts.detection import DetectionExpert
from mtv_core.experts.detectors.owlv2 import Owlv2Detector
from mtv_core.experts.embeddings import PhraseEmbeddings

ASPECTS = [(1, 4), (1, 3), (1, 2), (3, 4), (4, 3), (2, 1), (3, 1), (4, 1)]  # width : height
SMALL = [(48, 192), (56, 168), (64, 128), (72, 96), (96, 72), (128, 64), (168, 56), (192, 48)]  # the same, px, for blocks
LIMITS = images.ImageLimits(max_side=768, quality=92, max_pixels=10_000_000)
ORIENTATIONS = range(1, 9)
# What the camera did to the upright picture, by EXIF number: the reverse of what a reader has to do.
HELD: dict[int, Image.Transpose | None] = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def sized(aspect: tuple[int, int], long_side: int) -> tuple[int, int]:
    return tuple(round(long_side * part / max(aspect)) for part in aspect)  # type: ignore[return-value]


def ingested(upright: Image.Image, orientation: int) -> Image.Image:
    """The picture as the table has it, of an original that is stored as the camera was held."""
    move = HELD[orientation]
    original = upright if move is None else upright.transpose(move)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    original.save(data, "JPEG", quality=95, exif=exif)
    stored = images.store(data.getvalue(), LIMITS)
    found = Image.open(io.BytesIO(stored.jpeg)).convert("RGB")
    assert found.size == (stored.width, stored.height) == upright.size
    return found


# Boxes, by hand: a red or a blue square is one token of the padded square; its box is known to the pixel.

TOKENS = 8  # along each side of the square


@pytest.fixture(scope="module")
def sees_colours(tmp_path_factory: pytest.TempPathFactory) -> DetectionExpert:
    """An OWLv2 whose tokens see the mean colour of their own patch, and whose box is that patch."""
    folder = save_owlv2(tmp_path_factory.mktemp("models") / "owlv2")
    config = DetectionExpertConfig(model=str(folder), device="cpu", threshold=0.5)
    expert = experts.load("detection", config)
    assert isinstance(expert, DetectionExpert)
    detector = expert.detector
    assert isinstance(detector, Owlv2Detector)
    model = detector.model
    vision = model.owlv2.vision_model
    with torch.no_grad():
        vision.embeddings.position_embedding.weight.zero_()
        for layer in vision.encoder.layers:  # what is added to a token by all others and by itself: nothing
            for projection in (layer.self_attn.out_proj, layer.mlp.fc2):
                projection.weight.zero_()
                projection.bias.zero_()
        model.box_head.dense2.weight.zero_()
        model.box_head.dense2.bias.zero_()
        rows, columns = torch.meshgrid(torch.arange(TOKENS), torch.arange(TOKENS), indexing="ij")
        centres = (torch.stack([columns, rows], dim=-1).flatten(0, 1) + 0.5) / TOKENS
        model.box_bias = torch.cat([centres, torch.full_like(centres, 1 / TOKENS)], dim=1).logit()
        model.class_head.logit_shift.weight.zero_()
        model.class_head.logit_shift.bias.zero_()
        model.class_head.logit_scale.weight.zero_()
        model.class_head.logit_scale.bias.fill_(9.0)
        # The class head by least squares: red is one text embedding, blue another, grey, white and black neither.
        named = torch.eye(32)[:2]
        detector.embeddings = PhraseEmbeddings(lambda phrases: torch.stack([named[["red", "blue"].index(phrase)] for phrase in phrases]))
        plain = [Image.new("RGB", (TOKENS, TOKENS), colour) for colour in ("red", "blue", "grey", "white", "black")]
        pixels = detector.processor.image_processor(images=plain, return_tensors="pt")["pixel_values"]
        seen = model.image_embedder(pixels)[0][:, 0, 0]
        wanted = torch.stack([named[0], named[1], *[-named.sum(dim=0)] * 3])
        solved = torch.linalg.lstsq(torch.cat([seen, torch.ones(5, 1)], dim=1), wanted, driver="gelsd").solution
        model.class_head.dense0.weight.copy_(solved[:-1].T)
        model.class_head.dense0.bias.copy_(solved[-1])
    return expert


def painted(size: tuple[int, int]) -> tuple[Image.Image, dict[str, torch.Tensor]]:
    """A grey picture with a red and a blue square, and where they are, normalised by it. No mirror image is the same."""
    picture, patch = Image.new("RGB", size, "grey"), max(size) / TOKENS
    across, down = int(size[0] / patch), int(size[1] / patch)  # whole patches in the picture
    cells = (
        {"red": (0, down - 1), "blue": (across - 1, max(0, down - 2))} if across > 2 else {"red": (0, 1), "blue": (across - 1, down - 2)}
    )
    boxes = {}
    for colour, (column, row) in cells.items():
        corners = [column * patch, row * patch, (column + 1) * patch, (row + 1) * patch]
        ImageDraw.Draw(picture).rectangle([*corners[:2], corners[2] - 1, corners[3] - 1], fill=colour)
        boxes[colour] = torch.tensor(corners) / torch.tensor([*size, *size])
    return picture, boxes


def assert_boxes(expert: DetectionExpert, pictures: Sequence[Image.Image], known: Sequence[dict[str, torch.Tensor]]) -> None:
    rows = expert(pictures, [""] * len(pictures), [["blue", "red"]] * len(pictures)).to_pylist()
    for row, boxes in zip(rows, known, strict=True):
        assert sorted(row["phrases"]) == ["blue", "red"]
        for phrase, box in zip(row["phrases"], row["boxes"], strict=True):
            assert float(box_iou(torch.tensor([box]), boxes[phrase][None])) > 0.98


@pytest.mark.parametrize("long_side", [64, 240, 720])  # as the model sees it, and larger: blurred, then shrunk
def test_boxes_by_hand_lie_on_what_they_name_at_every_aspect(long_side: int, sees_colours: DetectionExpert) -> None:
    made = [painted(sized(aspect, long_side)) for aspect in ASPECTS]
    assert_boxes(sees_colours, [picture for picture, _ in made], [boxes for _, boxes in made])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_of_originals_that_lie_on_their_side_are_the_stored_pictures(orientation: int, sees_colours: DetectionExpert) -> None:
    made = [painted(sized(aspect, 240)) for aspect in ASPECTS]
    stored = [ingested(picture, orientation) for picture, _ in made]
    assert_boxes(sees_colours, stored, [boxes for _, boxes in made])
    large, boxes = painted((1536, 512))
    data = io.BytesIO()
    large.save(data, "JPEG", quality=95)
    small = images.store(data.getvalue(), LIMITS)  # normalised boxes do not change when a picture is scaled down to be stored
    assert (small.width, small.height) == (768, 256)
    assert_boxes(sees_colours, [Image.open(io.BytesIO(small.jpeg)).convert("RGB")], [boxes])


# Depth, by hand: the model answers with the brightness it sees, and the picture is the true inverse depth of a scene.


class Brightness(torch.nn.Module):
    """Takes a processor's normalisation back. As `DepthAnythingForDepthEstimation`, one number a pixel of its input."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(3, 1, 1)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.sizes.append((pixel_values.shape[-1], pixel_values.shape[-2]))
        return SimpleNamespace(predicted_depth=(pixel_values * self.std + self.mean).mean(dim=1))


@pytest.fixture(scope="module")
def sees_brightness(tmp_path_factory: pytest.TempPathFactory) -> DepthExpert:
    """A depth expert with the processor of Depth Anything on the hub: 518 px, multiples of 14."""
    folder = save_depth_anything(tmp_path_factory.mktemp("models") / "depth", side=518)
    expert = experts.load("depth", DepthExpertConfig(model=str(folder), device="cpu"))
    assert isinstance(expert, DepthExpert)
    expert.model = Brightness(expert.processor)
    return expert


def as_picture(size: tuple[int, int], seed: int) -> tuple[Image.Image, NDArray[np.float32]]:
    """A scene's true inverse depth, 0..1, as a grey picture."""
    metres = truth(seed, 0, *size).rendered.depth
    inverse = np.where(np.isfinite(metres), 1 / metres, 0).astype(np.float32)
    inverse /= inverse.max()
    grey = Image.fromarray(np.round(inverse * 255).astype(np.uint8))
    return grey.convert("RGB"), inverse


def misfit(found: NDArray[np.float32], true: NDArray[np.float32], shift: tuple[int, int] = (0, 0)) -> float:
    """Mean absolute difference, when the map is moved by (right, down) px, of what both have."""
    right, down = shift
    height, width = true.shape
    moved = found[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    fixed = true[max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)]
    return float(np.abs(moved - fixed).mean())


def assert_depth(expert: DepthExpert, pictures: Sequence[Image.Image], known: Sequence[NDArray[np.float32]], most: float) -> None:
    labels = expert(pictures, [""] * len(pictures))["depth"].to_pylist()
    for label, inverse in zip(labels, known, strict=True):
        found = stored_depth.decode(label)
        assert found.shape == inverse.shape
        here = misfit(found, inverse)
        assert here < most
        for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # nowhere does it fit better, not even a pixel away
            assert here < misfit(found, inverse, shift)
        for other in (found[::-1], found[:, ::-1], found[::-1, ::-1]):
            assert 2 * here < misfit(other, inverse)


@pytest.mark.parametrize("long_side", [120, 252])
def test_depth_by_hand_lies_on_the_picture_at_every_aspect(long_side: int, sees_brightness: DepthExpert) -> None:
    made = [as_picture(sized(aspect, long_side), seed) for seed, aspect in enumerate(ASPECTS)]
    sees_brightness.model.sizes.clear()
    assert_depth(sees_brightness, [picture for picture, _ in made], [inverse for _, inverse in made], 0.01)
    seen = sees_brightness.model.sizes
    assert all(width % 14 == height % 14 == 0 for width, height in seen)
    assert len(seen) == len(set(seen)) >= 6  # pictures of one size went through together
    for width, height in seen:  # proportions are kept but for the rounding
        assert min(abs(np.log((width / height) / (a / b))) for a, b in ASPECTS) < 0.06


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_depth_of_originals_that_lie_on_their_side_is_the_stored_pictures(orientation: int, sees_brightness: DepthExpert) -> None:
    made = [as_picture(sized(aspect, 168), 20 + seed) for seed, aspect in enumerate(ASPECTS)]
    assert_depth(sees_brightness, [ingested(picture, orientation) for picture, _ in made], [inverse for _, inverse in made], 0.015)


def test_a_large_picture_has_a_small_map_that_covers_it(sees_brightness: DepthExpert) -> None:
    for aspect in ((4, 1), (1, 3)):
        picture, inverse = as_picture(sized(aspect, 720), 9)
        [found] = sees_brightness.predict([picture])
        width, height = sized(aspect, 256)
        assert found.shape == (height, width)
        shrunk = np.asarray(Image.fromarray(inverse).resize((width, height), Image.Resampling.BOX))
        assert misfit(found, shrunk) < 0.02
        assert misfit(found, shrunk) < min(misfit(found, shrunk, shift) for shift in ((1, 0), (-1, 0), (0, 1), (0, -1)))


# Blocks' trained experts on scenes they have not seen.


def blocks(name: str, **fields: Any) -> Any:
    config = {"depth": DepthExpertConfig, "detection": DetectionExpertConfig}[name]
    return experts.load(name, config.model_validate({"model": f"blocks:{name}-r2", "device": "cpu", **fields}))


# Where the long side is more than twice the other, solids are less than three of the embedded OWLv2's patches high, which it never learnt.
@pytest.mark.parametrize("size", [size for size in SMALL if max(size) <= 2 * min(size)])
def test_boxes_of_blocks_lie_on_what_they_name(size: tuple[int, int]) -> None:
    expert = blocks("detection")
    made = [truth(41, index, *size, max_solids=2) for index in range(16)]
    pictures = [ingested(Image.fromarray(one.rendered.rgb), 1 + index % 8) for index, one in enumerate(made)]
    predicted = expert.predict(pictures, [[one.scene.solids[i].name for i in one.caption.mentions] for one in made])
    overlaps = []
    for one, got in zip(made, predicted, strict=True):
        names = [solid.name for solid in one.scene.solids]
        for phrase in set(got.phrases):  # the best box of each phrase
            box = torch.from_numpy(got.boxes[got.phrases.index(phrase)])
            true = torch.from_numpy(np.asarray(one.rendered.boxes[names.index(phrase)], np.float32))
            overlaps.append(float(box_iou(box[None], true[None])))
    assert len(overlaps) >= 20
    assert np.median(overlaps) >= 0.6


@pytest.mark.parametrize("size", SMALL)
def test_depth_of_blocks_lies_on_the_scene_at_every_aspect(size: tuple[int, int]) -> None:
    expert = blocks("depth")
    made = [truth(41, index, *size) for index in range(16)]
    pictures = [ingested(Image.fromarray(one.rendered.rgb), 1 + index % 8) for index, one in enumerate(made)]
    upright, turned = [], []
    for one, found in zip(made, expert.predict(pictures), strict=True):
        metres = one.rendered.depth
        assert found.shape == metres.shape
        seen = np.isfinite(metres)
        upright.append(float(np.corrcoef(found[seen], 1 / metres[seen])[0, 1]))
        mirrored = found[:, ::-1]
        turned.append(float(np.corrcoef(mirrored[seen], 1 / metres[seen])[0, 1]))
    assert np.median(upright) >= 0.85
    assert sum(a > b for a, b in zip(upright, turned, strict=True)) >= 14
