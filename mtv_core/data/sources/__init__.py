"""Where samples come from. A format is one module here and one line in `READERS`."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtv_core.data.files import filesystem
from mtv_core.data.sources import webdataset
from mtv_core.data.sources.base import RawCaption, RawSample, ShardRef
from mtv_core.data.sources.config import SourceConfig
from mtv_core.report import Reject
from mtv_core.settings import is_local

__all__ = ["READERS", "RawCaption", "RawSample", "ShardRef", "SourceConfig", "content_hash", "expand", "read", "source_name"]

Reader = Callable[[ShardRef, int, Mapping[str, str] | None], Iterator[RawSample | Reject]]

READERS: dict[str, Reader] = {"webdataset": webdataset.read}
_ENDINGS = {".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset"}
_MAX_BRACES = 1_000_000


def read(shard: ShardRef, max_bytes: int, storage_options: Mapping[str, str] | None = None) -> Iterator[RawSample | Reject]:
    """The samples of a shard in their order; a refusal with an empty key says that the shard itself is damaged.

    Raises:
        OSError: it cannot be read now; nothing is wrong with the data.
    """
    return READERS[shard.format](shard, max_bytes, storage_options)


def expand(source: SourceConfig, storage_options: Mapping[str, str] | None = None) -> list[ShardRef]:
    """The shards of a source, sorted by URI. Looks at names, sizes and times only.

    Raises:
        FileNotFoundError: a path is missing, or a folder or glob holds nothing.
        ValueError: the format cannot be told.
    """
    if source.uri.startswith("blocks://"):
        raise ValueError(f"the source {source.uri!r} is not made yet; make its shards with `mtv blocks make` and give the folder")
    found: dict[str, dict[str, Any]] = {}
    for uri in _braces(source.uri):
        found.update(_find(uri, storage_options))
    name = source_name(source)
    return [ShardRef(uri, _identity(found[uri]), int(found[uri]["size"]), name, _format(source, uri)) for uri in sorted(found)]


def content_hash(shard: ShardRef, storage_options: Mapping[str, str] | None = None) -> str:
    """sha256 of all the bytes that a shard is read from: tells a change that left size and time as they were."""
    digest = hashlib.sha256()
    files, path = filesystem(shard.uri, storage_options)
    with files.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def source_name(source: SourceConfig) -> str:
    """The name given, or that of the folder the files lie in."""
    if source.name:
        return source.name
    path = re.split(r"[?]", source.uri, maxsplit=1)[0] if "://" in source.uri else str(Path(source.uri).expanduser().absolute())
    parts = [part for part in path.split("://")[-1].split("/") if part and not re.search(r"[*?\[{]", part)]
    folders = [part for part in parts if not part.endswith(tuple(_ENDINGS))]
    return (folders or parts or ["source"])[-1]


def _format(source: SourceConfig, uri: str) -> str:
    if source.format != "auto":
        return source.format
    for ending, name in _ENDINGS.items():
        if uri.lower().endswith(ending):
            return name
    raise ValueError(f"cannot tell the format of {uri} by its name; expected {', '.join(_ENDINGS)}, or set the source's `format`")


def _find(uri: str, storage_options: Mapping[str, str] | None) -> dict[str, dict[str, Any]]:
    """URI → facts about the file, of all files that `uri` names."""
    local = is_local(uri)
    path = str(Path(uri.removeprefix("file://")).expanduser().absolute()) if local else uri
    files, inner = filesystem(path, storage_options)
    try:
        if re.search(r"[*?\[]", path) and not files.exists(inner):
            matches = files.glob(inner, detail=True)
            advice = "matches no file; check the pattern"
        elif files.isdir(inner):
            matches = {
                name: info for ending in _ENDINGS for name, info in files.glob(f"{inner.rstrip('/')}/*{ending}", detail=True).items()
            }
            advice = f"is a folder without shards ({', '.join(_ENDINGS)})"
        elif files.exists(inner):
            matches = {inner: files.info(inner)}
            advice = ""
        else:
            raise FileNotFoundError(f"the source {uri!r} does not exist; give an existing file, folder or glob of webdataset tars")
    except PermissionError as error:
        raise PermissionError(f"the source {uri!r} may not be read; check its permissions or your credentials ({error})") from None
    facts = {files.unstrip_protocol(name): info for name, info in matches.items() if info.get("type") != "directory"}
    if not facts:
        raise FileNotFoundError(f"the source {uri!r} {advice}")
    if not local:
        return facts
    return {_local(name): {"size": (stat := Path(_local(name)).stat()).st_size, "mtime": stat.st_mtime_ns} for name in facts}


def _local(uri: str) -> str:
    return uri.removeprefix("file://")


def _identity(info: Mapping[str, Any]) -> str:
    """What tells a changed file from the same one, without reading it."""
    for name in ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created"):
        if info.get(name):
            return f"{info['size']}-{str(info[name]).strip(chr(34))}"
    return str(info["size"])


def _braces(uri: str) -> list[str]:
    """`a-{000..002}.tar` and `{x,y}.tar` written out, as webdataset does it."""
    match = re.search(r"\{([^{}]*)\}", uri)
    if not match:
        return [uri]
    inner = match[1]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MAX_BRACES:
            raise ValueError(f"the range {{{inner}}} in the source {uri!r} is empty or too long")
        values = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    else:
        values = inner.split(",")
    return list(itertools.chain.from_iterable(_braces(uri[: match.start()] + value + uri[match.end() :]) for value in values))
