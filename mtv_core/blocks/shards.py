"""Blocks as a user's data: ordinary webdataset tars of pictures and captions, without a label in them.

The same samples, seed and shard size give the same bytes, on any machine with the same versions of NumPy and Pillow. Every shard is written
beside its place and renamed into it, so a kill leaves whole shards and at most a `.partial` file, and the next make goes on from there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import psutil
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from mtv_core.blocks.captions import Caption, caption
from mtv_core.blocks.render import Rendered, render
from mtv_core.blocks.scene import RESERVED_SEEDS, Scene, generator, sample_scene
from mtv_core.executor import Executor, Progress, SerialExecutor, silent

VERSION = 1  # of what is drawn: raise it when the same seed gives another picture or caption
JPEG_QUALITY = 92
LICENSE = "CC0-1.0"
MANIFEST = "blocks.json"


@dataclass(frozen=True)
class Sample:
    """One sample and everything that is true of it."""

    scene: Scene
    rendered: Rendered
    caption: Caption


class ShardsConfig(BaseModel, frozen=True, extra="forbid"):
    """What a set of shards holds. Two sets of one config are equal byte by byte."""

    samples: int = Field(1000, ge=1, description="pictures in all")
    seed: int = Field(
        0, ge=0, lt=RESERVED_SEEDS, description="of the set; sample i depends on (seed, i) alone, so a longer set begins with a shorter one"
    )
    shard_size: int = Field(500, ge=1, description="samples a tar")
    width: int = Field(96, ge=32, le=2048, description="px")
    height: int = Field(96, ge=32, le=2048, description="px")
    max_solids: int = Field(4, ge=1, le=4, description="solids in a picture, at most; fewer make an easier set")

    @property
    def num_shards(self) -> int:
        """Number of tars, the last of which may be shorter."""
        return -(-self.samples // self.shard_size)

    def manifest(self) -> str:
        """What `blocks.json` says, so that a folder is never a mixture of two sets."""
        return json.dumps({"version": VERSION, **self.model_dump()}, sort_keys=True) + "\n"

    def key(self) -> str:
        """16 hex digits that stand for the content."""
        return hashlib.sha256(self.manifest().encode()).hexdigest()[:16]


def truth(seed: int, index: int, width: int = 96, height: int = 96, max_solids: int = 4) -> Sample:
    """Scene, picture, ground truth and caption of sample `index` of the set `seed`.

    The `.json` member of each sample in the shards holds these numbers, so labels can be compared with the truth.
    """
    rng = generator(seed, index)
    scene = sample_scene(rng, aspect=width / height, max_solids=max_solids)
    rendered = render(scene, width=width, height=height)
    return Sample(scene, rendered, caption(scene, rendered, rng))


def _members(config: ShardsConfig, index: int) -> Iterator[tuple[str, bytes]]:
    sample = truth(config.seed, index, config.width, config.height, config.max_solids)
    buffer = io.BytesIO()
    Image.fromarray(sample.rendered.rgb).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    meta: dict[str, int | str] = {"seed": config.seed, "index": index, "width": config.width, "height": config.height}
    meta |= {"max_solids": config.max_solids, "license": LICENSE}
    key = f"{index:09d}"
    yield f"{key}.jpg", buffer.getvalue()
    yield f"{key}.json", json.dumps(meta, sort_keys=True).encode()
    yield f"{key}.txt", sample.caption.text.encode()


def _partial(path: Path) -> Path:
    """A name beside `path` that says whose unfinished file it is."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")


def _sweep(out: Path) -> None:
    """Remove what killed makes of this host left; a make that runs beside this one keeps its file."""
    for partial in out.glob(f".*.{platform.node()}.*.partial"):
        if not psutil.pid_exists(int(partial.name.split(".")[-2])):
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class ShardJob:
    """One tar to write; picklable, for an executor."""

    out: Path
    config: ShardsConfig
    shard: int

    @property
    def path(self) -> Path:
        """Where the tar will be."""
        return self.out / f"{self.shard:05d}.tar"


def write_shard(job: ShardJob) -> Path:
    """Write one tar and rename it into its place. Killed before the rename, it leaves a `.partial` file that nobody reads."""
    partial = _partial(job.path)
    first = job.shard * job.config.shard_size
    with partial.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(first, min(first + job.config.shard_size, job.config.samples)):
                for name, content in _members(job.config, index):
                    info = tarfile.TarInfo(name)  # its defaults: mtime 0, owner 0, mode 0644
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(job.path)
    return job.path


def make(out: Path, config: ShardsConfig, executor: Executor | None = None, progress: Progress = silent) -> list[Path]:
    """Write the shards of `config` to the folder `out`, those that are not there yet. Returns all of them, in order.

    Raises:
        ValueError: `out` holds other shards than these.
        OSError: the target is full or read-only.
    """
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / MANIFEST
    if manifest.exists():
        if manifest.read_text() != config.manifest():
            raise ValueError(f"{out} holds another set of blocks ({manifest.read_text().strip()}); choose an empty folder, or delete it")
    elif any(out.glob("*.tar")):
        raise ValueError(f"{out} holds tars that are not a set of blocks; choose an empty folder")
    else:  # first of all, so that whoever continues an interrupted make knows what it was
        partial = _partial(manifest)
        partial.write_text(config.manifest())
        partial.replace(manifest)
    jobs = [ShardJob(out, config, shard) for shard in range(config.num_shards)]
    missing = [job for job in jobs if not job.path.exists()]
    done = len(jobs) - len(missing)
    progress(done, len(jobs), "shards of blocks")
    for outcome in (executor or SerialExecutor()).map(write_shard, missing):
        if outcome.error is not None:
            raise outcome.error
        done += 1
        progress(done, len(jobs), "shards of blocks")
    _sweep(out)
    return [job.path for job in jobs]


def write_shards(out: Path, samples: int, seed: int, shard_size: int = 500) -> list[Path]:
    """`make` with the usual 96 px."""
    return make(Path(out), ShardsConfig(samples=samples, seed=seed, shard_size=shard_size))


def parse_uri(uri: str) -> ShardsConfig:
    """`blocks://NAME?samples=N&seed=S&…`, with the fields of `ShardsConfig`, → config. NAME is for the reader; every field has a default.

    Raises:
        ValueError: it is no such URI, or has an unknown or wrong parameter.
    """
    parts = urlsplit(uri)
    if parts.scheme != "blocks" or not re.fullmatch(r"[A-Za-z0-9._-]+", parts.netloc) or parts.path.strip("/") or parts.fragment:
        raise ValueError(f"{uri!r} is not a blocks source; write blocks://NAME?samples=N&seed=S&shard_size=K")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"{uri!r} gives a parameter twice")
    try:
        return ShardsConfig.model_validate(dict(pairs))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{uri!r}: {problems}. Parameters are {', '.join(ShardsConfig.model_fields)}") from None


def materialise(uri: str, home: Path, executor: Executor | None = None, progress: Progress = silent) -> str:
    """Make the shards of a blocks:// source under `home/blocks/<hash>/`, unless they are there, and return the glob of them."""
    config = parse_uri(uri)
    folder = Path(home) / "blocks" / config.key()
    make(folder, config, executor, progress)
    return str(folder / "*.tar")
