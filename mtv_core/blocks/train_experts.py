"""Train the tiny experts that come with blocks: `python -m mtv_core.blocks.train_experts [NAME …] [--out DIR] [--cache DIR] [--force]`.

Two revisions of each, so that an update of an expert is a real update: r1 saw few scenes for a short time, r2 is good. An expert
that is there is left alone without --force; each appears whole or not at all, so an interrupted training is finished by running the
command again. How good they are: `python -m mtv_core.blocks.evaluate_experts`.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from mtv_core.blocks import train_depth, train_detection
from mtv_core.blocks.expert_data import TRAIN_SEED, cached_truth

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """How one expert is trained: on how many scenes, for how many steps."""

    scenes: int
    steps: int
    seed: int = 1


RECIPES: dict[str, Recipe] = {
    "detection-r1": Recipe(scenes=1_200, steps=1_100),
    "detection-r2": Recipe(scenes=15_000, steps=3_000),
    "depth-r1": Recipe(scenes=600, steps=120),
    "depth-r2": Recipe(scenes=15_000, steps=1_300),
}


def card(name: str) -> str:
    """The model card: what it is, under which licence, how it was made."""
    kind, revision = name.split("-")
    what = "Inverse depth (`DepthAnythingForDepthEstimation`)" if kind == "depth" else "Boxes of phrases (`Owlv2ForObjectDetection`)"
    recipe = RECIPES[name]
    quality = "deliberately an early one, so that an update is a real update" if revision == "r1" else "the good one"
    return f"""---
license: apache-2.0
---

# {name}

{what} in blocks scenes, revision {revision[1:]}: {quality}.
It knows coloured solids and nothing else.

Trained on {recipe.scenes} scenes with exact ground truth for {recipe.steps} steps by
`python -m mtv_core.blocks.train_experts {name}`; `python -m mtv_core.blocks.evaluate_experts` measures it on held-out scenes.
"""


def train(name: str, out: Path, cache: Path) -> Path:
    """Train the expert `name` and put its folder into `out`. Returns the folder."""
    recipe = RECIPES[name]
    truth = cached_truth(cache, TRAIN_SEED, recipe.scenes)
    partial = out / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    module = train_detection if name.startswith("detection") else train_depth
    module.train(truth, partial, steps=recipe.steps, seed=recipe.seed, log=lambda line: print(line, flush=True))
    (partial / "README.md").write_text(card(name))
    shutil.rmtree(out / name, ignore_errors=True)
    partial.rename(out / name)
    return out / name


def main() -> None:
    """Train the experts asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the experts' folders")
    parser.add_argument("--cache", type=Path, default=Path(".mtv/blocks/truth"), help="rendered scenes, 0.9 GB, kept for the next time")
    parser.add_argument("--force", action="store_true", help="train again what is there")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in RECIPES:
            parser.error(f"no expert is called {name!r}; they are {', '.join(RECIPES)}")
    torch.set_num_threads(1)  # so that sums are in one order whatever the machine
    for name in arguments.names or RECIPES:
        if (arguments.out / name / "model.safetensors").exists() and not arguments.force:
            print(f"{name} is there; --force trains it again")
            continue
        print(f"{name} → {train(name, arguments.out, arguments.cache)}")


if __name__ == "__main__":
    main()
