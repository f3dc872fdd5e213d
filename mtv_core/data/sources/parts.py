"""Folders of single images, cut into parts: what a member of a part is, where a part ends, and what its members give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from mtv_core.data.sources.access import Options
from mtv_core.data.sources.base import RawCaption, RawSample, ShardRef
from mtv_core.data.sources.config import SourceConfig
from mtv_core.data.sources.format import Samples
from mtv_core.data.sources.listing import FileInfo
from mtv_core.data.sources.members import Members, UnsafePathError, Wanted
from mtv_core.data.sources.records import printable

_PART = 1024  # members, on average


@dataclass(frozen=True)
class Member:
    """One sample of a part: an image file and what is said of it. A sample without one of them is a member too, to be refused."""

    key: str  # name of the image, relative to the root
    size: int | None  # bytes; None: there is no such file
    files: tuple[tuple[str, int], ...] = ()  # files with captions, beside the image: name, bytes
    rows: tuple[tuple[str, int, int], ...] = ()  # file, and first byte and length of a row in it; or, of a table, row and 0
    said: dict[str, Any] = field(default_factory=dict)  # what is known already: captions [[text, kind], …], url, license, meta
    problem: tuple[str, str] | None = None

    def encode(self) -> str:
        """As one line, without what is not there."""
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, (), {})})

    @classmethod
    def decode(cls, line: str) -> Member:
        """Back."""
        found = json.loads(line)
        problem = found.get("problem")
        return cls(
            found["key"],
            found.get("size"),
            tuple((name, size) for name, size in found.get("files", ())),
            tuple((name, start, length) for name, start, length in found.get("rows", ())),
            found.get("said", {}),
            (problem[0], problem[1]) if problem else None,
        )


def cut(members: Iterable[tuple[Member, str]], root: str, uri: str, form: str, source: SourceConfig, name: str) -> list[ShardRef]:
    """Sorted members, each with a stamp of all its content, → the parts of a folder.

    A part begins at a member whose name's hash says so, one in 1024. So a file that is added or removed changes the one part it is in
    (or cuts one in two, or joins two), whatever the size of the folder; with a number of buckets that grows all parts would change. And the
    members of a part are neighbours, in the folder and mostly in what describes them.
    """
    parts: list[ShardRef] = []
    lines: list[str] = []
    stamps, size, label = hashlib.sha256(), 0, "first"

    def close() -> None:
        if lines:
            parts.append(
                ShardRef(f"{uri}#part-{label}", stamps.hexdigest()[:32], size, name, form, source.columns, root=root, members=tuple(lines))
            )

    for member, stamp in members:
        hashed = hashlib.sha256(printable(member.key).encode()).digest()
        if int.from_bytes(hashed[:8], "big") % _PART == 0:
            close()
            lines, stamps, size, label = [], hashlib.sha256(), 0, hashed.hex()[16:28]
        lines.append(member.encode())
        stamps.update(f"{printable(member.key)}\0{stamp}\0".encode(errors="replace"))
        size += member.size or 0
    close()
    return parts


def stamp(*files: FileInfo | None, more: str = "") -> str:
    """What changes when one of a sample's files does."""
    return "\0".join([*(f"{file.size}-{file.stamp}" for file in files if file is not None), more])


def samples(shard: ShardRef, members: list[Member], said: Iterable[dict[str, Any]], max_bytes: int, storage_options: Options) -> Samples:
    """The samples of a part.

    Args:
        shard: the part.
        members: of the part.
        said: what there is to each member: `captions: list[RawCaption]`, `url`, `license`, `meta: bytes`, `problem`.
        max_bytes: larger images are not read.
        storage_options: of the store.
    """
    reader = Members(shard.root, max_bytes, storage_options)
    wanted = (None if one.size is None or one.size > max_bytes else Wanted(one.key, one.size) for one in members)
    for member, image, facts in zip(members, reader.read_all(wanted), said, strict=True):
        yield _sample(shard, member, image, facts, max_bytes)


def _sample(shard: ShardRef, member: Member, image: bytes | UnsafePathError | None, facts: dict[str, Any], max_bytes: int) -> RawSample:
    problem = member.problem or facts.get("problem")
    if isinstance(image, UnsafePathError):
        image, problem = None, ("UnsafePath", str(image))
    too_large = 0
    if member.size is not None:
        too_large = member.size if member.size > max_bytes else len(image) if image is not None and len(image) > max_bytes else 0
    return RawSample(
        key=printable(member.key),
        image=None if too_large else image,
        captions=facts.get("captions", []),
        meta=facts.get("meta"),
        url=facts.get("url"),
        license=facts.get("license"),
        location=printable(f"{shard.root.rstrip('/')}/{member.key}"),
        too_large=too_large,
        problem=problem,
    )


def captions(pairs: Iterable[tuple[str, str]]) -> list[RawCaption]:
    """Captions that travelled as text."""
    return [RawCaption(text.encode(errors="surrogatepass"), "synthetic" if kind == "synthetic" else "web") for text, kind in pairs]
