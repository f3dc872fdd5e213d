"""Which files a source has: looked up and told apart, by their names, sizes and times only."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mtv_core.data.files import filesystem
from mtv_core.data.sources.access import Options, hidden, opened, plain_error, shown
from mtv_core.data.store_errors import is_no_bucket
from mtv_core.settings import is_local

_AT_ONCE = 16  # requests to a store that are under way at once
# What tells one content from another without reading it, best first, in the words of the file systems.
_STAMPS = ("ETag", "etag", "md5Hash", "generation", "Content-MD5", "mtime", "LastModified", "last_modified", "Last-Modified", "created")


class FileInfo(NamedTuple):
    """A file as a listing shows it."""

    name: str  # relative to the folder that was listed, or the whole path of one that was named
    size: int  # bytes; 0 if the store does not say
    stamp: str  # with the size: another one is another content
    kind: Literal["file", "link", "special"] = "file"  # link: to a folder; special: a pipe, a device, a dangling link

    @property
    def identity(self) -> str:
        """What tells a changed file from the same one, without reading it."""
        return f"{self.size}-{self.stamp}" if self.stamp else str(self.size)

    @property
    def base(self) -> str:
        """The name without folders."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Folder:
    """A folder and all files below it, sorted by name; hidden ones are left out."""

    uri: str  # empty: the names are whole paths
    files: Sequence[FileInfo] = ()
    storage_options: Options = None

    def path(self, name: str) -> str:
        """Full path or URI of a file."""
        return f"{self.uri.rstrip('/')}/{name}" if self.uri else name

    def read(self, name: str) -> bytes:
        """A small file."""
        with opened(self.path(name), self.storage_options) as file:
            return file.read()


def locate(uri: str, storage_options: Options = None) -> FileInfo | Folder | list[FileInfo]:
    """What is behind a URI: one file, a folder with all that is below it, or the files and folders that a glob matches.

    Raises:
        FileNotFoundError: nothing.
        PermissionError: it may not be looked at.
        OSError: the store does not answer.
    """
    try:
        if uri.startswith(("http://", "https://")):  # no listing, and `?` begins a query
            return _remote_info(uri, storage_options)
        path = str(Path(uri.removeprefix("file://")).expanduser().absolute()) if is_local(uri) else uri
        files, inner = filesystem(path, storage_options)
        files.invalidate_cache()  # listings of an earlier call
        if re.search(r"[*?\[]", path) and not files.exists(inner):
            return _glob(files, inner, uri, storage_options)
        if files.isdir(inner):
            return Folder(path.rstrip("/") or "/", _walk(path, files, inner), storage_options)
        if not files.exists(inner):
            raise FileNotFoundError(f"the source {uri!r} does not exist; give an existing file, folder or glob")
        return _local_info(Path(path), path) if is_local(path) else _remote_info(path, storage_options)
    except ValueError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and str(error).startswith("the source"):
            raise
        plain = plain_error(error, uri)
        if isinstance(plain, FileNotFoundError):
            plain = FileNotFoundError(f"the source {shown(uri)!r} does not exist; give an existing file, folder or glob")
        raise plain from error


def locate_all(uris: Sequence[str], storage_options: Options = None) -> list[FileInfo | Folder | list[FileInfo]]:
    """`locate` of many URIs; those of a store side by side."""
    if len(uris) == 1 or is_local(uris[0]):
        return [locate(uri, storage_options) for uri in uris]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda uri: locate(uri, storage_options), uris))


def _glob(files: Any, inner: str, uri: str, storage_options: Options) -> list[FileInfo]:
    matches = files.glob(inner, detail=True)
    found = []
    for name in sorted(matches):
        full = files.unstrip_protocol(name)
        if matches[name].get("type") == "directory":
            found.append(FileInfo(full.removeprefix("file://"), 0, "", "link"))
        elif is_local(uri):
            found.append(_local_info(Path(full.removeprefix("file://")), full.removeprefix("file://")))
        else:
            found.append(_info(full, matches[name]))
    if not found:
        if uri.startswith(("s3://", "s3a://")) and _bucket_is_missing(files, inner):
            bucket = inner.partition("/")[0]
            raise FileNotFoundError(f"the source {uri!r} matches no file: there is no bucket {bucket!r}; correct its name, or the endpoint")
        raise FileNotFoundError(f"the source {uri!r} matches no file; check the pattern")
    return found


def _bucket_is_missing(files: Any, inner: str) -> bool:
    """By the store's answer to a GET: others, such as to a HEAD of the bucket, do not tell what is missing from what is forbidden."""
    try:
        files.cat_file(inner)  # the pattern, which no object is called, or it would have matched
    except Exception as error:
        return is_no_bucket(error)
    return False


def _walk(path: str, files: Any, inner: str) -> list[FileInfo]:
    if is_local(path):
        root = Path(path)
        return sorted(_walk_local(root, "", root.resolve()))
    prefix = inner.rstrip("/") + "/"
    found = [_info(name.removeprefix(prefix), info) for name, info in files.find(inner, detail=True).items()]
    return sorted(file for file in found if file.name and not hidden(file.name))


def _walk_local(folder: Path, prefix: str, root: Path) -> Iterator[FileInfo]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk_local(folder / entry.name, f"{name}/", root)
            elif Path(entry.path).is_dir():  # not entry.is_dir(), which raises for a link to itself
                if not Path(entry.path).resolve().is_relative_to(root):  # else its target is met anyway
                    yield FileInfo(name, 0, "", "link")
            else:
                yield _local_info(Path(entry.path), name)


def _local_info(path: Path, name: str) -> FileInfo:
    try:
        facts = path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return FileInfo(name, 0, "", "special")
    return FileInfo(name, facts.st_size, str(facts.st_mtime_ns), "file" if stat.S_ISREG(facts.st_mode) else "special")


def _remote_info(uri: str, storage_options: Options) -> FileInfo:
    files, path = filesystem(uri, storage_options)
    return _info(files.unstrip_protocol(path), files.info(path))


def _info(name: str, info: Mapping[str, Any]) -> FileInfo:
    stamp = next((str(info[key]).strip('"') for key in _STAMPS if info.get(key)), "")
    return FileInfo(name, int(info.get("size") or 0), stamp)
