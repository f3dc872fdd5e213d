"""The processes that `benchmarks.ingest` compares: a peer, or a codec with nothing around it.

    python ingest_worker.py ROLE

It imports what its role needs, says `ready`, and then does one job a line of standard input: a JSON object. It answers each with
`{"samples": …, "wall": seconds, "cpu": seconds}`, so that neither starting nor importing counts. The peers' roles need nothing of MTV.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]  # tars, side (px), quality, out (folder)


def webdataset_and_pillow() -> Callable[[Job], int]:
    """What a user of webdataset writes, with Pillow's scaled decoding: no step that could be left out."""
    import webdataset
    from PIL import Image

    def run(job: Job) -> int:
        samples = 0
        with webdataset.ShardWriter(f"{job['out']}/%05d.tar", maxcount=10**9, maxsize=10**12, verbose=0) as writer:
            for sample in webdataset.WebDataset(job["tars"], shardshuffle=False):
                image: Image.Image = Image.open(io.BytesIO(sample["jpg"]))
                scale = job["side"] / max(image.size)
                size = round(image.width * scale), round(image.height * scale)
                image.draft("RGB", size)
                image = image.convert("RGB")
                if image.size != size:
                    image = image.resize(size, Image.Resampling.BICUBIC)
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=job["quality"], subsampling="4:2:0")
                writer.write({"__key__": sample["__key__"], "jpg": buffer.getvalue(), "txt": sample["txt"], "json": sample["json"]})
                samples += 1
        return samples

    return run


def img2dataset() -> Callable[[Job], int]:
    """Its resizer and its writer of tars, fed from tars instead of from the web. OpenCV encodes 4:2:0."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import pyarrow as pa
    import webdataset
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    schema = pa.schema([("key", pa.string()), ("width", pa.int32()), ("height", pa.int32())])

    def run(job: Job) -> int:
        resize = Resizer(job["side"], "keep_ratio_largest", True, encode_quality=job["quality"])
        samples = 0
        for number, tar in enumerate(job["tars"]):
            writer = WebDatasetSampleWriter(number, job["out"], True, 5, schema, "jpg")
            for sample in webdataset.WebDataset([tar], shardshuffle=False):
                image, width, height, _, _, error = resize(io.BytesIO(sample["jpg"]))
                assert error is None, error
                meta = {"key": sample["__key__"], "width": width, "height": height}
                writer.write(image, sample["__key__"], sample["txt"].decode(), meta)
                samples += 1
            writer.close()
        return samples

    return run


def codec() -> Callable[[Job], int]:
    """Decode, resize, encode and hash pictures that are in memory already: what no ingest with this codec can beat."""
    from mtv_core.data.images import ImageLimits, store

    loaded: dict[str, list[bytes]] = {}

    def run(job: Job) -> int:
        limits = ImageLimits(job["side"], job["quality"], 64_000_000)
        samples = 0
        for tar in job["tars"]:
            if tar not in loaded:  # in the warm-up
                with tarfile.open(tar) as file:
                    loaded[tar] = [file.extractfile(member).read() for member in file if member.name.endswith("jpg")]  # type: ignore[union-attr]
            for image in loaded[tar]:
                store(image, limits)
                samples += 1
        return samples

    return run


def validate() -> Callable[[Job], int]:
    """What passing a JPEG through cannot do without: read it, its sha256, and the one decode that checks and hashes it."""
    from mtv_core.data.images import ImageLimits, store

    places: dict[str, list[tuple[int, int]]] = {}

    def run(job: Job) -> int:
        limits = ImageLimits(job["side"], job["quality"], 64_000_000)
        samples = 0
        for tar in job["tars"]:
            if tar not in places:  # in the warm-up
                with tarfile.open(tar) as file:
                    places[tar] = [(member.offset_data, member.size) for member in file if member.name.endswith("jpg")]
            with Path(tar).open("rb") as file:
                for offset, size in places[tar]:
                    file.seek(offset)
                    image = file.read(size)
                    hashlib.sha256(image).hexdigest()
                    assert store(image, limits).passthrough
                    samples += 1
        return samples

    return run


ROLES = {"webdataset": webdataset_and_pillow, "img2dataset": img2dataset, "codec": codec, "validate": validate}


def main() -> None:
    """Serve jobs until standard input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = ROLES[sys.argv[1]]()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        shutil.rmtree(job["out"], ignore_errors=True)
        Path(job["out"]).mkdir(parents=True)
        wall, cpu = time.perf_counter(), time.process_time()
        samples = work(job)
        done = {"samples": samples, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(done), file=answers, flush=True)


if __name__ == "__main__":
    main()
