"""What a source is, whatever its format: shards that can be told apart, and samples as received."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from mtv_core.data.sources.config import Columns

if TYPE_CHECKING:
    from hashlib import _Hash

CaptionKind = Literal["web", "synthetic"]


@dataclass(frozen=True)
class ShardRef:
    """One file, or one part of a folder, to read as it is now. Another content of the same file is another shard."""

    uri: str  # names the shard for people and in the ledger: the file, or the folder and `#` and the part
    identity: str  # etag, or size and time of change, of everything that is read
    size: int  # bytes
    source: str  # name of the source
    format: str
    columns: Columns = field(default_factory=Columns)
    root: str = ""  # folder the members are relative to, for formats of many files
    members: tuple[str, ...] = ()  # files of a part of a folder, or what else its reader needs to find its samples

    @property
    def id(self) -> str:
        """32 hex digits that stand for this file with this content."""
        return hashlib.sha256(f"{self.uri}\0{self.identity}".encode()).hexdigest()[:32]

    @property
    def reading(self) -> str:
        """16 hex digits of what decides which samples are seen in it: its format and the columns that were named."""
        return hashlib.sha256(f"{self.format} {self.columns.model_dump_json()}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RawCaption:
    """A caption as received; bytes that should be UTF-8."""

    text: bytes
    kind: CaptionKind = "web"


@dataclass(frozen=True)
class RawSample:
    """A sample as received, nothing checked. Captions in the order of the format, the first is the one that counts."""

    key: str
    image: bytes | None
    captions: list[RawCaption] = field(default_factory=list)
    meta: bytes | None = None  # the sample's own JSON, or its other columns as JSON
    document: dict[str, Any] | None = None  # what `meta` says, where its reader has parsed it already
    url: str | None = None  # where the format has a field for it; else it is looked for in `meta`
    license: str | None = None
    location: str = ""  # where a person finds it; default: the shard's URI, `#` and the key
    too_large: int = 0  # bytes of an image that was not read because it is larger than allowed
    problem: tuple[str, str] | None = None  # (reason, message): the sample is there, but its reader could not make sense of it

    @cached_property
    def digest(self) -> _Hash:
        """sha256 of the image, made once. Copy it to add to it."""
        return hashlib.sha256(self.image or b"")

    @property
    def num_bytes(self) -> int:
        """Of image and captions."""
        return len(self.image or b"") + sum(len(caption.text) for caption in self.captions)
