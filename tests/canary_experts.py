"""Experts that see the picture, in no time, and the ways in which a new one may be broken: for the tests of the canary."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from label_tables import QuickExpert
from PIL import Image

from mtv_core import experts, labelling_worker
from mtv_core.data.depth import encode, stored_size

SIDE = 12  # px of a map, the longer one
BROKEN_DEPTH = ("constant", "missing", "noise", "inverted", "ramp", "fails")
BROKEN_BOXES = ("filling", "empty", "nothing", "elsewhere", "many", "fails")


class SeeingExpert(QuickExpert):
    """Depth is brightness, boxes follow from the picture; another revision says nearly the same, unless it is broken."""

    def __init__(self, name: str, config: Any, broken: str | None = None, every: int = 1) -> None:
        super().__init__(name, config)
        self.broken, self.every, self.seen = broken, every, 0

    def label(self, image: Image.Image, caption: str) -> dict[str, object]:
        digest = hashlib.sha256(image.tobytes()).digest()
        chance = np.random.default_rng([*digest, *self.revision.encode()])
        broken = self.broken if digest[0] % self.every == 0 else None
        if broken == "fails":
            raise RuntimeError("the expert is broken")
        return self.depth(image, broken, chance) if self.name == "depth" else self.boxes(digest, broken, chance)

    def depth(self, image: Image.Image, broken: str | None, chance: np.random.Generator) -> dict[str, object]:
        seen = np.asarray(image.convert("L").resize(stored_size(*image.size, SIDE)), np.float32) / 255 + 0.3
        maps = {
            None: seen + chance.normal(0, 0.02, seen.shape),
            "constant": np.full_like(seen, 0.5),
            "missing": np.full_like(seen, np.nan),
            "noise": chance.random(seen.shape),
            "inverted": -seen,
            "ramp": np.linspace(0.3, 1, len(seen))[:, None] * np.ones_like(seen),
        }
        return {"depth": encode(maps[broken].astype(np.float32))}

    def boxes(self, digest: bytes, broken: str | None, chance: np.random.Generator) -> dict[str, object]:
        here = np.random.default_rng(list(digest))
        corner = here.uniform(0, 0.5, (3, 2))
        boxes = np.concatenate([corner, corner + here.uniform(0.2, 0.4, (3, 2))], 1) + chance.normal(0, 0.01, (3, 4))
        phrases, scores = ["one", "two", "two"], [0.9, 0.6, 0.4]
        if broken == "filling":
            boxes[:] = [0, 0, 1, 1]
        elif broken == "empty":
            boxes[:, 2:] = boxes[:, :2]
        elif broken == "elsewhere":
            corner = chance.uniform(0, 0.6, (3, 2))
            boxes = np.concatenate([corner, corner + 0.3], 1)
        elif broken == "many":
            boxes, phrases, scores = np.repeat(boxes, 8, 0), phrases * 8, scores * 8
        elif broken == "nothing":
            boxes, phrases, scores = boxes[:0], [], []
        return {"boxes": np.clip(boxes, 0, 1).tolist(), "phrases": phrases, "scores": scores}


def load(broken: str | None = None, every: int = 1) -> Callable[[str, Any], SeeingExpert]:
    """`experts.load` under which revisions other than the blocks' first are broken."""
    return lambda name, config: SeeingExpert(name, config, None if config.model.endswith("-r1") or not _is_r2(config) else broken, every)


def _is_r2(config: Any) -> bool:
    """A kept copy of the first is a folder too, named by its hash: known by what `experts.revision` makes of it."""
    name = "depth" if hasattr(config, "depth_size") else "detection"
    return bool(experts.revision(name, config) == experts.revision(name, config.model_copy(update={"model": f"blocks:{name}-r2"})))


def seeing_experts(monkeypatch: pytest.MonkeyPatch, broken: str | None = None, every: int = 1) -> None:
    """Whatever expert is loaded in this process from now on sees, or is broken."""
    monkeypatch.setattr(experts, "load", load(broken, every))
    labelling_worker.loaded.cache_clear()


def cleared() -> Iterator[None]:
    """Body of a fixture: no expert of a test is left to the next one."""
    labelling_worker.loaded.cache_clear()
    yield
    labelling_worker.loaded.cache_clear()
