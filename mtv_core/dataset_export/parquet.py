"""Parquet files that `datasets` opens with images: `data/train-00000-of-00003.parquet`, as the Hugging Face Hub names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from mtv_core.dataset_export import features
from mtv_core.dataset_export.config import Split
from mtv_core.dataset_export.plan import Plan
from mtv_core.dataset_export.writer import Writer

_USAGE = """\
```python
from datasets import load_dataset

dataset = load_dataset("parquet", data_files={{{files}}})
dataset["{split}"][0]
```

Any other reader of Parquet does too; `image` is a struct of `bytes` (a JPEG) and `path`."""


class Parquet(Writer):
    """One file a shard; row groups of some megabytes, so that a reader needs little memory."""

    name = "parquet"

    def shard(self, plan: Plan, split: Split, index: int) -> str:
        """See `Writer.shard`."""
        return f"data/{split}-{index:05d}-of-{plan.num_shards(split):05d}.parquet"

    def write(self, file: IO[bytes], schema: pa.Schema, pieces: Iterator[pa.Table]) -> None:
        """See `Writer.write`."""
        target = features.schema_of(schema)
        words = [field.name for field in target if pa.types.is_string(field.type)]
        with pq.ParquetWriter(
            file,
            target,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in words if name not in ("uid", "sha256", "key")],  # never for pictures, which differ
            write_statistics=[*words, "width", "height"],
        ) as writer:
            for piece in pieces:
                writer.write_batch(features.convert(piece, target), row_group_size=piece.num_rows)

    def globs(self, plan: Plan) -> dict[Split, str]:
        """See `Writer.globs`."""
        return {split: f"data/{split}-*.parquet" for split in plan.rows}

    def usage(self, plan: Plan) -> str:
        """See `Writer.usage`."""
        files = ", ".join(f'"{split}": "{glob}"' for split, glob in self.globs(plan).items())
        return _USAGE.format(files=files, split=next(iter(plan.rows)))
