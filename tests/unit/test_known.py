"""What deduplication is told of a table, against the table read whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from label_tables import make_table

from mtv_core.data.placeholders import name_of
from mtv_core.data.schema import caption_hash
from mtv_core.report import Reject
from mtv_core.store import known
from mtv_core.store.table import Table


def refusal(shard: str, key: str, error: str, survivor: str, uid: str | None = None) -> Reject:
    return Reject(uid=uid, shard=shard, key=key, stage="ingest", error=error, message="", survivor=survivor)


def test_rows_hashes_and_details_after_a_deletion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path / "t", count=24)
    table.dataset().delete("phash in (0, 9, 10, 23)")
    monkeypatch.setattr(known, "_ROWS", 5)
    monkeypatch.setattr(known, "_TAKE", 3)
    rows = table.dataset().to_table(columns=["uid", "sha256", "key", "shard", "phash", "caption"]).to_pylist()
    images = pa.array([rows[i]["sha256"] for i in (0, 3, 8, 9, 19)] + ["none"])
    found = known.of(table, images, [])
    assert found.hashes.tolist() == [row["phash"] for row in rows]
    expected = [{**{name: rows[i][name] for name in ("uid", "sha256", "key", "shard")}, "uri": None, "row": i} for i in (0, 3, 8, 9, 19)]
    assert found.rows.to_pylist() == expected
    order = np.array([19, 0, 7, 7, 12])
    assert found.details(order).to_pylist() == [
        {"uid": rows[i]["uid"], "sha256": rows[i]["sha256"], "caption_hash": caption_hash(rows[i]["caption"])} for i in order
    ]
    assert found.details(np.zeros(0, np.int64)).num_rows == 0


def test_an_empty_table(tmp_path: Path) -> None:
    found = known.of(Table.create_or_open(str(tmp_path)), pa.chunked_array([], pa.string()), ["shard"])
    assert (found.rows.num_rows, len(found.hashes), found.placeholders.num_rows, found.copies(pa.array(["u"])).num_rows) == (0, 0, 0, 0)


def test_refusals_of_other_ingests_count(tmp_path: Path) -> None:
    table = make_table(tmp_path / "t")
    name, other = name_of("aa", 7), name_of("bb", 9)
    table.rejects.append(
        [
            *(refusal("old", f"k{n}", "Duplicate", "u1", f"c{n % 2}") for n in range(5)),
            refusal("old", "k5", "Duplicate", "u2", "c0"),
            refusal("old", "k6", "NearDuplicate", "u1", "c9"),
            refusal("now", "k0", "Duplicate", "u1", "c7"),
            refusal("old", "k7", "Placeholder", name),
            refusal("now", "k1", "Placeholder", other),
        ]
    )
    found = known.of(table, pa.array([], pa.string()), ["now"])
    copies = sorted((row["survivor"], row["uid"], row["copies"]) for row in found.copies(pa.array(["u1", "u3"])).to_pylist())
    assert copies == [("u1", "c0", 3), ("u1", "c1", 2)]
    assert found.placeholders.to_pylist() == [{"name": name, "sha256": "aa", "phash": 7}]
    assert len(known.of(table, pa.array([], pa.string()), []).placeholders) == 2
