"""Captions of blocks scenes: every word of them is true of the picture.

A relation is only stated where it is beyond doubt: left and right by the centres of the visible boxes, in front and behind by z-depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtv_core.blocks.render import Rendered
from mtv_core.blocks.scene import Scene, Solid

MIN_VISIBLE = 0.3  # a solid less visible than this is not mentioned
MIN_SHIFT = 0.12  # distance of box centres, in picture widths, from which one solid is left of another
MIN_STEP = 0.6  # difference of z-depth in metres from which one solid is behind another …
MAX_SIDE = 0.30  # … provided that their centres are at most so many picture widths apart
RELATIONS: tuple[str, ...] = ("left of", "right of", "in front of", "behind")
SINGLE: tuple[str, ...] = ("{}", "a photo of {}", "a picture of {}", "{} on the floor", "there is {} in the picture")
SEVERAL: tuple[str, ...] = ("{}", "{}", "a photo of {}", "a picture of {}")


@dataclass(frozen=True)
class Caption:
    """A caption and what it says, in indices of the scene's solids."""

    text: str
    mentions: tuple[int, ...]
    relations: tuple[tuple[int, str, int], ...]


def article(words: str) -> str:
    """'red sphere' → 'a red sphere', 'orange cube' → 'an orange cube'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(solid: Solid, with_size: bool) -> str:
    """'a red sphere' or 'a small red sphere'."""
    return article(f"{solid.size} {solid.name}" if with_size else solid.name)


def relations(scene: Scene, rendered: Rendered, subject: int, other: int) -> list[str]:
    """The relations that hold for sure between two visible solids, of `RELATIONS`."""
    shift = float(rendered.boxes[subject, [0, 2]].mean() - rendered.boxes[other, [0, 2]].mean())
    centres = np.stack([scene.solids[subject].centre, scene.solids[other].centre])
    step = float(np.subtract(*(scene.camera.project(centres, 2, 2)[:, 2])))
    held = []
    if abs(shift) >= MIN_SHIFT:
        held.append("left of" if shift < 0 else "right of")
    if abs(step) >= MIN_STEP and abs(shift) <= MAX_SIDE:
        held.append("in front of" if step < 0 else "behind")
    return held


def caption(scene: Scene, rendered: Rendered, rng: np.random.Generator) -> Caption:
    """Write a caption that mentions every solid that is visible enough.

    Args:
        scene: what is in the picture.
        rendered: `render(scene)`; captions depend on what is seen.
        rng: the scene's generator, after `sample_scene` has drawn from it.
    """
    seen = [i for i in range(len(scene.solids)) if rendered.visible[i] >= MIN_VISIBLE]
    if not seen:  # cannot happen to a sampled scene; a scene made by hand may be of the floor alone
        return Caption("an empty floor", (), ())
    order = [seen[i] for i in rng.permutation(len(seen))]
    words = [describe(scene.solids[i], with_size=bool(rng.random() < 0.35)) for i in order]
    if len(order) == 1:
        return Caption(SINGLE[int(rng.integers(len(SINGLE)))].format(words[0]), tuple(order), ())
    parts: list[str] = []
    stated: list[tuple[int, str, int]] = []
    for first in range(0, len(order), 2):
        if first + 1 == len(order):
            parts.append(words[first])
            continue
        held = relations(scene, rendered, order[first], order[first + 1])
        relation = held[int(rng.integers(len(held)))] if held else "and"
        if held:
            stated.append((order[first], relation, order[first + 1]))
        parts.append(f"{words[first]} {relation} {words[first + 1]}")
    template = SEVERAL[int(rng.integers(len(SEVERAL)))]
    return Caption(template.format(", and ".join(parts)), tuple(order), tuple(stated))
