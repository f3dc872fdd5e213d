"""Takedown: samples out of a table for good, and kept out.

    lock         exclusive; refused while an ingest or a labelling writes
    journal      what is to be done, as keyed hashes                       from here on a kill leaves something to resume
    deny-list    a later ingest refuses them, whatever becomes of the rest
    refusals     those that describe them are deleted
    rows         deleted in one commit, and the fragments that held them rewritten
    tags         every tag with such a row: a successor, a tombstone, and the tag is dropped
    clean-up     old versions, files that no version names, staged work, pictures of reports
    verify       no version, no data file, no refusal has them; only now the journal says done

A kill at any line leaves a journal that is not done. The same command, or `resume`, does every step again: each finds what is left of its
work, by the hashes and by what lies in the files, never by what a step remembers of having done.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from mtv_core.executor import Progress, silent
from mtv_core.faults import fault_point
from mtv_core.store import denylist, locks, takedown_erase, takedown_find, takedown_journal, takedown_rejects, tombstones
from mtv_core.store.dataset import explain
from mtv_core.store.denylist import DenyKey, Denylist
from mtv_core.store.table import Table
from mtv_core.store.takedown_find import Found, Holdings, Selector, Snapshot, by_hash, by_uid
from mtv_core.store.takedown_journal import Journal, TagLoss, decode, encode
from mtv_core.store.takedown_rejects import FoundRejects
from mtv_core.store.takedown_request import Request
from mtv_core.store.tombstones import Tombstone

WHAT = "a takedown"


@dataclass
class Plan:
    """What a takedown would do. Lives in memory only: it names the samples."""

    request: Request
    found: Found = field(default_factory=Found)
    rejects: FoundRejects = field(default_factory=FoundRejects)
    survivors: set[str] = field(default_factory=set)  # uids of what has the very picture of a named refusal, which goes too
    places: set[str] = field(default_factory=set)  # where a person finds the samples: shard#key
    tags: dict[str, TagLoss] = field(default_factory=dict)
    earlier: dict[str, int] = field(default_factory=dict)
    fragments: int = 0  # of the latest version, to be rewritten
    versions: int = 0  # to be removed
    files: list[str] = field(default_factory=list)  # staged things and pictures to be removed
    denied_before: int = 0  # entries of the request that are on the deny-list already

    @property
    def not_found(self) -> dict[str, list[str]]:
        """Kind → entries that neither a row nor a refusal has."""
        named = self.rejects.named
        return {kind: left for kind, some in self.found.not_found.items() if (left := [e for e in some if e not in named.get(kind, ())])}

    @cached_property
    def denied(self) -> dict[denylist.Kind, set[str]]:
        """What goes on the deny-list: entries as asked, found or not; images, URLs and uids of the rows; copies that were refused.

        A row's URL is left out if other rows, which stay, have it too: then it is not the image's own. A key says nothing of an image.
        """
        rows = self.found.rows.values()
        return {
            "image": {*self.request.images, *(row.sha256 for row in rows)},
            "url": {*self.request.urls, *(row.url for row in rows if row.url and row.url not in self.found.shared_urls)},
            "uid": {*self.request.uids, *self.survivors, *self.rejects.copies, *(row.uid for row in rows)},
        }

    @property
    def near(self) -> list[str]:
        """Uids of rows that stay and have almost the picture of a named refusal: a person must look at them."""
        return sorted(self.rejects.near - self.found.rows.keys())

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remove; entries may still be new to the deny-list."""
        return not self.found.rows and not self.rejects.identities


def plan(table: Table, request: Request) -> Plan:
    """What a takedown would do, as the table is now. Changes nothing and takes no lock.

    Raises:
        ValueError: a key stands for several images, or the deny-list cannot be read.
    """
    found = Plan(request)
    snapshot = Snapshot(table)
    _find(table, snapshot, found)
    shards = table.ledger.uris() if found.found.rows else {}
    found.places = found.rejects.places | {f"{shards.get(row.shard)}#{row.key}" for row in found.found.rows.values()}
    known = Denylist.load(table)
    found.denied_before = sum(known.has(kind, value) for kind, value in _asked(request))
    if found.found.rows:
        held = Holdings(snapshot, by_uid(found.found.rows))
        found.tags = _tags(snapshot, held)
        ids = found.found.row_ids.values()
        gone = {stone.tag: sum(row_id < stone.row_ids for row_id in ids) for stone in tombstones.read_all(table)}
        found.earlier = {tag: count for tag, count in sorted(gone.items()) if count and tag not in found.tags}
        found.fragments = sum(bool(held.of(unit)) for unit in snapshot.current)
    if table.exists():
        kept = {snapshot.latest, *(version for tag, version in snapshot.tags.items() if tag not in found.tags)}
        found.versions = sum(int(version["version"]) not in kept for version in table.dataset().versions())
    key = DenyKey(secrets.token_bytes(32))  # of this plan alone: nothing is written
    denied = Denylist((*known.lists, (key, denylist.hashes(key, found.denied))))
    hashes = denylist.unpack(denylist.hashes(key, {"uid": found.found.rows, "place": found.places}))
    found.files = takedown_erase.staged(table) + takedown_erase.pictures(table, key, hashes, denied)
    return found


