"""Ground truth to train and to evaluate the tiny experts on: scenes rendered once and kept as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtv_core.blocks.render import SKY, render
from mtv_core.blocks.scene import COLOURS, SHAPES, generator, sample_scene

SIDE = 96  # longer side in px
MAX_SOLIDS = 4
# Frames the experts see: mostly square, some wide and some tall, since users' pictures are.
FRAMES: tuple[tuple[int, int], ...] = ((96, 96), (96, 96), (96, 96), (96, 96), (96, 72), (72, 96))
CLASSES: tuple[tuple[str, str], ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
NAMES: tuple[str, ...] = tuple(f"{colour} {shape}" for colour, shape in CLASSES)
# Seeds of the three sets; a user's own shards come from small seeds.
TRAIN_SEED, TEST_SEED = 7_100_001, 7_200_001


@dataclass(frozen=True)
class Truth:
    """M scenes. Frames that are not square lie in the top left corner, as OWLv2 pads them."""

    rgb: NDArray[np.uint8]  # [M, 96, 96, 3]; zeros outside the frame
    depth: NDArray[np.float16]  # [M, 96, 96] metres; inf in the sky and outside the frame
    instances: NDArray[np.int8]  # [M, 96, 96]
    boxes: NDArray[np.float32]  # [M, 4, 4] xyxy, normalised by the padded square
    classes: NDArray[np.int8]  # [M, 4] index into CLASSES; -1 where there is no solid
    visible: NDArray[np.float32]  # [M, 4]
    frames: NDArray[np.int16]  # [M, 2] width, height

    def __len__(self) -> int:
        return len(self.rgb)


def make_truth(seed: int, count: int) -> Truth:
    """Render scenes 0 … count−1 of the set `seed`."""
    truth = Truth(
        np.zeros((count, SIDE, SIDE, 3), np.uint8),
        np.full((count, SIDE, SIDE), np.inf, np.float16),
        np.full((count, SIDE, SIDE), SKY, np.int8),
        np.zeros((count, MAX_SOLIDS, 4), np.float32),
        np.full((count, MAX_SOLIDS), -1, np.int8),
        np.zeros((count, MAX_SOLIDS), np.float32),
        np.zeros((count, 2), np.int16),
    )
    for index in range(count):
        width, height = FRAMES[index % len(FRAMES)]
        scene = sample_scene(generator(seed, index), aspect=width / height)
        rendered = render(scene, width=width, height=height)
        truth.rgb[index, :height, :width] = rendered.rgb
        truth.depth[index, :height, :width] = rendered.depth
        truth.instances[index, :height, :width] = rendered.instances
        truth.frames[index] = width, height
        for i, solid in enumerate(scene.solids):
            truth.boxes[index, i] = rendered.boxes[i] * np.array([width, height, width, height]) / SIDE
            truth.classes[index, i] = CLASSES.index((solid.colour, solid.shape))
            truth.visible[index, i] = rendered.visible[i]
    return truth


def cached_truth(folder: Path, seed: int, count: int) -> Truth:
    """`make_truth`, kept in `folder` so that a training that is continued does not render again."""
    path = folder / f"truth-{seed}-{count}.npz"
    if not path.exists():
        truth = make_truth(seed, count)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{field.name: getattr(truth, field.name) for field in fields(Truth)})
        partial.replace(path)
    with np.load(path) as arrays:
        return Truth(**{name: arrays[name] for name in arrays.files})
