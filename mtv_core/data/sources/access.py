"""The files of a source, wherever they are: found, told apart, opened; with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from mtv_core.data.files import filesystem
from mtv_core.settings import is_local

Options = Mapping[str, str] | None

_BUFFER = 1 << 16  # of local files; larger reads go past it
_REMOTE_BUFFER = 8 << 20
_AT_ONCE = 16  # requests to a store that are under way at once
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
}
_NO_RANGES = "can only be read from its beginning: its server knows no ranges, which this format needs; copy the file"
_CREDENTIALS = "give credentials by the environment (AWS_ACCESS_KEY_ID, …), fsspec's configuration or the storage options"
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


@dataclass
class Opened:
    """A file being read. After an exception of whoever parses it: was it the store that failed, or the content?"""

    file: Any
    uri: str
    failure: OSError | None = None
    ahead: bytes = b""  # what was looked at

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay to be read."""
        self.ahead = self.read(size)
        return self.ahead

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer only at the end of the file.

        Raises:
            OSError: the store failed.
        """
        if self.ahead:
            block, self.ahead = (self.ahead, b"") if size < 0 else (self.ahead[:size], self.ahead[size:])
            return block + self.read(size if size < 0 else size - len(block)) if size != len(block) else block
        try:
            block = self.file.read(size)
            while 0 < len(block) < size:
                more = self.file.read(size - len(block))
                if not more:
                    break
                block += more
        except Exception as error:  # every store has errors of its own
            self.failure = plain_error(error, self.uri)
            raise self.failure from error
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any file."""
        if whence == 1:
            offset -= len(self.ahead)
        self.ahead = b""
        try:
            return int(self.file.seek(offset, whence))
        except ValueError:
            self.failure = OSError(f"{shown(self.uri)!r} {_NO_RANGES}")
            raise self.failure from None

    def tell(self) -> int:
        """As of any file."""
        return int(self.file.tell()) - len(self.ahead)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Perhaps: `seek` says it."""
        return True

    def writable(self) -> bool:
        """No."""
        return False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return bool(self.file.closed)

    def close(self) -> None:
        """Left to the context manager."""

    def flush(self) -> None:
        """Nothing to write."""

    def blame(self) -> None:
        """Raise the store's error, if it was the store's."""
        if self.failure is not None:
            raise self.failure


def check_regular(path: Path) -> None:
    """To open a pipe is to wait for whoever writes into it.

    Raises:
        OSError: it is one, or a device; or it is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no ordinary file; copy what is in it to one")


@contextlib.contextmanager
def opened(uri: str, storage_options: Options = None, *, sequential: bool = True) -> Iterator[Opened]:
    """A file to read, from its beginning on or here and there.

    Raises:
        OSError: it cannot be read.
    """
    if is_local(uri):
        here = Path(uri.removeprefix("file://"))
        check_regular(here)
        with here.open("rb", buffering=_BUFFER) as local:
            yield Opened(local, uri)
        return
    files, path = filesystem(uri, storage_options)
    # Of HTTP one answer is enough, and needs no ranges, which not every server knows.
    size = 0 if sequential and uri.startswith(("http://", "https://")) else _REMOTE_BUFFER
    try:
        file: IO[bytes] = files.open(path, "rb", block_size=size, cache_type="readahead" if sequential else "none")
    except Exception as error:
        raise plain_error(error, uri) from error
    with file:
        yield Opened(file, uri)


def read_file(uri: str, storage_options: Options, size: int, limit: int) -> bytes:
    """A whole file, of `size` bytes when it was listed; never more than `limit` + 1 of them.

    Raises:
        OSError: it cannot be read.
    """
    if is_local(uri):
        with Path(uri.removeprefix("file://")).open("rb", buffering=0) as file:
            return file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
    if size == 0:
        return b""  # a range of an empty object is an error in some stores
    files, path = filesystem(uri, storage_options)
    try:
        return bytes(files.cat_file(path, start=0, end=min(size, limit) + 1))
    except Exception as error:
        raise plain_error(error, uri) from error


def shown(uri: str) -> str:
    """A URI without what may be a secret: a query can be a signature."""
    return uri.split("?")[0] if uri.startswith(("http://", "https://")) else uri


def plain_error(error: Exception, uri: str) -> OSError:
    """What a store's library raised, as an OSError that says what to do."""
    where, names = shown(uri), {cls.__name__ for cls in type(error).__mro__}
    if uri.startswith(("http://", "https://")) and isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec's word for every answer, and for none
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or names & _NO_CREDENTIALS or status in (401, 403):
        return PermissionError(f"{where!r} may not be read; check its permissions, or {_CREDENTIALS} ({type(error).__name__})")
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{where!r} does not exist")
    if isinstance(error, OSError) and is_local(uri):
        return error
    if "support range requests" in str(error):
        return OSError(f"{where!r} {_NO_RANGES}")
    reason = f"HTTP status {status}" if status else " ".join(str(error).replace(uri, where).split()) or type(error).__name__
    return OSError(f"{where!r} cannot be read now: {reason}")


def safe_name(name: str) -> str | None:
    """A relative name in its shortest form; None if it leaves the folder, or could on some machine."""
    parts = re.split(r"[/\\]", name)
    if "\0" in name or name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:[/\\]", name):
        return None
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def hidden(name: str) -> bool:
    """Whether a file, or a folder it is in, is not meant to be seen: `.git`, `.cache`, `__MACOSX`."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


# Finding


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
        raise FileNotFoundError(f"the source {uri!r} matches no file; check the pattern")
    return found


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
