"""What the benchmarks share: pictures that compress like photographs, the peers' environment, the machine, tables."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv" / "peers"
REQUIREMENTS = ROOT / "benchmarks" / "peers.txt"


def machine() -> dict[str, Any]:
    """What a figure was taken on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def peers_python() -> Path:
    """The interpreter of the peers' environment, which is made if it is not there or was made from another list."""
    python, stamp = PEERS / "bin" / "python", PEERS / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making the peers' environment in {PEERS.relative_to(ROOT)}", file=sys.stderr)
        uv = [sys.executable, "-m", "uv", "--quiet"]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, str(PEERS)], check=True)
        subprocess.run([*uv, "pip", "install", "--python", str(python), "--requirement", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted)
    return python


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, the first to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "─" * max(map(len, lines)))
    return "\n".join(lines)


def finish(figures: dict[str, Any]) -> None:
    """The last line."""
    print(json.dumps(figures), flush=True)


# Pictures

_TEXTURE = 2048


@cache
def _textures() -> NDArray[np.float32]:
    """[4, 2048, 2048]: noise whose amplitude falls as 1/f^1.1, as that of photographs does, with deviation 1."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(_TEXTURE)[:, None], np.fft.rfftfreq(_TEXTURE)[None])
    frequency[0, 0] = np.inf
    noise = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((_TEXTURE, _TEXTURE))) / frequency**1.1) for _ in range(4)]
    return np.stack([field / field.std() for field in noise]).astype(np.float32)


def photo(seed: int, width: int = 1024, height: int = 768) -> Image.Image:
    """A picture with light, things that hide each other, texture that is strong in some places, and the noise of a sensor."""
    rng = np.random.default_rng(seed)

    def smooth(rows: int, columns: int, channels: int, low: float, high: float) -> NDArray[np.float32]:
        small = rng.uniform(low, high, (channels, rows, columns)).astype(np.float32)
        planes = [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in small]
        return np.stack(planes, axis=-1)

    light = Image.fromarray(smooth(5, 6, 3, 30, 225).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(light)
    for _ in range(int(rng.integers(6, 16))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius, corners = rng.uniform(20, 200), int(rng.integers(3, 12))
        colour = tuple(int(value) for value in rng.integers(20, 236, 3))
        draw.regular_polygon((x, y, radius), corners, rotation=float(rng.uniform(0, 360)), fill=colour)
    top, left = rng.integers(0, _TEXTURE - height), rng.integers(0, _TEXTURE - width)
    texture = _textures()[rng.integers(4), top : top + height, left : left + width]
    strength = smooth(4, 5, 1, 0, 1.7) * rng.uniform(5, 22)
    grain = rng.standard_normal((height, width), dtype=np.float32)[..., None] * 1.5
    return Image.fromarray((np.asarray(light, np.float32) + strength * texture[..., None] + grain).clip(0, 255).astype(np.uint8))


def photo_jpeg(seed: int, quality: int = 90) -> bytes:
    """`photo` as a camera's software would save it: chroma at half the resolution."""
    buffer = io.BytesIO()
    photo(seed).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def photo_jpegs(seeds: Sequence[int]) -> list[bytes]:
    """Many of them, on all cores."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(photo_jpeg, seeds, chunksize=16))
