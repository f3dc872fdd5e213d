"""Webdataset tars for tests, good and bad."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Member = tuple[str, bytes]


def picture(seed: int, size: tuple[int, int] = (24, 16), kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    """A small picture; another seed is another picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def sample(number: int, prefix: str = "") -> list[Member]:
    """The three members of a good sample, as img2dataset orders them."""
    meta = {"url": f"http://example.org/{number}.jpg", "license": "CC0-1.0", "number": number}
    key = f"{prefix}{number:06d}"
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", json.dumps(meta).encode()), (f"{key}.txt", f"picture {number}".encode())]


def tar(path: Path, members: Iterable[Member], mtime: int = 0) -> Path:
    """Write a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w", format=tarfile.GNU_FORMAT) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            file.addfile(info, io.BytesIO(content))
    return path


def shards(folder: Path, number: int, samples: int, first: int = 0) -> list[Path]:
    """Good shards of consecutive samples."""
    return [
        tar(
            folder / f"{shard:05d}.tar",
            [member for n in range(samples) for member in sample(first + shard * samples + n)],
        )
        for shard in range(number)
    ]
