"""Which shards a source has: its URI written out, looked up, and each file or folder recognised."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mtv_core.data.sources.access import Options, shown
from mtv_core.data.sources.base import ShardRef
from mtv_core.data.sources.config import SourceConfig
from mtv_core.data.sources.format import Format
from mtv_core.data.sources.listing import FileInfo, Folder, locate_all

_MAX_BRACES = 1_000_000
_ARCHIVES = {".zip": "unzip it", ".7z": "unpack it", ".rar": "unpack it"}


class Finder:
    """Knows all formats."""

    def __init__(self, formats: Mapping[str, Format], storage_options: Options = None) -> None:
        self.formats, self.storage_options = formats, storage_options

    def expand(self, source: SourceConfig) -> list[ShardRef]:
        """The shards of a source, sorted by URI; see `mtv_core.data.sources.expand`."""
        if source.uri.startswith("blocks://"):
            raise ValueError(f"the source {source.uri!r} is not made yet; make its shards with `mtv blocks make` and give the folder")
        uris = braces(source.uri)
        found: dict[str, ShardRef] = {}
        name = source_name(source, self.formats)
        for uri, place in zip(uris, locate_all(uris, self.storage_options), strict=True):
            for shard in self._shards(uri, place, source, name):
                found[shard.uri] = shard
        for form in {shard.format for shard in found.values()}:
            self.formats[form].check(source.columns)
        for uri in found:
            try:
                uri.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the name of {uri!r} is not UTF-8; rename it") from None
        return [found[uri] for uri in sorted(found)]

    def _shards(self, uri: str, place: FileInfo | Folder | list[FileInfo], source: SourceConfig, name: str) -> Sequence[ShardRef]:
        if isinstance(place, FileInfo):
            return self._of_file(source, place).file_shards(place, source, name, self.storage_options)
        if isinstance(place, Folder):
            return self._folder(uri, place, source, name)
        files = [file for file in place if file.kind == "file"]
        if not files:  # folders only
            return [shard for one in place for shard in self._shards(uri, locate_all([one.name], self.storage_options)[0], source, name)]
        return self._files(uri, files, source, name)

    def _files(self, uri: str, files: list[FileInfo], source: SourceConfig, name: str) -> Sequence[ShardRef]:
        """What a glob matched: what stands beside shards, as a folder's, is left out."""
        if source.format == "auto":
            form, claimed = self._recognise(uri, Folder("", files, self.storage_options))
        else:
            form, claimed = self.formats[source.format], files
        return [shard for file in claimed for shard in form.file_shards(file, source, name, self.storage_options)]

    def _folder(self, uri: str, folder: Folder, source: SourceConfig, name: str) -> Sequence[ShardRef]:
        if source.format == "auto":
            form, claimed = self._recognise(uri, folder)
        else:
            form = self.formats[source.format]
            claimed = form.claims(folder, named=True)
            if not claimed:
                raise FileNotFoundError(f"the source {uri!r} is a folder without shards of {source.format}: {_inventory(folder)}")
        return form.shards(folder, claimed, source, name)

    def _recognise(self, uri: str, folder: Folder) -> tuple[Format, Sequence[FileInfo]]:
        claims = {name: files for name, form in self.formats.items() if (files := form.claims(folder))}
        for name in list(claims):
            for beaten in self.formats[name].outranks & claims.keys():
                del claims[beaten]
        if not claims:
            raise FileNotFoundError(
                f"the source {uri!r} is a folder without shards: {_inventory(folder)}; "
                f"expected {self._expected()}, or set the source's `format`"
            )
        if len(claims) > 1:
            what = " and ".join(f"{len(files)} of {name} ({files[0].name}, …)" for name, files in claims.items())
            raise ValueError(
                f"the source {uri!r} holds files of several formats, {what}; set the source's `format`, or give a narrower path or glob"
            )
        [(name, files)] = claims.items()
        return self.formats[name], files

    def _of_file(self, source: SourceConfig, file: FileInfo) -> Format:
        if source.format != "auto":
            return self.formats[source.format]
        path = shown(file.name).lower()
        for form in self.formats.values():
            if path.endswith(form.endings):
                return form
        archive = next((advice for ending, advice in _ARCHIVES.items() if path.endswith(ending)), None)
        if archive:
            raise ValueError(f"cannot tell the format of {shown(file.name)}: such archives are not read; {archive} and give the folder")
        raise ValueError(
            f"cannot tell the format of {shown(file.name)} by its name; expected {self._expected()}, or set the source's `format`"
        )

    def _expected(self) -> str:
        return ", ".join(ending for form in self.formats.values() for ending in form.endings)


def _inventory(folder: Folder) -> str:
    """What is in a folder, for a person."""
    if not folder.files:
        return "it is empty"
    counts: dict[str, int] = {}
    for file in folder.files:
        ending = Path(file.base).suffix.lower() or "no ending"
        counts[ending] = counts.get(ending, 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:6]
    return "it holds " + ", ".join(f"{number} × {ending}" for ending, number in most)


def source_name(source: SourceConfig, formats: Mapping[str, Format]) -> str:
    """The name given, or that of the folder the files lie in."""
    if source.name:
        return source.name
    path = re.split(r"[?]", source.uri, maxsplit=1)[0] if "://" in source.uri else str(Path(source.uri).expanduser().absolute())
    parts = [part for part in path.split("://")[-1].split("/") if part and not re.search(r"[*?\[{]", part)]
    endings = tuple(ending for form in formats.values() for ending in form.endings)
    folders = [part for part in parts if not part.lower().endswith(endings)]
    if len(folders) > 1 and folders[-1] == "annotations":  # as COCO's files lie
        folders.pop()
    return (folders or parts or ["source"])[-1]


def braces(uri: str) -> list[str]:
    """`a-{000..002}.tar` and `{x,y}.tar` written out, as webdataset does it.

    Raises:
        ValueError: a range is empty, or all together are too many.
    """
    found = list(itertools.islice(_braces(uri), _MAX_BRACES + 1))
    if len(found) > _MAX_BRACES:
        raise ValueError(f"the source {uri!r} is too long: its braces name more than {_MAX_BRACES:,} files; give a folder or a glob")
    return found


def _braces(uri: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", uri)
    if not match:
        yield uri
        return
    inner = match[1]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    values: Iterable[str] = inner.split(",")
    if span:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < _MAX_BRACES:
            raise ValueError(f"the range {{{inner}}} in the source {uri!r} is empty or too long")
        values = (str(number).zfill(len(span[1])) for number in range(first, last + 1))
    for value in values:
        yield from _braces(uri[: match.start()] + value + uri[match.end() :])
