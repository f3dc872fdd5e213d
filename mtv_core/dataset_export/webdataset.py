"""Tars for `webdataset`: members `UID.jpg`, `UID.txt`, `UID.json` and `UID.depth.npy`, side by side.

A sample has the same members whatever labels it has. `.txt` is the caption that counts, cleaned; everything else that is no array is in
`.json`. Depth is inverse depth as the expert gave it: relative, larger is nearer, scale and shift are the picture's own, NaN is no value;
0 × 0 where a row has no depth label. float32, exactly what the label says; parquet keeps it five times smaller.

MTV reads such tars too. An image that ingest had passed through has the bytes it was received with, and keeps its uid if `caption_raw` is
named as its caption (docs/export.md).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa

from mtv_core.data import depth as depth_codec
from mtv_core.dataset_export.config import Split
from mtv_core.dataset_export.plan import Plan
from mtv_core.dataset_export.writer import Writer

_ARRAYS = ("image", "depth")
_USAGE = """\
```python
import webdataset as wds

dataset = wds.WebDataset("{first}", shardshuffle=False).decode("pil")
for sample in dataset:
    sample["__key__"], sample["jpg"], sample["txt"], sample["json"]["captions"]{depth}
```

`json` has {keys}.{about}"""
_DEPTH = """

`depth.npy` is inverse depth [H, W] of the whole image: relative, larger is nearer, scale and shift are the picture's own, NaN where there
is no value, 0 × 0 where the row has no depth label."""


class WebDataset(Writer):
    """Tars, uncompressed."""

    name = "webdataset"
    needs = ("uid", "image")

    def shard(self, plan: Plan, split: Split, index: int) -> str:
        """See `Writer.shard`."""
        return f"{split}/{index:05d}.tar"

    def write(self, file: IO[bytes], schema: pa.Schema, pieces: Iterator[pa.Table]) -> None:
        """See `Writer.write`."""
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for piece in pieces:
                for row in piece.to_pylist():
                    for extension, content in members(row):
                        header = tarfile.TarInfo(f"{row['uid']}.{extension}")
                        header.size = len(content)
                        tar.addfile(header, io.BytesIO(content))

    def globs(self, plan: Plan) -> dict[Split, str]:
        """See `Writer.globs`."""
        return {split: f"{split}/*.tar" for split in plan.rows}

    def usage(self, plan: Plan) -> str:
        """See `Writer.usage`."""
        split = next(iter(plan.rows))
        last = plan.num_shards(split) - 1
        first = f"{split}/{{00000..{last:05d}}}.tar" if last else f"{split}/00000.tar"
        keys = ", ".join(f"`{name}`" for name in _keys(plan.columns))
        has_depth = "depth" in plan.columns
        return _USAGE.format(first=first, keys=keys, depth=', sample["depth.npy"]' if has_depth else "", about=_DEPTH if has_depth else "")


def members(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Extension and content of each file of a sample."""
    yield "jpg", row["image"]
    if "caption" in row:
        yield "txt", row["caption"].encode()
    yield "json", json.dumps(document(row), ensure_ascii=False).encode()
    if "depth" in row:
        yield "depth.npy", _npy(row["depth"])


def document(row: dict[str, Any]) -> dict[str, Any]:
    """The `.json` of a sample. `meta` stays the text it was received as, since every sample has other keys."""
    found = {name: value for name, value in row.items() if name not in _ARRAYS}
    if found.get("phash") is not None:
        found["phash"] = f"{found['phash']:016x}"  # too large for a number of JSON
    if "captions" in found:
        for kind in ("web", "synthetic"):
            found[f"{kind}_captions"] = [caption["text"] for caption in found["captions"] if caption["kind"] == kind]
    return found


def _keys(columns: list[str]) -> list[str]:
    more = ["web_captions", "synthetic_captions"] if "captions" in columns else []
    return [name for name in columns if name not in _ARRAYS] + more


def _npy(label: bytes | None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.empty((0, 0), np.float32) if label is None else depth_codec.decode(label))
    return buffer.getvalue()
