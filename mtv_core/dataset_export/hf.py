"""A folder that `datasets.load_from_disk` opens: a DatasetDict, with one Arrow stream a shard.

dataset_dict.json                        the splits; last, so that nothing opens before it is whole
train/data-00000-of-00003.arrow
train/state.json, train/dataset_info.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa

from mtv_core.dataset_export import features
from mtv_core.dataset_export.config import Split
from mtv_core.dataset_export.plan import FileRecord, Plan
from mtv_core.dataset_export.writer import Writer, json_bytes

_USAGE = """\
```python
from datasets import load_from_disk

dataset = load_from_disk(".")  # this folder
dataset["{split}"][0]["image"]
```"""


class HuggingFace(Writer):
    """What `DatasetDict.save_to_disk` writes, without `datasets`."""

    name = "hf"

    def shard(self, plan: Plan, split: Split, index: int) -> str:
        """See `Writer.shard`."""
        return f"{split}/{_name(plan, split, index)}"

    def write(self, file: IO[bytes], schema: pa.Schema, pieces: Iterator[pa.Table]) -> None:
        """See `Writer.write`."""
        target = features.schema_of(schema)
        with pa.ipc.new_stream(file, target) as writer:
            for piece in pieces:
                writer.write_batch(features.convert(piece, target))

    def others(self, plan: Plan, schema: pa.Schema, shards: Mapping[Split, Sequence[FileRecord]]) -> dict[str, bytes]:
        """See `Writer.others`."""
        found: dict[str, bytes] = {}
        for split, records in shards.items():
            state: dict[str, Any] = {
                "_data_files": [{"filename": _name(plan, split, index)} for index in range(len(records))],
                "_fingerprint": f"{plan.id}{split.encode().hex()}"[:32],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": split,
            }
            size = sum(record.data_bytes for record in records)
            info = {
                "citation": "",
                "dataset_size": size,
                "description": "",
                "features": features.features(schema),
                "homepage": "",
                "license": "",
                "splits": {split: {"name": split, "num_bytes": size, "num_examples": plan.rows[split], "dataset_name": None}},
            }
            found |= {f"{split}/state.json": json_bytes(state), f"{split}/dataset_info.json": json_bytes(info)}
        return {**found, "dataset_dict.json": json_bytes({"splits": list(shards)})}

    def globs(self, plan: Plan) -> dict[Split, str]:
        """See `Writer.globs`."""
        return {split: f"{split}/*.arrow" for split in plan.rows}

    def usage(self, plan: Plan) -> str:
        """See `Writer.usage`."""
        return _USAGE.format(split=next(iter(plan.rows)))


def _name(plan: Plan, split: Split, index: int) -> str:
    return f"data-{index:05d}-of-{plan.num_shards(split):05d}.arrow"
