"""Refusals that describe samples which are taken down: their uid, key and place. Those rows go; the ledger's counts stay as history."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from mtv_core.store.dataset import open_dataset
from mtv_core.store.denylist import DenyKey, normalise_url
from mtv_core.store.table import Table
from mtv_core.store.takedown_find import Found, key_places
from mtv_core.store.takedown_request import Request

_IDENTITY = ("shard", "key", "stage", "revision")
_COLUMNS = [*_IDENTITY, "uid", "survivor", "location", "message", "error"]
_SAME, _NEAR = "Duplicate", "NearDuplicate"  # Reject.error
_URL = re.compile(r"https?://[^\s'\"<>)\]]+")


@dataclass
class FoundRejects:
    """What the refusals have of a request."""

    identities: set[str] = field(default_factory=set)
    copies: set[str] = field(default_factory=set)  # uids of samples refused as copies of those that go
    places: set[str] = field(default_factory=set)  # where they are
    named: dict[str, set[str]] = field(default_factory=dict)  # kind → entries that a refusal names
    same: dict[str, set[str]] = field(default_factory=dict)  # uid that has the very picture of a named refusal → keys that named it
    near: set[str] = field(default_factory=set)  # uids that have almost the picture of a named refusal


def identity(row: dict[str, str]) -> str:
    """What tells one refusal from all others."""
    return "\0".join(row[name] for name in _IDENTITY)


def find(table: Table, request: Request, found: Found) -> FoundRejects:
    """Refusals of the rows that go, of copies of them, and of samples that were asked for and never got in."""
    result = FoundRejects(named={kind: set() for kind in request.asked})
    dataset = open_dataset(table.rejects.uri, storage_options=table.storage_options)
    if dataset is None:
        return result
    uids = {*found.rows, *request.uids}
    pairs = {(row.shard, row.key) for row in found.rows.values()}
    urls = {normalise_url(url): url for url in request.urls} | {normalise_url(row.url): "" for row in found.rows.values() if row.url}
    readings: dict[str, list[tuple[str, str]]] = {}
    for entry, where, key in request.key_readings():
        if where is not None:  # a key alone says too little of a sample that is not in the table
            readings.setdefault(key, []).append((entry, where))
    shards = table.ledger.uris() if readings else {}
    wanted_uids, wanted_keys = pa.array(sorted(uids), pa.string()), pa.array(sorted({key for _, key in pairs} | set(readings)), pa.string())
    for batch in dataset.scanner(columns=_COLUMNS).to_batches():
        mask = _any(pc.is_in(batch["uid"], wanted_uids), pc.is_in(batch["survivor"], wanted_uids), pc.is_in(batch["key"], wanted_keys))
        if urls:
            mask = _any(mask, pc.match_substring(batch["message"], "http"), pc.match_substring(batch["location"], "http"))
        for row in batch.filter(mask).to_pylist():
            entries = [
                *((("uids", row["uid"]),) if row["uid"] in uids else ()),
                *(
                    ("keys", entry)
                    for entry, where in readings.get(row["key"], ())
                    if where in key_places(row["shard"], None, shards.get(row["shard"]))
                ),
                *(("urls", urls[url]) for url in _urls(row) if url in urls),
            ]
            same_place = row["uid"] is None and (row["shard"], row["key"]) in pairs
            if not entries and row["survivor"] not in uids and not same_place:
                continue
            result.identities.add(identity(row))
            result.places.add(row["location"])
            for kind, entry in entries:
                result.named.setdefault(kind, set()).add(entry)
            if entries and row["survivor"] is not None:
                if row["error"] == _SAME:
                    result.same.setdefault(row["survivor"], set()).update(entry for kind, entry in entries if kind == "keys")
                elif row["error"] == _NEAR:
                    result.near.add(row["survivor"])
            if row["uid"] is not None and row["uid"] not in found.rows:
                result.copies.add(row["uid"])
    return result


def _any(*masks: pa.Array) -> pa.Array:
    mask = pc.fill_null(masks[0], False)
    for other in masks[1:]:
        mask = pc.or_(mask, pc.fill_null(other, False))
    return mask


def _urls(row: dict[str, str]) -> Iterator[str]:
    for text in (row["message"], row["location"]):
        yield from (normalise_url(url) for url in _URL.findall(text))


def positions(table: Table, key: DenyKey, entries: Collection[bytes]) -> dict[int, list[int]]:
    """Fragment → positions of the refusals whose identities' keyed hashes are given."""
    result: dict[int, list[int]] = {}
    dataset = open_dataset(table.rejects.uri, storage_options=table.storage_options)
    if dataset is None or not entries:
        return result
    for batch in dataset.scanner(columns=list(_IDENTITY), with_row_address=True).to_batches():
        for row in batch.to_pylist():
            if key.hash("reject", identity(row)) in entries:
                result.setdefault(row["_rowaddr"] >> 32, []).append(row["_rowaddr"] & 0xFFFFFFFF)
    return result
