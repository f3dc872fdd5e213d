"""Locks on file systems: a file a name, locked with `flock`, so that the kernel lets go when the holder dies.

On a file system that several machines share, `flock` must reach all of them: NFS does since Linux 2.6.12, Lustre when mounted with `flock`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from mtv_core.store.lock_owner import LockLostError, Owner

_UNREADABLE = Owner(token="", what="another process", host="?", machine="", pid=0, started=0, since="?", seconds=0)


class FileLocks:
    """Names as locked files of one folder."""

    poll = 0.1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, name: str, owner: Owner) -> HeldFile | None:
        """See `LockFolder.take`. None, too, while another process looks who holds it: try again."""
        path = self.folder / f"{name}.lock"
        self.folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
        # Between opening and locking, the holder before may have removed the file: a lock on it would be worth nothing.
        if _flock(file, fcntl.LOCK_EX) and _is(file, path):
            held = HeldFile(file, path, owner)
            held.write()
            return held
        file.close()
        return None

    def holders(self) -> dict[str, Owner]:
        """See `LockFolder.holders`. Files that the dead left are removed."""
        found = {}
        for path in sorted(self.folder.glob("*.lock")):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            with file:
                if not _flock(file, fcntl.LOCK_SH):
                    found[path.name.removesuffix(".lock")] = _parsed(file.read())
                elif _is(file, path):
                    path.unlink(missing_ok=True)
        return found


class HeldFile:
    """A locked file, removed when it is released."""

    def __init__(self, file: IO[bytes], path: Path, owner: Owner) -> None:
        self.owner, self._file, self._path = owner, file, path

    def check(self) -> None:
        """See `Held.check`: a person may have removed the folder under us."""
        if self._file.closed or not _is(self._file, self._path):
            raise LockLostError(f"the lock {self._path}, held by {self.owner}, was removed; run again")

    def say_done(self) -> None:
        """See `Held.say_done`."""
        self.owner = self.owner.model_copy(update={"done": True})
        self.write()

    def write(self) -> None:
        """Say who holds it."""
        os.ftruncate(self._file.fileno(), 0)
        os.pwrite(self._file.fileno(), self.owner.model_dump_json().encode(), 0)

    def close(self) -> None:
        """See `Held.close`."""
        if not self._file.closed:
            if _is(self._file, self._path):
                self._path.unlink(missing_ok=True)
            self._file.close()


def _is(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _parsed(text: bytes) -> Owner:
    try:
        return Owner.model_validate_json(text)
    except ValidationError:  # about to be written
        return _UNREADABLE


def _flock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise OSError(
            error.errno, f"cannot lock {file.name}, its file system has no flock ({error.strerror}): choose another table.uri"
        ) from error
    return True
