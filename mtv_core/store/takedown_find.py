"""Which rows a takedown is about, and which tags have them.

What counts is what lies on the disk: rows that are deleted but not compacted are found too, and a tag has a row if a data file of its
version holds it. Versions share data files, so every file is read once, and of it only the columns that identify rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceDataset, LanceFragment

from mtv_core.store.dataset import open_dataset
from mtv_core.store.denylist import DenyKey, normalise_url
from mtv_core.store.table import Table
from mtv_core.store.takedown_request import Request

_COLUMNS = ["uid", "sha256", "url", "source", "shard", "key"]


@dataclass(frozen=True)
class Unit:
    """A fragment in one state: its rows lie in `file`, some of them deleted by `deletions`."""

    version: int
    fragment_id: int
    file: str
    deletions: str | None


@dataclass(frozen=True)
class Row:
    """A row that goes."""

    uid: str
    sha256: str
    url: str | None
    source: str
    shard: str
    key: str


@dataclass
class Found:
    """What the table has of a request."""

    rows: dict[str, Row] = field(default_factory=dict)  # by uid
    row_ids: dict[str, int] = field(default_factory=dict)  # uid → stable row id, where it is not deleted
    not_found: dict[str, list[str]] = field(default_factory=dict)  # kind → entries
    shared_urls: set[str] = field(default_factory=set)  # as stored; other rows, which stay, have them too
    by_key: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # key as asked → images it stands for

    def check_keys(self) -> None:
        """Refuse keys of which nobody can tell what they mean.

        Raises:
            ValueError: a key stands for more than one image.
        """
        several = [entry for entry, images in self.by_key.items() if len(images) > 1]
        if several:
            raise ValueError(
                f"{len(several)} of the keys stand for several images, for example {several[0]!r} for {len(self.by_key[several[0]])}: "
                "write shard:key (the shard's file name, URI or id), or name the source"
            )


class Snapshot:
    """All versions of the samples that last: the latest and the tagged ones, with their units."""

    def __init__(self, table: Table, every_version: bool = False) -> None:
        self.table = table
        self.tags = table.tags() if table.exists() else {}
        self.versions: dict[int, list[Unit]] = {}
        self.latest: int | None = None
        self._datasets: dict[int, LanceDataset] = {}
        if not table.exists():
            return
        latest = table.dataset()
        self.latest = int(latest.version)
        wanted = {self.latest, *self.tags.values()}
        if every_version:
            wanted |= {int(version["version"]) for version in latest.versions()}
        for version in sorted(wanted):
            dataset = latest if version == self.latest else open_dataset(table.samples_uri, version, table.storage_options)
            if dataset is None:  # a tag whose version is gone: somebody removed it by hand
                continue
            self._datasets[version] = dataset
            self.versions[version] = [_unit(version, fragment) for fragment in dataset.get_fragments()]

    @property
    def current(self) -> list[Unit]:
        """Units of the latest version."""
        return [] if self.latest is None else self.versions[self.latest]

    def units(self) -> list[Unit]:
        """Every state of every fragment, once; of equal ones that of the latest version."""
        found = {(unit.file, unit.deletions): unit for version in sorted(self.versions) for unit in self.versions[version]}
        return list(found.values())

    def read(self, unit: Unit, columns: Iterable[str]) -> pa.Table:
        """All physical rows; `_rowid` is null for deleted ones."""
        fragment = self.table.fragment(self._datasets[unit.version], unit.fragment_id)
        return fragment.scanner(columns=list(columns), with_row_id=True, include_deleted_rows=True).to_table()

    def num_rows(self, version: int) -> int:
        """Rows of a version, without deleted ones."""
        return int(self._datasets[version].count_rows())

    def next_row_id(self, version: int) -> int:
        """One more than the highest row id of a version; ids grow with every row that is added."""
        highest = -1
        for unit in self.versions[version]:
            found = pc.max(self.read(unit, ["uid"])["_rowid"]).as_py()
            highest = max(highest, -1 if found is None else found)
        return highest + 1


def _unit(version: int, fragment: LanceFragment) -> Unit:
    # The uid is the first column, field 0, and lies in the file that the row was written to; labels lie in files of their own.
    file = next(file.path for file in fragment.data_files() if 0 in file.fields)
    return Unit(version, fragment.fragment_id, file, fragment.deletion_file())


def find(snapshot: Snapshot, request: Request) -> Found:
    """The rows that a request names, and all others of the same images.

    Raises:
        ValueError: a key stands for more than one image.
    """
    found = Found()
    units = snapshot.units()
    hits: dict[str, set[str]] = {kind: set() for kind in request.asked}
    finders = _finders(snapshot.table, request)
    columns = list(dict.fromkeys(["uid", *(name for kind in request.asked for name in finders[kind][0])]))
    for unit in units:
        rows = snapshot.read(unit, columns)
        matches = [(kind, entry, position) for kind in request.asked for entry, position in finders[kind][1](rows)]
        taken = _take(found, snapshot, unit, {position for _, _, position in matches})
        for kind, entry, position in matches:
            hits[kind].add(entry)
            if kind == "keys":
                found.by_key[entry].add(taken[position].sha256)
    found.check_keys()
    _same_images(snapshot, found, units)
    found.not_found = {kind: [entry for entry in getattr(request, kind) if entry not in hits[kind]] for kind in request.asked}
    return found


Finder = tuple[list[str], Callable[[pa.Table], Iterator[tuple[str, int]]]]  # columns it looks at; (entry, position) of its rows


def _finders(table: Table, request: Request) -> dict[str, Finder]:
    urls = defaultdict(list)
    for url in request.urls:
        urls[normalise_url(url)].append(url)
    readings = defaultdict(list)
    for entry, where, key in request.key_readings():
        readings[key].append((entry, where))
    shards = table.ledger.uris() if readings else {}
    return {
        "uids": (["uid"], partial(_equal, "uid", pa.array(request.uids, pa.string()))),
        "images": (["sha256"], partial(_equal, "sha256", pa.array(request.images, pa.string()))),
        "urls": (["url"], partial(_by_url, urls)),
        "keys": (["key", "shard", "source"], partial(_by_key, readings, pa.array(list(readings), pa.string()), shards, request.source)),
    }


def _positions(mask: pa.ChunkedArray) -> list[int]:
    return pc.indices_nonzero(mask.combine_chunks()).to_pylist()


def _equal(column: str, wanted: pa.Array, rows: pa.Table) -> Iterator[tuple[str, int]]:
    for position in _positions(pc.is_in(rows[column], value_set=wanted)):
        yield rows[column][position].as_py(), position


def _by_url(wanted: Mapping[str, list[str]], rows: pa.Table) -> Iterator[tuple[str, int]]:
    for position, url in enumerate(rows["url"].to_pylist()):
        for entry in wanted.get(normalise_url(url), ()) if url else ():
            yield entry, position


def _by_key(
    readings: Mapping[str, list[tuple[str, str | None]]], keys: pa.Array, shards: Mapping[str, str], source: str | None, rows: pa.Table
) -> Iterator[tuple[str, int]]:
    for position in _positions(pc.is_in(rows["key"], value_set=keys)):
        shard, its_source = rows["shard"][position].as_py(), rows["source"][position].as_py()
        if source is not None and its_source != source:
            continue
        names = key_places(shard, its_source, shards.get(shard))
        for entry, where in readings[rows["key"][position].as_py()]:
            if where is None or where in names:
                yield entry, position


def key_places(shard: str, source: str | None, uri: str | None) -> set[str]:
    """What may stand before a key: the shard's id, URI or file name, or the source."""
    return {shard, *([source] if source else []), *([uri, uri.rsplit("/", 1)[-1]] if uri else [])}