def _find(table: Table, snapshot: Snapshot, plan: Plan) -> None:
    """Rows and refusals. A refused copy has no row, but its picture has: that one is asked for too, until nothing is new."""
    request = plan.request
    while True:
        found = plan.found = takedown_find.find(snapshot, request)
        plan.rejects = takedown_rejects.find(table, request, found)
        for uid, entries in plan.rejects.same.items():
            for entry in entries if uid in found.rows else ():
                found.by_key[entry].add(found.rows[uid].sha256)
        found.check_keys()
        new = plan.rejects.same.keys() - set(request.uids)
        if not new:
            break
        plan.survivors |= new
        request = request.model_copy(update={"uids": [*request.uids, *sorted(new)]})
    asked = set(plan.request.uids)
    found.not_found["uids"] = [uid for uid in found.not_found.get("uids", ()) if uid in asked]


def _asked(request: Request) -> list[tuple[denylist.Kind, str]]:
    return [
        *(("uid", uid) for uid in request.uids),
        *(("image", image) for image in request.images),
        *(("url", denylist.normalise_url(url)) for url in request.urls),
    ]


def run(table: Table, request: Request, reason: str = "", progress: Progress = silent) -> list[Journal]:
    """Take down what is asked for, after finishing what a killed takedown left. Returns the journals of both, this one last.

    Raises:
        OSError: an ingest or a labelling writes to the table (it says who), or the table cannot be written.
        ValueError: a key stands for several images, or the key of the deny-list is not at hand.
        RuntimeError: something is still there at the end; run it again.
    """
    with locks.maintenance(table, WHAT) as lease:
        journals = [_finish(table, journal, lease, progress) for journal in takedown_journal.pending(table)]
        wanted = plan(table, request)
        key = denylist.make_key(table)
        journal = _journal(table, wanted, key, reason)
        if wanted.empty and not journal.num_denied:
            return [*journals, journal.ended_now()]  # nothing to do, and nothing to keep book of
        lease.check()
        with _explained(table):
            journal.save(table)
        fault_point("takedown.begun")
        return [*journals, _finish(table, journal, lease, progress, by_uid(wanted.found.rows))]


def resume(table: Table, progress: Progress = silent) -> list[Journal]:
    """Finish takedowns that were killed; nothing happens if there is none. Raises as `run`."""
    if not takedown_journal.pending(table):
        return []
    with locks.maintenance(table, WHAT) as lease:
        return [_finish(table, journal, lease, progress) for journal in takedown_journal.pending(table)]


def _journal(table: Table, wanted: Plan, key: DenyKey, reason: str) -> Journal:
    entries = denylist.hashes(key, wanted.denied)
    return Journal(
        reason=reason,
        asked=wanted.request.asked,
        not_found={kind: len(entries) for kind, entries in wanted.not_found.items()},
        key_id=key.id,
        rows=encode(denylist.hashes(key, {"uid": wanted.found.rows})),
        rejects=encode(denylist.hashes(key, {"reject": wanted.rejects.identities})),
        places=encode(denylist.hashes(key, {"place": wanted.places})),
        denied=encode(entries),
        tags=wanted.tags,
        earlier=wanted.earlier,
        num_rows=len(wanted.found.rows),
        num_rejects=len(wanted.rejects.identities),
        num_denied=denylist.num_new(table, key, entries),
        fragments=wanted.fragments,
    )


@contextlib.contextmanager
def _explained(table: Table) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(error, table.uri) from error


def _finish(table: Table, journal: Journal, lease: locks.Lease, progress: Progress, selector: Selector | None = None) -> Journal:
    """Every step from the deny-list on. `selector` finds the rows by their uids where those are known, which is quicker."""
    key = _key_of(table, journal)
    rows = denylist.unpack(decode(journal.rows))
    selector = selector or by_hash(key, rows)
    with _explained(table):
        denylist.add(table, key, decode(journal.denied))
        fault_point("takedown.denied")

        refusals = takedown_rejects.positions(table, key, denylist.unpack(decode(journal.rejects)))
        takedown_erase.delete(table, table.rejects.uri, refusals)
        fault_point("takedown.rejects_deleted")
        takedown_erase.compact(table, table.rejects.uri, silent)

        lease.check()
        if rows:
            _delete_rows(table, selector)
        fault_point("takedown.deleted")
        lease.check()
        takedown_erase.compact(table, table.samples_uri, progress)

        lease.check()
        if rows:
            _drop_tags(table, journal, selector)
        lease.check()
        for uri in (table.samples_uri, table.rejects.uri):
            journal.bytes_removed += takedown_erase.clean(table, uri)
            fault_point("takedown.cleaned")
        journal.files += takedown_erase.sweep_staging(table)
        hashes = rows | denylist.unpack(decode(journal.places))
        for name in takedown_erase.pictures(table, key, hashes, Denylist.load(table)):
            table.files.remove(name)
            journal.files += 1
            fault_point("takedown.swept")
        _verify(table, key, rows)
        fault_point("takedown.verified")
        journal.close(table)
    fault_point("takedown.done")
    return journal


