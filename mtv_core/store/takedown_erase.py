"""Rows out of a Lance dataset for good: deleted, compacted, and every version that has them cleaned up; and what lies beside the dataset.

`delete` marks rows, `compact` rewrites the fragments that have marked ones, `clean` removes the versions that still name the old files.
Only after all three no file holds the rows. Each may be killed and run again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
from lance import LanceDataset, LanceOperation
from lance.optimize import Compaction, CompactionOptions

from mtv_core.data.files import filesystem
from mtv_core.executor import Progress
from mtv_core.faults import fault_point
from mtv_core.store.dataset import open_dataset, published_files
from mtv_core.store.denylist import FOLDER, DenyKey, Denylist, normalise_url
from mtv_core.store.table import Table

_TASKS_A_COMMIT = 32
_BATCH_ROWS = 256  # pictures in memory at once
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".svg"}
_TEXTS = {".json", ".jsonl", ".html", ".htm", ".md", ".txt", ".csv", ".yaml", ".yml"}
_PICTURE_INSIDE = b"data:image/"
_UID, _SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])"), re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_URL = re.compile(r"https?://[^\s'\"<>)\]\\]+")
_PLACE = re.compile(r"[^\s\"'<>`]+#[^\s\"'<>`]+|(?<=\")[^\"\n]+(?=\")|(?<=`)[^`\n]+(?=`)")  # a location: shard#key, or all between quotes
_DATASETS = ("samples.lance", "rejects.lance", "shards.lance")
_STAGING = "_staging"
_LOCK = re.compile(r"_locks|.*\.lock")


def delete(table: Table, uri: str, positions: Mapping[int, Collection[int]]) -> int:
    """Mark rows as deleted, all in one commit: fragment → positions among its physical rows. Returns the number of rows.

    By address: Lance keeps the condition of a deletion in its log, and uids have no business there.
    """
    if not positions:
        return 0
    dataset = open_dataset(uri, storage_options=table.storage_options)
    assert dataset is not None
    updated, gone = [], []
    for fragment_id, inside in sorted(positions.items()):
        addresses = ", ".join(str((fragment_id << 32) + position) for position in sorted(inside))
        changed = table.fragment(dataset, fragment_id).delete(f"_rowaddr in ({addresses})")
        if changed is None:
            gone.append(fragment_id)
        else:
            updated.append(changed)
    operation = LanceOperation.Delete(updated, gone, "takedown")
    LanceDataset.commit(dataset, operation, read_version=dataset.version, storage_options=table.lance_options)
    return sum(len(inside) for inside in positions.values())


def compact(table: Table, uri: str, progress: Progress) -> int:
    """Rewrite every fragment that has deleted rows, and no other. Returns how many there were.

    Labels and stable row ids go along; neighbours may become one fragment, of at most twice the rows of the largest.
    """
    done = 0
    while True:
        dataset = open_dataset(uri, storage_options=table.storage_options)
        fragments = dataset.get_fragments() if dataset is not None else []
        affected = [fragment for fragment in fragments if fragment.num_deletions]
        if dataset is None or not affected:
            return done
        options: CompactionOptions = {
            "target_rows_per_fragment": max(fragment.physical_rows for fragment in affected),
            "materialize_deletions": True,
            "materialize_deletions_threshold": 0.0,
            "batch_size": _BATCH_ROWS,
            "excluded_fragment_ids": [fragment.fragment_id for fragment in fragments if not fragment.num_deletions],
        }
        tasks = Compaction.plan(dataset, options).tasks[:_TASKS_A_COMMIT]
        assert tasks, [fragment.fragment_id for fragment in affected]
        rewritten = []
        for task in tasks:
            progress(done, done + len(affected), "fragments rewritten")
            rewritten.append(task.execute(dataset))
            fault_point("takedown.rewritten")
        Compaction.commit(dataset, rewritten)
        fault_point("takedown.compacted")
        done += sum(len(task.fragments) for task in tasks)
        progress(done, done, "fragments rewritten")


def clean(table: Table, uri: str) -> int:
    """Remove all versions but the latest and the tagged ones, and every file that none of those names. Returns bytes.

    Only under the maintenance lock: what a writer has not published yet goes too.
    """
    dataset = open_dataset(uri, storage_options=table.storage_options)
    if dataset is None:
        return 0
    removed = dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False)
    if table.files.local:
        for path in Path(uri).rglob(".tmp*"):  # a file that a killed process was writing; Lance renames it when it is whole
            path.unlink(missing_ok=True)
    return int(removed.bytes_removed)


def strays(table: Table, uri: str) -> list[str]:
    """Data files that no version names."""
    dataset = open_dataset(uri, storage_options=table.storage_options)
    if dataset is None:
        return []
    named: set[str] = set()
    for version in dataset.versions():
        one = open_dataset(uri, int(version["version"]), table.storage_options)
        named |= published_files(one) if one is not None else set()
    return [name for name in table.files.names(f"{uri.rsplit('/', 1)[-1]}/data") if name not in named]


def staged(table: Table) -> list[str]:
    """What is staged, without the locks: names relative to the table."""
    return [f"{_STAGING}/{name}" for name in table.files.names(_STAGING) if not _LOCK.fullmatch(name)]


def sweep_staging(table: Table) -> int:
    """Remove everything that is staged: under the maintenance lock it is of killed runs, which do it again. Returns the number of names."""
    names = staged(table)
    for name in names:
        table.files.remove(name)
    if table.files.local:
        for path in Path(table.uri).rglob(".*.partial"):
            path.unlink(missing_ok=True)
    return len(names)


def pictures(table: Table, key: DenyKey, hashes: Collection[bytes], denied: Denylist) -> list[str]:
    """Files of reports that show pictures, or name what is taken down: relative to the table.

    Nobody can tell who is on a picture of many; the next report draws it anew. Figures and texts without a name in them stay.

    Args:
        table: where.
        key: of the hashes.
        hashes: keyed hashes of uids, and of the places where a person finds the samples.
        denied: the deny-list, with what is taken down.
    """
    return [name for name in _others(table) if _shows(table, name, key, hashes, denied)]


def _others(table: Table) -> Iterator[str]:
    """All files of the table that are neither data, staged, experts, records of exports nor our own."""
    for top in table.files.names(""):
        if top in (*_DATASETS, _STAGING, FOLDER, "_experts", "exports") or _LOCK.fullmatch(top):
            continue
        if table.files.local:
            here = Path(table.files.path(top))
            found = [here] if here.is_file() else [inner for inner in here.rglob("*") if inner.is_file()]
            yield from sorted(str(inner.relative_to(table.uri)) for inner in found)
        else:
            files, path = filesystem(table.files.path(top), table.storage_options)
            files.invalidate_cache()
            yield from sorted(f"{top}{inner[len(path) :]}" for inner in files.find(path))


def _shows(table: Table, name: str, key: DenyKey, hashes: Collection[bytes], denied: Denylist) -> bool:
    suffix = Path(name).suffix.lower()
    if suffix in _PICTURES:
        return True
    if suffix not in _TEXTS:
        return False
    content = table.files.read(name)
    if _PICTURE_INSIDE in content:
        return True
    text = content.decode(errors="replace")
    return (
        any(key.hash("uid", uid) in hashes for uid in set(_UID.findall(text)))
        or any(key.hash("place", place) in hashes for found in set(_PLACE.findall(text)) for place in (found, *_cut(found)))
        or any(denied.has("image", sha256) for sha256 in set(_SHA256.findall(text)))
        or any(denied.has("url", normalise_url(url)) for url in set(_URL.findall(text)))
    )


def _cut(text: str) -> list[str]:
    """What stands before the message in 'location: message'."""
    parts = text.split(": ")
    return [": ".join(parts[:end]).rstrip(":,.;") for end in range(1, len(parts) + 1)]


def reject_names(table: Table, key: DenyKey, uids: Collection[bytes]) -> bool:
    """Whether a refusal still names one of the given uids, by their keyed hashes."""
    dataset = open_dataset(table.rejects.uri, storage_options=table.storage_options)
    if dataset is None or not uids:
        return False
    for batch in dataset.scanner(columns=["uid", "survivor"]).to_batches():
        for name in ("uid", "survivor"):
            if any(key.hash("uid", uid) in uids for uid in pc.unique(batch[name].drop_null()).to_pylist()):
                return True
    return False