def _take(found: Found, snapshot: Snapshot, unit: Unit, positions: Collection[int]) -> dict[int, Row]:
    """Note the rows at some positions of a unit."""
    if not positions:
        return {}
    rows = snapshot.read(unit, _COLUMNS).take(pa.array(sorted(positions), pa.int64())).to_pylist()
    taken = {}
    for position, values in zip(sorted(positions), rows, strict=True):
        row_id = values.pop("_rowid")
        row = taken[position] = found.rows[values["uid"]] = Row(**values)
        if row_id is not None:
            found.row_ids[row.uid] = row_id
    return taken


def _same_images(snapshot: Snapshot, found: Found, units: list[Unit]) -> None:
    """Take every other row of the images too, and see which URLs are not theirs alone."""
    if not found.rows:
        return
    images = pa.array(sorted({row.sha256 for row in found.rows.values()}), pa.string())
    urls = pa.array(sorted({row.url for row in found.rows.values() if row.url}), pa.string())
    for unit in units:
        rows = snapshot.read(unit, ["sha256", "url"] if len(urls) else ["sha256"])
        same = pc.is_in(rows["sha256"], value_set=images)
        _take(found, snapshot, unit, _positions(same))
        if len(urls):
            others = rows.filter(pc.and_(pc.is_in(rows["url"], value_set=urls), pc.invert(same)))
            found.shared_urls |= set(others["url"].to_pylist())


Selector = Callable[[pa.ChunkedArray], list[int]]  # a column of uids → positions of those that go


def by_uid(uids: Collection[str]) -> Selector:
    """Select rows whose uids are known."""
    wanted = pa.array(sorted(uids), pa.string())
    return lambda column: _positions(pc.is_in(column, value_set=wanted))


def by_hash(key: DenyKey, entries: Collection[bytes]) -> Selector:
    """Select rows of whose uids only keyed hashes are known: 2 µs a row of the table."""
    return lambda column: [position for position, uid in enumerate(column.to_pylist()) if key.hash("uid", uid) in entries]


class Holdings:
    """Which units hold rows that go."""

    def __init__(self, snapshot: Snapshot, selector: Selector) -> None:
        self.snapshot = snapshot
        self._held: dict[tuple[str, str | None], dict[int, int | None]] = {}
        for unit in snapshot.units():
            rows = snapshot.read(unit, ["uid"])
            positions = selector(rows["uid"])
            ids = rows["_rowid"].take(pa.array(positions, pa.int64())).to_pylist()
            self._held[unit.file, unit.deletions] = dict(zip(positions, ids, strict=True))

    def of(self, unit: Unit) -> dict[int, int | None]:
        """Position → row id, None if it is deleted, of the rows that a unit holds."""
        return self._held[unit.file, unit.deletions]

    def count(self, version: int) -> tuple[int, int]:
        """(rows on the disk, rows that can be read) of a version."""
        held = [row_id for unit in self.snapshot.versions[version] for row_id in self.of(unit).values()]
        return len(held), sum(row_id is not None for row_id in held)
