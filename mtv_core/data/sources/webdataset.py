"""Webdataset tars, as img2dataset writes them: `KEY.jpg`, `KEY.txt`, `KEY.json`, the members of a sample side by side.

Read as a stream, so a shard may be of any size and in any store. A tar that stops in the middle gives what came whole before that.
"""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mtv_core.data.files import filesystem
from mtv_core.data.sources.base import RawCaption, RawSample, ShardRef
from mtv_core.report import Reject
from mtv_core.settings import is_local

IMAGES = ("jpg", "jpeg", "png", "webp")
_CAPTIONS = ("txt", "caption")
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # key up to the first dot of the base name, extension after it
_BUFFER = 1 << 20  # bytes read at once; tarfile itself copies its whole buffer at every read, so that one stays small


class _Member(tarfile.TarInfo):
    """Remembers how the archive ended: tarfile takes a broken header in the middle for an end like any other."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            tarfile_.ended_by = error
            raise


@contextlib.contextmanager
def _open(shard: ShardRef, storage_options: Mapping[str, str] | None) -> Iterator[IO[bytes]]:
    if is_local(shard.uri):
        with Path(shard.uri).open("rb", buffering=_BUFFER) as file:
            yield file
        return
    files, path = filesystem(shard.uri, storage_options)
    with files.open(path, "rb", block_size=8 * _BUFFER, cache_type="readahead") as file:
        yield file


def _members(file: IO[bytes], max_bytes: int) -> Iterator[tuple[str, str, bytes | int]]:
    """(key, extension, content) of every file member; its size instead of a content that is too large.

    Raises:
        tarfile.TarError, EOFError, zlib.error: the archive is damaged from here on.
    """
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
            name = _MEMBER.fullmatch(member.name)
            if not member.isreg() or not name or "__MACOSX/" in member.name:
                continue
            if member.size > max_bytes:
                yield name[1], name[2].lower(), member.size
                continue
            content = tar.extractfile(member)
            assert content is not None
            yield name[1], name[2].lower(), content.read()
        if not isinstance(getattr(tar, "ended_by", None), tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("there is no end-of-archive mark")


def read(shard: ShardRef, max_bytes: int, storage_options: Mapping[str, str] | None = None) -> Iterator[RawSample | Reject]:
    """The samples of a tar in their order. Members larger than `max_bytes` are not read.

    The sample at which a damaged tar stops is left out, since nobody knows whether it was whole; the refusal of the shard says where.
    """
    key: str | None = None
    parts: dict[str, bytes | int] = {}
    whole = 0
    with _open(shard, storage_options) as file:
        try:
            for member_key, extension, content in _members(file, max_bytes):
                if key is not None and member_key != key:
                    yield _sample(key, parts)
                    whole, parts = whole + 1, {}
                key = member_key
                parts.setdefault(extension, content)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            yield Reject(
                shard=shard.id,
                key="",
                location=shard.uri,
                stage="ingest",
                error="TruncatedShard",
                message=f"the tar is cut or damaged after {whole} samples ({error}), which were kept; copy it again, and the next ingest "
                "takes the rest",
            )
            return
    if key is not None:
        yield _sample(key, parts)


def _sample(key: str, parts: dict[str, bytes | int]) -> RawSample:
    image = next((parts[extension] for extension in IMAGES if extension in parts), None)
    captions = [RawCaption(content) for extension in _CAPTIONS if isinstance(content := parts.get(extension), bytes)]
    meta = parts.get("json")
    if not captions and isinstance(meta, bytes):
        captions = _caption_of(meta)
    return RawSample(
        key=key.encode(errors="surrogateescape").decode(errors="backslashreplace"),  # a member's name may be any bytes
        image=image if isinstance(image, bytes) else None,
        captions=captions,
        meta=meta if isinstance(meta, bytes) else None,
        too_large=image if isinstance(image, int) else 0,
    )


def _caption_of(meta: bytes) -> list[RawCaption]:
    """img2dataset repeats the caption in the JSON; some tools write it only there."""
    try:
        document = json.loads(meta)
    except (ValueError, RecursionError):
        return []
    caption = document.get("caption") if isinstance(document, dict) else None
    return [RawCaption(caption.encode(errors="surrogatepass"))] if isinstance(caption, str) else []
