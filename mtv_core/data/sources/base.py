"""What a source is, whatever its format: shards that can be told apart, and samples as received."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ShardRef:
    """One file to read, as it is now. Another content of the same file is another shard."""

    uri: str
    identity: str  # etag, or size and time of change
    size: int  # bytes
    source: str  # name of the source
    format: str

    @property
    def id(self) -> str:
        """32 hex digits that stand for this file with this content."""
        return hashlib.sha256(f"{self.uri}\0{self.identity}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RawSample:
    """A sample as received, nothing checked. Captions in the order of the format, the first is the one that counts."""

    key: str
    image: bytes | None
    captions: list[bytes] = field(default_factory=list)
    meta: bytes | None = None  # the sample's own JSON
    too_large: int = 0  # bytes of a member that was not read because it is larger than allowed
