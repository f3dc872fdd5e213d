"""A labelled table with a past, for the tests of takedown: three tags, refusals, staged work, reports; and what of it is on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from tars import picture

from mtv_core.data.schema import SAMPLES, label_schema, sample_uid
from mtv_core.report import Reject
from mtv_core.store.ledger import LedgerEntry
from mtv_core.store.table import Table

SHARD = 8  # rows
COLUMNS = {"depth": ["depth"], "detection": ["boxes", "phrases", "scores"]}


def image(number: int) -> bytes:
    return picture(number, (48, 32))


def row(number: int, shard: int | None = None, image_of: int | None = None, **changes: Any) -> dict[str, Any]:
    """Sample `number`, with the picture of another one if that is asked for."""
    shard = number // SHARD if shard is None else shard
    content, caption = image(number if image_of is None else image_of), f"the caption of {number}"
    return {
        "uid": sample_uid(content, caption), "image": content, "width": 48, "height": 32, "caption": caption,
        "captions": [{"text": caption, "kind": "web"}], "caption_raw": caption, "source": f"source{shard % 2}",
        "shard": f"shard-id-{shard}", "key": f"{number % SHARD:06d}", "url": f"https://example.org/{number}.jpg", "license": None,
        "meta": json.dumps({"n": number}),
        "sha256": hashlib.sha256(content).hexdigest(), "phash": number, "split": "train", "ingest_id": "i",
        **changes,
    }  # fmt: skip


def add(table: Table, rows: list[dict[str, Any]], rows_per_fragment: int = SHARD) -> None:
    table.append(pa.Table.from_pylist(rows, schema=SAMPLES), rows_per_fragment)
    shards = sorted({one["shard"] for one in rows})
    table.ledger.append(
        [
            LedgerEntry(
                shard=shard, uri=f"s3://bucket/{int(shard[-1]):05d}.tar", identity="x", size=1, rows_in=SHARD, rows_out=SHARD,
                rows_rejected=0, state="done", ingest_id="i",
            )
            for shard in shards
        ]
    )  # fmt: skip


def label_of(uid: str, expert: str, revision: str) -> dict[str, Any]:
    """A label that says which row it is of."""
    if expert == "depth":
        return {"depth": f"depth of {uid} by {revision}".encode()}
    return {"boxes": [[0.0, 0.0, 1.0, int(uid[:2], 16) / 256]], "phrases": [f"{uid}-{revision}"], "scores": [0.5]}


def label(table: Table, expert: str, revision: str) -> None:
    table.ensure_columns(expert)
    table.accept(expert, revision, {})
    plan = table.stale(expert, revision)
    staged = []
    for task in plan.fragments:
        uids = table.read_fragment(plan.version, task.fragment_id, ["uid"])["uid"].to_pylist()
        labels = [{**label_of(uid, expert, revision), f"{expert}_rev": revision} for uid in uids]
        batch = pa.Table.from_pylist(labels, schema=label_schema(expert))
        staged.append(table.stage_labels(expert, plan.version, task.fragment_id, batch))
    table.commit_labels(staged)


def make(folder: Path | str) -> tuple[Table, dict[str, str]]:
    """24 + 8 rows in fragments of 8, and three tags:

    one    shards 0 to 2, depth r1, detection d1
    two    shard 3 too; row 30 has the picture of row 3
    three  depth r2
    """
    table = Table.create_or_open(str(folder))
    add(table, [row(number) for number in range(24)])
    label(table, "depth", "r1")
    label(table, "detection", "d1")
    tags = {"one": table.tag({"depth": "r1", "detection": "d1"})}
    add(table, [row(number, image_of=3 if number == 30 else None) for number in range(24, 32)])
    label(table, "depth", "r1")
    label(table, "detection", "d1")
    tags["two"] = table.tag({"depth": "r1", "detection": "d1"})
    label(table, "depth", "r2")
    tags["three"] = table.tag({"depth": "r2", "detection": "d1"})
    table.rejects.append(
        [
            reject("shard-id-0", "000003", "depth", uid=row(3)["uid"], error="BrokenImage", message="cannot be read"),
            reject("shard-id-9", "a", "ingest", uid="c0" * 16, error="NearDuplicate", survivor=row(3)["uid"], message=row(3)["uid"]),
            reject("shard-id-9", "b", "ingest", error="NoCaption", message="from http://example.org:80/900.jpg"),
            reject("shard-id-9", "c", "ingest", error="NoCaption", message="no caption"),
            reject("shard-id-0", "000004", "depth", uid=row(4)["uid"], error="BrokenImage", message="cannot be read"),
        ]
    )
    leave(table)
    return table, tags


def reject(shard: str, key: str, stage: str, **fields: Any) -> Reject:
    return Reject(**{"shard": shard, "key": key, "stage": stage, "location": f"s3://bucket/x.tar#{key}", "revision": "r", **fields})


def leave(table: Table) -> None:
    """What killed runs and reports left."""
    for name, content in {
        "_staging/ingest/r/shard/rows.arrow": image(3),
        "_staging/labels/depth/r1/1-0.json": b"{}",
        "_staging/.rows.arrow.1.ab.partial": image(3),
        "samples.lance/data/.tmpabc": image(3),
        "samples.lance/data/" + "01" * 12 + "ab" * 13 + ".lance": image(3),
        "reports/i/gallery.jpg": image(3),
        "reports/i/leaks.html": b"<img src='data:image/jpeg;base64,abc'>",
        "reports/i/card.md": f"the longest caption is that of {row(3)['uid']}".encode(),
        "reports/i/urls.csv": b"url\nhttp://example.org/3.jpg\n",
        "reports/i/report.json": b'{"example": "s3://bucket/00000.tar#000003: cannot be read"}',
        "reports/i/report.md": b"* `s3://bucket/x.tar#000004: cannot be read`, * s3://bucket/00000.tar#000003",
        "reports/j/report.json": b'{"example": "s3://bucket/00000.tar#000002: cannot be read"}',
        "reports/i/stats.json": json.dumps({"rows": 24, "sample": row(4)["uid"], "image": row(4)["sha256"]}).encode(),
        "_experts/depth/preview.png": b"an expert's own",
    }.items():
        if table.files.local or not Path(name).name.startswith("."):
            table.files.write(name, content)


def everything(table: Table) -> dict[str, dict[str, Any]]:
    """uid → all columns and the stable row id, of the latest version."""
    rows = table.dataset().to_table(with_row_id=True)
    return {one["uid"]: one for one in rows.to_pylist()}


def on_disk(folder: Path | str, numbers: list[int]) -> list[str]:
    """Files that hold a uid, a hash, a URL, a caption or a part of the picture of some samples, wherever they are below a folder."""
    found = []
    for name, content in files(folder):
        for number in numbers:
            one = row(number, image_of=3 if number == 30 else None)
            needles = [one["uid"].encode(), one["sha256"].encode(), one["url"].encode(), one["image"][-80:-2], f'"n": {number}}}'.encode()]
            found += [f"{name}: {needle[:40]!r}" for needle in needles if needle in content]
    return found


def files(folder: Path | str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file below a folder, or of every object of a bucket, as another program sees them."""
    if isinstance(folder, Path):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(folder)), path.read_bytes()
        return
    import s3_server

    bucket = folder.removeprefix("s3://").split("/")[0]
    client = s3_server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            yield entry["Key"], client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
