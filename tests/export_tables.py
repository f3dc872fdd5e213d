"""A table with everything that an export meets: two kinds of captions, licences, partial labels, deleted rows, both splits."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from mtv_core.data import depth as depth_codec
from mtv_core.data.schema import SAMPLES, label_schema, sample_uid, split_of
from mtv_core.store.table import Table

ROWS, DELETED = 47, (3, 20, 46)


def depth_of(index: int) -> np.ndarray | None:
    """Inverse depth of a row; every fifth has none. Some have missing values, some a range that float16 cannot hold."""
    if index % 5 == 4:
        return None
    depth = np.random.default_rng(index).random((7, 9 + index % 3)).astype(np.float32)
    if index % 5 == 1:
        depth[2, 3] = np.nan
    return depth * (100_000 if index % 5 == 2 else 1) + (5000 if index % 5 == 3 else 0)


def boxes_of(index: int) -> list[list[float]] | None:
    """Boxes of a row; every seventh has no label, others none found."""
    return None if index % 7 == 6 else [[0.0, 0.0625, 0.5, (k + 1) / 8] for k in range(index % 3)]


def sample(index: int) -> dict[str, object]:
    """A row as ingest makes it from an image that passes through."""
    pixels = np.random.default_rng(index).integers(0, 255, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80 + index % 10)
    image = buffer.getvalue()
    raw = f"A  picture &amp; its\tnumber {index} – “ünïcode” | 照片"
    caption = " ".join(raw.replace("&amp;", "&").split())
    captions = [{"text": caption, "kind": "web"}]
    captions += [{"text": f"another {index}", "kind": "web"}] if index % 2 else []
    captions += [{"text": f"a model says {index}", "kind": "synthetic"}] if index % 3 == 0 else []
    sha256 = hashlib.sha256(image).hexdigest()
    return {
        "uid": sample_uid(image, raw), "image": image, "width": 32, "height": 24, "caption": caption, "captions": captions,
        "caption_raw": raw, "source": "ab"[index % 2], "shard": "s" * 32, "key": f"{index:04d}", "sha256": sha256,
        "url": f"http://example.org/{index}.jpg" if index % 4 else None, "license": (None, "cc-by-4.0", "CC BY-NC | 2.0")[index % 3],
        "meta": f'{{"clip": 0.{index}, "n": [1, null]}}' if index % 2 else None, "phash": 2**64 - 1 - index,
        "split": split_of(sha256, 0.2), "ingest_id": "i",
    }  # fmt: skip


def make(folder: Path) -> tuple[Table, str]:
    """The table, and its tag. Rows of `DELETED` are deleted."""
    table = Table.create_or_open(str(folder / "table"))
    table.append(pa.Table.from_pylist([sample(index) for index in range(ROWS)], schema=SAMPLES), 10)
    labels = {
        "depth": {"depth": [None if (depth := depth_of(index)) is None else depth_codec.encode(depth) for index in range(ROWS)]},
        "detection": {
            "boxes": [boxes_of(index) for index in range(ROWS)],
            "phrases": [None if (boxes := boxes_of(index)) is None else [f"thing {k}" for k in range(len(boxes))] for index in range(ROWS)],
            "scores": [None if (boxes := boxes_of(index)) is None else [0.5] * len(boxes) for index in range(ROWS)],
        },
    }
    for expert, columns in labels.items():
        table.ensure_columns(expert)
        table.accept(expert, f"{expert}-1", {"model": f"maker/{expert}", "license": "apache-2.0" if expert == "depth" else "cc-by-nc-4.0"})
        plan, start, staged = table.stale(expert, f"{expert}-1"), 0, []
        for task in plan.fragments:
            part = {name: column[start : start + task.physical_rows] for name, column in columns.items()}
            batch = pa.table(part | {f"{expert}_rev": [f"{expert}-1"] * task.physical_rows}, schema=label_schema(expert))
            staged.append(table.stage_labels(expert, plan.version, task.fragment_id, batch))
            start += task.physical_rows
        table.commit_labels(staged)
    table.dataset().delete(f"key in ({', '.join(repr(f'{index:04d}') for index in DELETED)})")
    return table, table.tag({"depth": "depth-1", "detection": "detection-1"})


def truth() -> dict[str, dict[str, object]]:
    """uid → the row with its number, of what is not deleted."""
    rows = {index: sample(index) for index in range(ROWS) if index not in DELETED}
    return {str(row["uid"]): row | {"index": index} for index, row in rows.items()}