def _key_of(table: Table, journal: Journal) -> DenyKey:
    for key in denylist.keys(table):
        if key.id == journal.key_id:
            return key
    raise ValueError(
        f"the takedown {journal.id} was begun with a key that is not at hand (id {journal.key_id}): set {denylist.KEY_VARIABLE} "
        "to the value it had then, and resume"
    )


def _delete_rows(table: Table, selector: Selector) -> None:
    snapshot = Snapshot(table)
    held = Holdings(snapshot, selector)
    positions = {unit.fragment_id: [at for at, row_id in held.of(unit).items() if row_id is not None] for unit in snapshot.current}
    takedown_erase.delete(table, table.samples_uri, {fragment: inside for fragment, inside in positions.items() if inside})


def _tags(snapshot: Snapshot, held: Holdings) -> dict[str, TagLoss]:
    """The tags with rows that go, on the disk or to be read."""
    losses = {}
    for tag, version in sorted(snapshot.tags.items()):
        if version not in snapshot.versions:
            continue
        on_disk, readable = held.count(version)
        if on_disk:
            losses[tag] = TagLoss(version=version, removed=readable, left=snapshot.num_rows(version) - readable)
    return losses


def _drop_tags(table: Table, journal: Journal, selector: Selector) -> None:
    """A successor, a tombstone, and the tag is dropped, one tag after the other. Tags made since the plan are seen too."""
    snapshot = Snapshot(table)
    journal.tags = {**_tags(snapshot, Holdings(snapshot, selector)), **journal.tags}
    for tag, loss in journal.tags.items():
        if tag not in snapshot.tags:  # dropped before a kill
            stone = tombstones.read(table, tag)
            journal.successors[tag] = stone.successor if stone else None
            continue
        revisions = table.tag_revisions(tag)
        successor, same = _successor(table, revisions)
        stone = Tombstone(
            tag=tag,
            version=loss.version,
            successor=successor,
            same_labels=same,
            revisions=revisions,
            removed=loss.removed,
            left=loss.left,
            successor_rows=table.num_rows if successor else 0,
            row_ids=snapshot.next_row_id(loss.version),
            when=datetime.now(UTC),
            reason=journal.reason,
            takedown=journal.id,
        )
        tombstones.write(table, stone)
        journal.successors[tag] = successor
        fault_point("takedown.tombstoned")
        table.dataset().tags.delete(tag)
        fault_point("takedown.untagged")


def _successor(table: Table, revisions: dict[str, str]) -> tuple[str | None, bool]:
    """A tag of what is left, with labels of the same revisions, else with those the table has now; and whether they are the same.

    A tag that was allowed to mix labels gets a successor that does; rows that are not labelled yet get none.
    """
    if table.num_rows == 0:
        return None, False
    counts = table.label_counts()
    complete = all(counts.get(expert, {}).get(revision, 0) == table.num_rows for expert, revision in revisions.items())
    if complete:
        return table.tag(revisions), True
    accepted = {expert: one.revision for expert, one in table.accepted().items()}
    try:
        return table.tag(accepted), accepted == revisions
    except ValueError:
        return None, False


def _verify(table: Table, key: DenyKey, rows: set[bytes]) -> None:
    """Look at everything that is left, from scratch.

    Raises:
        RuntimeError: something is still there. It was made while the takedown ran; resuming it takes that away too.
    """
    problems = []
    if rows:
        snapshot = Snapshot(table, every_version=True)
        held = Holdings(snapshot, by_hash(key, rows))  # not by what found them first
        problems += [f"version {version} has rows of it" for version in snapshot.versions if held.count(version)[0]]
    problems += [f"the file {name} belongs to no version" for name in takedown_erase.strays(table, table.samples_uri)]
    problems += ["a refusal names it"] if takedown_erase.reject_names(table, key, rows) else []
    problems += [f"{name} is there" for name in takedown_erase.staged(table)]
    if problems:
        raise RuntimeError(f"not everything is gone from {table.uri}: {'; '.join(problems[:5])}. Run `mtv forget --resume`")
