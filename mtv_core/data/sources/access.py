"""The files of a source, wherever they are: opened and read, with errors that say what to do."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mtv_core.data.files import filesystem
from mtv_core.settings import is_local

Options = Mapping[str, str] | None

_BUFFER = 1 << 16  # of local files; larger reads go past it
_REMOTE_BUFFER = 8 << 20
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
}
_NO_RANGES = "can only be read from its beginning: its server knows no ranges, which this format needs; copy the file"
_CREDENTIALS = "give credentials by the environment (AWS_ACCESS_KEY_ID, …), fsspec's configuration or the storage options"


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
