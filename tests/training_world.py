"""A small labelled table, and a model small enough to train in seconds."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from mtv_core.blocks.shards import Sample, truth
from mtv_core.data import depth as depth_codec
from mtv_core.data.schema import SAMPLES, label_schema, sample_uid
from mtv_core.store.table import Table
from mtv_core.training.config import TrainConfig

SIZE = 48


def picture(sample: Sample) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sample.rendered.rgb).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def make_table(folder: Path, rows: int, labelled: bool = True, held_out: int = 0) -> tuple[str, int, str | None]:
    """Blocks with ground truth as labels (the last third has no depth, every fifth no box): uri, version, tag."""
    samples = [truth(7, index, SIZE, SIZE) for index in range(rows)]
    values = []
    for index, sample in enumerate(samples):
        image, text = picture(sample), sample.caption.text
        values.append(
            {
                "uid": sample_uid(image, text), "image": image, "width": SIZE, "height": SIZE, "caption": text,
                "captions": [{"text": text, "kind": "web"}], "caption_raw": text, "source": "test", "shard": "0", "key": str(index),
                "sha256": "0" * 64, "split": "held_out" if index < held_out else "train", "ingest_id": "test",
            }
        )  # fmt: skip
    table = Table.create_or_open(str(folder / "table"))
    table.append(pa.Table.from_pylist(values, schema=SAMPLES), rows_per_fragment=max(1, rows // 2))
    if not labelled:
        return table.uri, table.version, None
    depths = [depth_codec.encode(1 / s.rendered.depth) if i < 2 * rows // 3 else None for i, s in enumerate(samples)]
    found = [[k for k in range(len(s.scene.solids)) if s.rendered.visible[k] > 0.3 and i % 5] for i, s in enumerate(samples)]
    columns = {
        "depth": {"depth": depths},
        "detection": {
            "boxes": [s.rendered.boxes[k].tolist() for s, k in zip(samples, found, strict=True)],
            "phrases": [[s.scene.solids[i].name for i in k] for s, k in zip(samples, found, strict=True)],
            "scores": [np.linspace(1, 0.5, len(k)).tolist() for k in found],
        },
    }
    for expert, labels in columns.items():
        table.ensure_columns(expert)
        plan = table.stale(expert, "r1")
        staged, start = [], 0
        for task in plan.fragments:
            part = {name: column[start : start + task.physical_rows] for name, column in labels.items()}
            batch = pa.table(part | {f"{expert}_rev": ["r1"] * task.physical_rows}, schema=label_schema(expert))
            staged.append(table.stage_labels(expert, plan.version, task.fragment_id, batch))
            start += task.physical_rows
        table.commit_labels(staged)
    return table.uri, table.version, table.tag({"depth": "r1", "detection": "r1"})


def tiny_config(**changes: object) -> TrainConfig:
    """All objectives on the smallest of everything."""
    head = {"hidden": 32, "layers": 2, "bottleneck": 16, "prototypes": 64}
    values = {
        "model": {
            "backbone": "vit_base_patch16_siglip_224",
            "backbone_args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "image_size": SIZE,
            "text": {"width": 32, "depth": 1, "heads": 2},
        },
        "objectives": {"distillation": {"head": head}, "masked": {"head": head}, "depth": {"width": 16}},
        "views": {"global_size": 40, "local_size": 24, "local_crops": 2, "max_boxes": 3, "depth_size": 24},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "steps": 10, "global_batch": 8, "log_every": 3, "checkpoint_every": 4, "max_restarts": 0, "device": "cpu", "seed": 3,
    }  # fmt: skip
    return TrainConfig.model_validate(values | changes)
