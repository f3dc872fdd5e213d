"""`mtv blocks`: the embedded world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.console import Bar, bars, out
from mtv_core.blocks.scene import RESERVED_SEEDS

app = typer.Typer(no_args_is_help=True, help="The embedded world: scenes with exact ground truth, as ordinary shards.")


@app.callback()
def _group() -> None:
    """Keep `make` a subcommand."""


@app.command()
def make(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tars; made if missing.")],
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="Pictures in all.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, max=RESERVED_SEEDS - 1, help="The same seed, the same bytes.")] = 0,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Samples a tar.")] = 500,
    width: Annotated[int, typer.Option("--width", min=32, max=2048, help="Pixels.")] = 96,
    height: Annotated[int, typer.Option("--height", min=32, max=2048, help="Pixels.")] = 96,
    max_solids: Annotated[int, typer.Option("--max-solids", min=1, max=4, help="Solids in a picture, at most.")] = 4,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
) -> None:
    """Write webdataset tars of pictures and captions. An interrupted make goes on where it stopped."""
    from mtv_core.blocks import shards
    from mtv_core.compute import ComputeConfig
    from tasks.cluster import connect

    config = shards.ShardsConfig(samples=samples, seed=seed, shard_size=shard_size, width=width, height=height, max_solids=max_solids)
    with bars() as progress:
        bar = Bar(progress, "blocks")
        if workers == 1:
            paths = shards.make(folder, config, progress=bar)
        else:
            with connect(ComputeConfig(workers=workers)) as executor:
                paths = shards.make(folder, config, executor, bar)
    out.print(f"{samples} samples in {len(paths)} tars: {folder}")
