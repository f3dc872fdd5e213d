"""Exact duplicates: one row an image. Deterministic, so neither the order of shards nor the number of workers matters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A staged row. The order of candidates of one image is (uid, uri, key, position)."""

    uid: str
    uri: str  # of the shard
    key: str
    position: int  # row in the staged shard
    shard: str  # id of the shard
    sha256: str  # of the image as received

    @property
    def rank(self) -> tuple[str, str, str, int]:
        """Smallest survives."""
        return (self.uid, self.uri, self.key, self.position)


@dataclass(frozen=True)
class Known:
    """A row of the table with the image of a candidate."""

    uid: str
    shard: str
    key: str


@dataclass(frozen=True)
class Verdict:
    """What becomes of every candidate, in the order given."""

    survivors: list[Candidate]  # to be added
    published: list[Candidate]  # in the table already, added by an earlier attempt at this very shard
    again: list[Candidate]  # in the table already, from an earlier state of the same file
    duplicates: list[tuple[Candidate, str]]  # with the uid of the row kept instead


def survivors(candidates: Sequence[Candidate], known: Iterable[tuple[str, Known]], shard_uris: Mapping[str, str]) -> Verdict:
    """Decide: rows in the table win; else the candidate with the smallest uid, then URI, key and position.

    The slow truth: walk the candidates in that order and keep each whose image is neither in the table nor kept.

    Args:
        candidates: staged rows.
        known: (sha256, row) of the table, at least for the images of the candidates.
        shard_uris: shard id → URI of the ledger's shards, to know a changed file again.
    """
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.sha256].append(candidate)
    table = {sha256: row for sha256, row in known if sha256 in groups}
    kept: set[Candidate] = set()
    published: set[Candidate] = set()
    again: set[Candidate] = set()
    survivor: dict[str, str] = {}
    for sha256, group in groups.items():
        group.sort(key=lambda candidate: candidate.rank)
        row = table.get(sha256)
        if row is None:
            kept.add(group[0])
            survivor[sha256] = group[0].uid
            continue
        survivor[sha256] = row.uid
        same = [candidate for candidate in group if (candidate.uid, candidate.key) == (row.uid, row.key)]
        own = [candidate for candidate in same if candidate.shard == row.shard]
        old = [candidate for candidate in same if candidate.uri == shard_uris.get(row.shard)]
        published.update(own[:1])
        again.update([] if own else old[:1])
    spoken = kept | published | again
    return Verdict(
        survivors=[candidate for candidate in candidates if candidate in kept],
        published=[candidate for candidate in candidates if candidate in published],
        again=[candidate for candidate in candidates if candidate in again],
        duplicates=[(candidate, survivor[candidate.sha256]) for candidate in candidates if candidate not in spoken],
    )
