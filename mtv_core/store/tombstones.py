"""Tombstones: what became of a tag whose rows were taken down. `<table>/_takedowns/tags/<tag>.json`, kept for good."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from mtv_core.store.denylist import FOLDER

if TYPE_CHECKING:
    from mtv_core.store.table import Table


class Tombstone(BaseModel, frozen=True, extra="forbid"):
    """A tag that is no more, and the one that stands where it stood."""

    tag: str
    version: int = Field(description="the version it named, which is gone too")
    successor: str | None = Field(description="tag made in its place; None if there was nothing to name")
    same_labels: bool = Field(description="whether the successor's labels have the revisions of this tag")
    revisions: dict[str, str] = Field(description="expert → revision of the labels it stood for")
    removed: int = Field(description="rows it had that were taken down")
    left: int = Field(description="rows it had that are still in the table")
    successor_rows: int = Field(description="rows of the successor; more than `left` if rows were added since the tag")
    row_ids: int = Field(description="it had rows with ids below this, so that a later takedown can tell whether it had a row")
    when: datetime
    reason: str
    takedown: str = Field(description="id of the takedown")


class TagForgottenError(FileNotFoundError):
    """The tag was dropped by a takedown. `successor` is the newest tag in its place, if there is one."""

    def __init__(self, message: str, successor: str | None) -> None:
        super().__init__(message)
        self.successor = successor


def path(tag: str) -> str:
    """Where a tag's tombstone is, relative to the table."""
    return f"{FOLDER}/tags/{tag}.json"


def read(table: Table, tag: str) -> Tombstone | None:
    """The tombstone of a tag; None if it was not dropped."""
    if not tag or "/" in tag or tag.startswith("."):
        return None
    try:
        return Tombstone.model_validate_json(table.files.read(path(tag)))
    except FileNotFoundError:
        return None


def read_all(table: Table) -> list[Tombstone]:
    """Every tombstone of a table."""
    folder = f"{FOLDER}/tags"
    return [Tombstone.model_validate_json(table.files.read(f"{folder}/{name}")) for name in table.files.names(folder)]


def write(table: Table, tombstone: Tombstone) -> None:
    """Set it up, or set it up anew."""
    table.files.write(path(tombstone.tag), tombstone.model_dump_json(indent=2).encode())


def newest(table: Table, tombstone: Tombstone) -> str | None:
    """The tag at the end of the chain that begins here: successors may have been dropped in their turn."""
    return _end(table, tombstone)[0]


def _end(table: Table, tombstone: Tombstone) -> tuple[str | None, bool]:
    """The same, and whether its labels have the revisions of the tag that the chain begins with: if every step of the chain kept them."""
    seen = {tombstone.tag}
    same = tombstone.same_labels
    while tombstone.successor is not None:
        following = read(table, tombstone.successor)
        if following is None:
            return tombstone.successor, same
        if following.tag in seen:
            break
        seen.add(following.tag)
        tombstone = following
        same = same and tombstone.same_labels
    return None, False


def missing(table: Table, tag: str) -> FileNotFoundError:
    """Why a tag that is not there cannot be opened, and what to open instead."""
    tombstone = read(table, tag)
    tags = table.tags()
    if tombstone is None:
        return FileNotFoundError(f"the table {table.uri} has no tag {tag!r}; it has {', '.join(sorted(tags)) or 'none: run `mtv label`'}")
    total = tombstone.removed + tombstone.left
    reason = f" ({tombstone.reason})" if tombstone.reason else ""
    said = f"the tag {tag} is gone: {tombstone.removed} of its {total} rows were taken down on {tombstone.when:%Y-%m-%d}{reason}"
    successor, same_labels = _end(table, tombstone)
    if successor not in tags:
        return TagForgottenError(f"{said}. There is no tag in its place; run `mtv label` to make one", None)
    hint = "" if same_labels else ", whose labels may be of other revisions"
    return TagForgottenError(f"{said}. Its successor is {successor}{hint}", successor)
