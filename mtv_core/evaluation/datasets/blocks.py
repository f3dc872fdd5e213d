"""The embedded benchmark, `mtv_core.blocks.benchmark`: rendered once, kept under `home/blocks/benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mtv_core.blocks import benchmark
from mtv_core.blocks.scene import COLOURS, FAR, SHAPES
from mtv_core.blocks.shards import VERSION
from mtv_core.evaluation.datasets.base import Classification, Dense, DenseSplit, Facet, Retrieval


def classification(home: Path, *, per_class: int, size: int) -> Classification:
    """48 colour × shape classes, `per_class` pictures of each."""
    made = benchmark.classification(home, per_class=per_class, size=size)
    classes = np.arange(len(benchmark.CLASS_NAMES))
    return Classification(
        name=f"blocks-v{VERSION} classification, {len(made.labels)} pictures",
        pictures=made.images,
        labels=made.labels,
        classes=benchmark.CLASS_NAMES,
        prompts=tuple(tuple(benchmark.prompts(name)) for name in benchmark.CLASS_NAMES),
        facets={"colour": Facet(tuple(COLOURS), classes // len(SHAPES)), "shape": Facet(tuple(SHAPES), classes % len(SHAPES))},
    )


def retrieval(home: Path, *, count: int, size: int) -> Retrieval:
    """`count` pictures, one caption each that fits no other."""
    made = benchmark.retrieval(home, count=count, size=size)
    return Retrieval(f"blocks-v{VERSION} retrieval, {count} pictures", made.images, tuple(map(str, made.captions)), np.arange(count))


def _split(home: Path, split: Literal["train", "val"], count: int, size: int) -> DenseSplit:
    made = benchmark.dense(home, split, count=count, size=size)
    return DenseSplit(made.images, made.depth, made.valid, made.segments)


def dense(home: Path, *, train: int, val: int, size: int) -> Dense:
    """Random scenes with depth up to `FAR` metres, and sky, floor and six shapes to tell apart."""
    return Dense(
        name=f"blocks-v{VERSION} dense, {train} pictures for training and {val} for measuring",
        train=_split(home, "train", train, size),
        val=_split(home, "val", val, size),
        classes=benchmark.SEGMENTS,
        max_depth=FAR,
    )
