"""Tables of blocks, experts that answer at once, and tables compared: for the tests of labelling."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mtv_core import experts, labelling_worker
from mtv_core.blocks.shards import truth
from mtv_core.data.depth import encode
from mtv_core.data.schema import LABELS, SAMPLES, sample_uid
from mtv_core.experts.config import ExpertConfig
from mtv_core.labelling_config import LabelConfig
from mtv_core.store.table import Table


def sample_rows(count: int, seed: int = 3, first: int = 0) -> pa.Table:
    """Rows of the samples table, of several shapes, from blocks."""
    rows = []
    for index in range(first, first + count):
        width, height = ((96, 96), (96, 72), (72, 96))[index % 3]
        sample, buffer = truth(seed, index, width, height), io.BytesIO()
        Image.fromarray(sample.rendered.rgb).save(buffer, "JPEG", quality=92)
        image, caption = buffer.getvalue(), sample.caption.text
        rows.append(
            {
                "uid": sample_uid(image, caption), "image": image, "width": width, "height": height, "caption": caption,
                "captions": [{"text": caption, "kind": "web"}], "caption_raw": caption, "source": "blocks", "shard": "shard",
                "key": f"{index:05d}", "sha256": hashlib.sha256(image).hexdigest(), "phash": index, "split": "train", "ingest_id": "i",
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def make_table(folder: Path, count: int = 24, rows_per_fragment: int = 8) -> Table:
    """A table without labels."""
    table = Table.create_or_open(str(folder))
    table.append(sample_rows(count), rows_per_fragment)
    return table


def config(depth: str = "blocks:depth-r1", detection: str = "blocks:detection-r1", **fields: object) -> LabelConfig:
    return LabelConfig.model_validate({"depth": {"model": depth}, "detection": {"model": detection}, "batch_size": 4, **fields})


class QuickExpert:
    """Labels that follow from the picture, the caption and the revision alone, in no time. The revision is the real expert's."""

    license = "unknown"
    extra_columns: tuple[str, ...] = ()

    def __init__(self, name: str, expert: ExpertConfig) -> None:
        self.name, self.revision, self.schema = name, experts.revision(name, expert), LABELS[name]
        self.calls: list[int] = []
        self.counts: Counter[str] = Counter()

    def phrases_in(self, rows: pa.RecordBatch) -> list[list[str]] | None:
        return None

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str], phrases: Sequence[Sequence[str] | None] | None = None
    ) -> pa.RecordBatch:
        self.calls.append(len(images))
        return pa.RecordBatch.from_pylist([self.label(*pair) for pair in zip(images, captions, strict=True)], schema=self.schema)

    def label(self, image: Image.Image, caption: str) -> dict[str, object]:
        digest = hashlib.sha256(image.tobytes() + caption.encode() + self.revision.encode()).digest()
        if self.name == "depth":
            return {"depth": encode(np.frombuffer(digest[:16], np.uint8).reshape(4, 4).astype(np.float32))}
        count = digest[0] % 3
        return {"boxes": [[0.0, 0.0, 0.5, b / 256] for b in digest[:count]], "phrases": ["it"] * count, "scores": [0.5] * count}


def quick_experts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Body of a fixture: whatever expert is loaded in this process is a quick one."""
    monkeypatch.setattr(experts, "load", QuickExpert)
    labelling_worker.loaded.cache_clear()
    yield
    labelling_worker.loaded.cache_clear()


def columns(table: Table) -> dict[str, list[object]]:
    """Every column of the samples, by row in the order of uid."""
    rows = Table.at(table.uri, version=table.version).dataset.to_table().sort_by("uid")
    return {name: rows[name].to_pylist() for name in rows.column_names}


def rejects(table: Table) -> list[dict[str, object]]:
    """Every reject, in a fixed order."""
    return sorted(table.rejects.read().to_pylist(), key=lambda row: (row["shard"], row["key"], row["stage"], row["revision"]))
