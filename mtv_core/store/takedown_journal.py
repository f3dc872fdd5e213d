"""The journal of a takedown: what is to be done and what was, so that a killed one can be finished. `<table>/_takedowns/<id>.json`.

It names nobody. Rows and refusals are in it as keyed hashes (`mtv_core.store.denylist`) while the work is going on, and as numbers
after that; tags and runs are names of ours. The reason is kept as it was given.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field

from mtv_core.runs import new_run_id
from mtv_core.store.denylist import FOLDER

if TYPE_CHECKING:
    from mtv_core.store.table import Table

_NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}\.json")


class TagLoss(BaseModel, frozen=True, extra="forbid"):
    """A tag that has rows that go."""

    version: int
    removed: int = Field(description="rows of it that go")
    left: int = Field(description="rows of it that stay")


class Journal(BaseModel, extra="forbid"):
    """One takedown."""

    id: str = Field(default_factory=new_run_id)
    state: Literal["begun", "done"] = "begun"
    started: datetime = Field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None
    reason: str = ""
    asked: dict[str, int] = Field(default_factory=dict, description="kind → entries")
    not_found: dict[str, int] = Field(default_factory=dict, description="kind → entries that the table had nothing of")
    key_id: str = Field(description="id of the key of the hashes below")
    rows: str = Field("", description="keyed hashes of uids, base64; emptied at the end")
    rejects: str = Field("", description="keyed hashes of refusals, base64; emptied at the end")
    places: str = Field("", description="keyed hashes of where the samples came from, base64; emptied at the end")
    denied: str = Field("", description="entries for the deny-list, base64; emptied at the end")
    tags: dict[str, TagLoss] = Field(default_factory=dict, description="tags with rows that go")
    earlier: dict[str, int] = Field(default_factory=dict, description="tags that had them and were dropped before → rows")
    successors: dict[str, str | None] = Field(default_factory=dict, description="dropped tag → the tag in its place")
    num_rows: int = Field(0, description="rows that go")
    num_rejects: int = Field(0, description="refusals that go")
    num_denied: int = Field(0, description="new entries of the deny-list")
    fragments: int = Field(0, description="fragments rewritten")
    files: int = Field(0, description="staged things and files of reports removed")
    bytes_removed: int = Field(0, description="size of the files that were cleaned up")

    def save(self, table: Table) -> None:
        """Write it, whole or not at all."""
        table.files.write(f"{FOLDER}/{self.id}.json", self.model_dump_json(indent=2).encode())

    def ended_now(self) -> Journal:
        """The same, done: only the numbers are kept."""
        self.rows = self.rejects = self.places = self.denied = ""
        self.state, self.ended = "done", datetime.now(UTC)
        return self

    def close(self, table: Table) -> None:
        """The work is done and verified."""
        self.ended_now().save(table)


def read_all(table: Table) -> list[Journal]:
    """Every takedown of a table, oldest first."""
    names = [name for name in table.files.names(FOLDER) if _NAME.fullmatch(name)]
    return [Journal.model_validate_json(table.files.read(f"{FOLDER}/{name}")) for name in names]


def pending(table: Table) -> list[Journal]:
    """Takedowns that were killed before their end."""
    return [journal for journal in read_all(table) if journal.state != "done"]


def encode(entries: bytes) -> str:
    """Packed entries as the journal keeps them."""
    return base64.b64encode(entries).decode()


def decode(text: str) -> bytes:
    """Packed entries from the journal."""
    return base64.b64decode(text)
