"""Small files in a folder that may be on this machine or in an object store, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import fsspec

from mtv_core.settings import is_local

# Lance's names of storage options → s3fs's. The rest of the options has no meaning for small files.
_S3_CLIENT = {
    "endpoint_url": ("aws_endpoint", "endpoint", "aws_endpoint_url", "endpoint_url"),
    "region_name": ("aws_region", "region", "aws_default_region"),
}
_S3 = {
    "key": ("aws_access_key_id", "access_key_id"),
    "secret": ("aws_secret_access_key", "secret_access_key"),
    "token": ("aws_session_token", "session_token", "token"),
}


def _first(options: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((options[name] for name in names if name in options), None)


def fsspec_options(uri: str, storage_options: Mapping[str, str] | None) -> dict[str, Any]:
    """Lance's storage options in the words of fsspec's file system for `uri`."""
    options = {key.lower(): value for key, value in (storage_options or {}).items()}
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    found: dict[str, Any] = {name: _first(options, names) for name, names in _S3.items()}
    client = {name: _first(options, names) for name, names in _S3_CLIENT.items()}
    found["client_kwargs"] = {name: value for name, value in client.items() if value} or None
    if _first(options, ("aws_skip_signature", "skip_signature")) == "true":
        found["anon"] = True
    return {name: value for name, value in found.items() if value}


def filesystem(uri: str, storage_options: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it.

    Raises:
        ValueError: nobody knows the scheme.
    """
    try:
        return fsspec.core.url_to_fs(uri, **fsspec_options(uri, storage_options))
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {uri!r}: {error}. Use a path, s3://… or gs://…") from None


class Files:
    """The files below one folder. Names are relative and use '/'. Picklable; safe to use from many processes."""

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.local = is_local(uri)
        self.uri = str(Path(uri.removeprefix("file://")).absolute()) if self.local else uri.rstrip("/")
        self.storage_options = dict(storage_options or {})

    def path(self, name: str) -> str:
        """Full path or URI of a name."""
        return f"{self.uri}/{name}" if name else self.uri

    def _remote(self, name: str) -> tuple[Any, str]:
        return filesystem(self.path(name), self.storage_options)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of that name."""
        if self.local:
            return Path(self.path(name)).exists()
        files, path = self._remote(name)
        return bool(files.exists(path))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        if self.local:
            return Path(self.path(name)).stat().st_size
        files, path = self._remote(name)
        return int(files.info(path)["size"])

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self.open(name) as file:
            return file.read()

    def open(self, name: str) -> IO[bytes]:
        """Open for reading; seekable."""
        if self.local:
            return Path(self.path(name)).open("rb")
        files, path = self._remote(name)
        return files.open(path, "rb")

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file that appears, whole and on disk, when the block ends well. A kill leaves nothing but a `.partial`."""
        if not self.local:
            files, path = self._remote(name)
            file = files.open(path, "wb")
            try:
                yield file
            except BaseException:
                with contextlib.suppress(Exception):
                    file.discard()
                raise
            file.close()
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, replacing what was there."""
        with self.create(name) as file:
            file.write(content)

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder, sorted, without what is unfinished; empty if there is no such folder."""
        if self.local:
            here = Path(self.path(folder))
            found = [path.name for path in here.iterdir()] if here.is_dir() else []
        else:
            files, path = self._remote(folder)
            files.invalidate_cache()
            try:
                found = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in files.ls(path, detail=False)]
            except FileNotFoundError:
                found = []
        return sorted(name for name in found if not name.startswith("."))

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it. What is not there is no error."""
        if self.local:
            path = Path(self.path(name))
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            return
        files, remote = self._remote(name)
        with contextlib.suppress(FileNotFoundError):
            files.rm(remote, recursive=True)
