"""Files that samples name: looked for in their folder and nowhere else, and read a few at once where a store is far away."""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mtv_core.data.sources.access import Options, plain_error, read_file, safe_name
from mtv_core.settings import is_local

_REQUESTS = 16  # to a store, under way at once
_BYTES_AHEAD = 32 << 20  # that are read before they are wanted


class UnsafePathError(ValueError):
    """A name leads out of its folder, or to something that is no file."""


@dataclass(frozen=True)
class Wanted:
    """A file to read. A size of 0 that is no lie costs no request."""

    name: str  # relative to the root
    size: int


@dataclass(frozen=True)
class Members:
    """The files below a folder, for whoever has their names from elsewhere."""

    root: str
    limit: int  # bytes; no more of one file is read
    storage_options: Options = None

    @cached_property
    def _resolved(self) -> Path:
        return Path(self.root).resolve()

    def path(self, name: str) -> str:
        """Full path or URI of a name.

        Raises:
            UnsafePathError: it leads out of the folder, itself or as a symlink, or to no ordinary file.
            FileNotFoundError: there is nothing.
        """
        safe = safe_name(name)
        if not safe:
            raise UnsafePathError(f"the name {name!r} leads out of the folder; put the file into it")
        full = f"{self.root.rstrip('/')}/{safe}"
        if is_local(full):
            path = Path(full)
            try:
                resolved = path.resolve()
                mode = path.stat().st_mode
            except (RuntimeError, UnicodeEncodeError, OSError) as error:  # symlinks in a circle; what can be no name
                number = error.errno if isinstance(error, OSError) else errno.ELOOP if isinstance(error, RuntimeError) else errno.ENOENT
                if number == errno.ELOOP or (number == errno.ENOENT and isinstance(error, OSError) and path.is_symlink()):
                    raise UnsafePathError(f"{name!r} is a symlink to nothing; copy the file into the folder") from None
                if number in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                    raise FileNotFoundError(errno.ENOENT, "there is no such file", full) from None
                raise
            if not resolved.is_relative_to(self._resolved):
                raise UnsafePathError(f"{name!r} is a symlink that leaves the folder; copy the file into it (cp -L)")
            if not stat.S_ISREG(mode):
                raise UnsafePathError(f"{name!r} is no ordinary file")
        return full

    def read(self, wanted: Wanted) -> bytes:
        """A file; longer than `limit` if it is larger, and then cut.

        Raises:
            UnsafePathError, OSError: see `path`; or it cannot be read now.
        """
        return read_file(self.path(wanted.name), self.storage_options, wanted.size, self.limit)

    def read_all(self, wanted: Iterable[Wanted | None]) -> Iterator[bytes | UnsafePathError | None]:
        """Files in their order, `None` for `None`; from a store side by side, no more than 32 MiB ahead.

        Raises:
            OSError: one cannot be read now.
        """
        if is_local(self.root):
            for one in wanted:
                yield self._read(one)
            return
        pending: deque[tuple[Future[bytes | UnsafePathError | None], int]] = deque()
        ahead = 0
        with ThreadPoolExecutor(_REQUESTS) as threads:
            try:
                for one in wanted:
                    size = 0 if one is None else min(one.size, self.limit)
                    while pending and (len(pending) >= _REQUESTS or ahead + size > _BYTES_AHEAD):
                        future, before = pending.popleft()
                        ahead -= before
                        yield future.result()
                    pending.append((threads.submit(self._read, one), size))
                    ahead += size
                while pending:
                    yield pending.popleft()[0].result()
            finally:
                for future, _ in pending:
                    future.cancel()

    def _read(self, wanted: Wanted | None) -> bytes | UnsafePathError | None:
        if wanted is None:
            return None
        try:
            return self.read(wanted)
        except UnsafePathError as error:
            return error
        except OSError as error:
            raise plain_error(error, f"{self.root.rstrip('/')}/{wanted.name}") from error
