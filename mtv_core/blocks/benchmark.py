"""Evaluation sets with exact ground truth: never a label of an expert, never a scene of a user's shards (their seeds are reserved).

Each set is rendered once and kept under `home/blocks/benchmark/` as one npz, written beside its place and renamed into it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtv_core.blocks.captions import article, caption
from mtv_core.blocks.expert_data import CLASSES, NAMES
from mtv_core.blocks.render import FLOOR, SKY, render
from mtv_core.blocks.scene import COLOURS, SHAPES, generator, sample_scene
from mtv_core.blocks.shards import VERSION

CLASS_NAMES: tuple[str, ...] = NAMES  # 'red sphere', 'red cube', …; class = colour index × number of shapes + shape index
TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "{} on the floor",
    "there is {} in the picture",
)  # {} takes the article
SEGMENTS: tuple[str, ...] = ("sky", "floor", *SHAPES)
_SEEDS = {"classification": 9_100_001, "retrieval": 9_200_001, "train": 9_300_001, "val": 9_400_001}


@dataclass(frozen=True)
class ClassificationSet:
    """M pictures of one solid each, the same number of every class."""

    images: NDArray[np.uint8]  # [M, S, S, 3] sRGB
    labels: NDArray[np.int64]  # [M] index into CLASS_NAMES
    colours: NDArray[np.int64]  # [M] index into COLOURS
    shapes: NDArray[np.int64]  # [M] index into SHAPES


@dataclass(frozen=True)
class RetrievalSet:
    """M pictures and captions; caption i is true of picture i alone."""

    images: NDArray[np.uint8]  # [M, S, S, 3] sRGB
    captions: NDArray[np.str_]  # [M]


@dataclass(frozen=True)
class DenseSet:
    """M pictures with a depth and a class for every pixel."""

    images: NDArray[np.uint8]  # [M, S, S, 3] sRGB
    depth: NDArray[np.float32]  # [M, S, S] z-depth in metres; 0 where invalid
    valid: NDArray[np.bool_]  # [M, S, S] False in the sky
    segments: NDArray[np.uint8]  # [M, S, S] index into SEGMENTS


Set = TypeVar("Set", ClassificationSet, RetrievalSet, DenseSet)


def prompts(name: str) -> list[str]:
    """'red sphere' → its prompts: 'a red sphere', 'a photo of a red sphere', …"""
    return [template.format(article(name)) for template in TEMPLATES]


def _cached(home: Path, kind: type[Set], make: Callable[[], Set], **key: Any) -> Set:
    identity = json.dumps({"version": VERSION, "set": kind.__name__, **key}, sort_keys=True)
    path = Path(home) / "blocks" / "benchmark" / f"{kind.__name__}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(made, field.name) for field in fields(made)})
        partial.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        return kind(**{name: arrays[name] for name in arrays.files})


def _classification(per_class: int, size: int) -> ClassificationSet:
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for copy in range(per_class):
            scene = sample_scene(generator(_SEEDS["classification"], copy * len(CLASSES) + label), names=[name])
            images.append(render(scene, size).rgb)
            labels.append(label)
    made = np.array(labels, dtype=np.int64)
    return ClassificationSet(np.stack(images), made, made // len(SHAPES), made % len(SHAPES))


def classification(home: Path, *, per_class: int = 8, size: int = 96) -> ClassificationSet:
    """`per_class` pictures of each of the 48 colour × shape classes, ordered by class; S = size."""
    return _cached(home, ClassificationSet, lambda: _classification(per_class, size), per_class=per_class, size=size)


def _retrieval(count: int, size: int) -> RetrievalSet:
    images: list[NDArray[np.uint8]] = []
    texts: list[str] = []
    chosen: list[frozenset[str]] = []
    index = 0
    while len(images) < count:
        rng = generator(_SEEDS["retrieval"], index)
        index += 1
        scene = sample_scene(rng)
        shown = frozenset(solid.name for solid in scene.solids)
        # A set of solids that is no part of an earlier one and contains none, so that no caption fits two pictures.
        if len(shown) < 2 or any(shown <= other or shown >= other for other in chosen):
            continue
        rendered = render(scene, size)
        text = caption(scene, rendered, rng)
        if len(text.mentions) < len(shown):
            continue
        chosen.append(shown)
        images.append(rendered.rgb)
        texts.append(text.text)
    return RetrievalSet(np.stack(images), np.array(texts))


def retrieval(home: Path, *, count: int = 256, size: int = 96) -> RetrievalSet:
    """`count` pictures of two to four solids with captions that fit no other picture of the set."""
    if not 1 <= count <= 500:
        raise ValueError(f"retrieval has room for 1 to 500 pictures whose captions fit no other, not {count}")
    return _cached(home, RetrievalSet, lambda: _retrieval(count, size), count=count, size=size)


def _dense(split: str, count: int, size: int) -> DenseSet:
    images = np.zeros((count, size, size, 3), np.uint8)
    depth = np.zeros((count, size, size), np.float32)
    segments = np.zeros((count, size, size), np.uint8)
    for index in range(count):
        scene = sample_scene(generator(_SEEDS[split], index))
        rendered = render(scene, size)
        images[index] = rendered.rgb
        depth[index] = np.where(np.isfinite(rendered.depth), rendered.depth, 0.0)
        # instances are SKY = −2, FLOOR = −1, 0 … n−1: shifted by two they index this table.
        assert (SKY, FLOOR) == (-2, -1)
        table = np.array([0, 1, *(2 + SHAPES.index(solid.shape) for solid in scene.solids)], np.uint8)
        segments[index] = table[rendered.instances + 2]
    return DenseSet(images, depth, depth > 0.0, segments)


def dense(home: Path, split: Literal["train", "val"], *, count: int | None = None, size: int = 96) -> DenseSet:
    """Depth and segmentation of random scenes: 512 in `train`, 256 in `val` unless `count` says otherwise."""
    if split not in ("train", "val"):
        raise ValueError(f"dense has the splits train and val, not {split!r}")
    number = count or {"train": 512, "val": 256}[split]
    return _cached(home, DenseSet, lambda: _dense(split, number, size), split=split, count=number, size=size)


assert len(CLASS_NAMES) == len(COLOURS) * len(SHAPES)
