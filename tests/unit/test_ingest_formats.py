"""The same content in every format, brought into tables: as many rows as an independent reader counts, and the same uids."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from source_files import WRITERS, contents

from mtv_core import ingest
from mtv_core.data.schema import sample_uid
from mtv_core.data.sources import SourceConfig
from mtv_core.executor import SerialExecutor
from mtv_core.ingest_config import IngestConfig
from mtv_core.store.table import Table

MANY = contents(30)
UIDS = sorted(sample_uid(one.image, one.captions[0]) for one in MANY)


def _tars(place: Path) -> int:
    number = 0
    for path in place.glob("*.tar"):
        with tarfile.open(path) as tar:
            number += sum(name.endswith(".jpg") for name in tar.getnames())
    return number


def _parquet(place: Path) -> int:
    return sum(pq.ParquetFile(path).metadata.num_rows for path in place.rglob("*.parquet"))


def _images(place: Path) -> int:
    return sum(path.suffix == ".jpg" for path in place.rglob("*"))


def _coco(place: Path) -> int:
    return len(json.loads(place.read_text())["images"])


def _saved(place: Path) -> int:
    found = datasets.load_from_disk(str(place))
    return sum(map(len, found.values())) if isinstance(found, datasets.DatasetDict) else len(found)


COUNTS: dict[str, Callable[[Path], int]] = {
    "webdataset": _tars,
    "parquet": _parquet,
    "imagefolder": _images,
    "coco": _coco,
    "arrow": _saved,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format(name: str, tmp_path: Path) -> None:
    form, write = WRITERS[name]
    place = write(tmp_path / "in", MANY)
    table = str(tmp_path / "table")
    result = ingest.run([SourceConfig(uri=place)], table, IngestConfig(dedup={"near_threshold": None}), SerialExecutor())
    counted = COUNTS[form](Path(place))
    assert (result.rows, result.report.rows_in, result.report.rows_rejected) == (counted, counted, 0)
    rows = Table.open(table).dataset().to_table(columns=["uid", "shard"]).to_pylist()
    assert sorted(row["uid"] for row in rows) == UIDS
    ledger = Table.open(table).ledger.read().to_pylist()
    assert {row["shard"] for row in rows} == {entry["shard"] for entry in ledger}


def test_one_table_of_all_formats_has_each_picture_once(tmp_path: Path) -> None:
    """A picture that came from a tar is a duplicate in every other format."""
    table = str(tmp_path / "table")
    for name, (_, write) in WRITERS.items():
        source = SourceConfig(uri=write(tmp_path / name, MANY))
        ingest.run([source], table, IngestConfig(dedup={"near_threshold": None}), SerialExecutor())
    assert sorted(Table.open(table).dataset().to_table()["uid"].to_pylist()) == UIDS
    assert Table.open(table).rejects.counts() == {"Duplicate": (len(WRITERS) - 1) * len(MANY)}
