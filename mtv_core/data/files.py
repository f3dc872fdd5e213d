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

from mtv_core.data.store_errors import is_no_bucket, worded
from mtv_core.data.uris import check_uri
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
_S3_SCHEMES = ("s3://", "s3a://")


def _first(options: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((options[name] for name in names if name in options), None)


def fsspec_options(uri: str, storage_options: Mapping[str, str] | None) -> dict[str, Any]:
    """Lance's storage options in the words of fsspec's file system for `uri`."""
    options = {key.lower(): value for key, value in (storage_options or {}).items()}
    if not uri.startswith(_S3_SCHEMES):
        return {}
    found: dict[str, Any] = {name: _first(options, names) for name, names in _S3.items()}
    client = {name: _first(options, names) for name, names in _S3_CLIENT.items()}
    found["client_kwargs"] = {name: value for name, value in client.items() if value} or None
    if _first(options, ("aws_skip_signature", "skip_signature")) == "true":
        found["anon"] = True
    # Listings are not kept: other processes write here too.
    return {name: value for name, value in found.items() if value} | {"use_listings_cache": False}


def lance_options(uri: str, storage_options: Mapping[str, str] | None = None) -> dict[str, str] | None:
    """Storage options as Lance takes them, with what fsspec's own configuration says of S3, so that both find the same credentials.

    Never to be written anywhere. Lance reads the AWS_… variables, the files below ~/.aws and the machine's role by itself. A plain-http
    endpoint is allowed, as s3fs allows it.
    """
    options = dict(storage_options or {})
    if uri.startswith(_S3_SCHEMES):
        lower = {key.lower(): value for key, value in options.items()}
        config = fsspec.config.conf.get("s3", {}) | fsspec.config.conf.get("s3a" if uri.startswith("s3a") else "s3", {})
        client = config.get("client_kwargs", {})
        given = {name: config.get(name) for name in _S3} | {name: client.get(name) for name in _S3_CLIENT}
        given["endpoint_url"] = config.get("endpoint_url") or given["endpoint_url"]
        for name, names in (_S3 | _S3_CLIENT).items():
            if given[name] and _first(lower, names) is None:
                options[names[0]] = str(given[name])
        endpoint = _first({key.lower(): value for key, value in options.items()}, _S3_CLIENT["endpoint_url"])
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint and endpoint.startswith("http://") and not {"allow_http", "aws_allow_http"} & lower.keys():
            options["allow_http"] = "true"
        if os.environ.get("AWS_ENDPOINT_URL_S3") and _first(lower, _S3_CLIENT["endpoint_url"]) is None:
            options.setdefault("aws_endpoint", os.environ["AWS_ENDPOINT_URL_S3"])  # boto's name for it, which Lance does not read
    return options or None


def filesystem(uri: str, storage_options: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the path in it.

    Raises:
        ValueError: nobody knows the scheme, or the URI has a credential in it.
    """
    check_uri(uri)
    try:
        return fsspec.core.url_to_fs(uri, **fsspec_options(uri, storage_options))
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {uri!r}: {error}. Use a path, s3://… or gs://…") from None


def _refused(error: OSError) -> bool:
    """Whether a conditional write was refused because the object is there, or is being written by somebody else just now."""
    response = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412)


class Files:
    """The files below one folder. Names are relative and use '/'. Picklable; safe to use from many processes.

    Raises:
        ValueError: the URI has a credential in it.

    Looking and reading raise PermissionError if an object store does not let us in, FileNotFoundError if its bucket is missing, and
    StoreError, an OSError, if it does not answer.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.local = is_local(uri)
        self.uri = str(Path(uri.removeprefix("file://")).absolute()) if self.local else check_uri(uri).rstrip("/")
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
        with worded(self.uri):
            files, path = self._remote(name)
            return bool(files.exists(path))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        if self.local:
            return Path(self.path(name)).stat().st_size
        with worded(self.uri):
            files, path = self._remote(name)
            return int(files.info(path)["size"])

    def modified(self, name: str) -> float:
        """When a file was last written, in seconds since 1970 by the clock of whoever keeps it: the store, not this machine.

        Raises:
            FileNotFoundError: it is not there.
        """
        if self.local:
            return Path(self.path(name)).stat().st_mtime
        with worded(self.uri):
            files, path = self._remote(name)
            return float(files.modified(path).timestamp())

    def read(self, name: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: it is not there.
        """
        if self.local:
            return Path(self.path(name)).read_bytes()
        with worded(self.uri):
            files, path = self._remote(name)
            return bytes(files.cat_file(path))  # by one GET, so that a file which is replaced just now is the old or the new one

    def open(self, name: str) -> IO[bytes]:
        """Open for reading; seekable."""
        if self.local:
            return Path(self.path(name)).open("rb")
        with worded(self.uri):
            files, path = self._remote(name)
            return files.open(path, "rb")

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file that appears, whole and on disk, when the block ends well. A kill leaves nothing but a `.partial`.

        In an object store it is one PUT, or a multipart upload that is completed last; what a kill leaves of that is not listed, and a
        lifecycle rule of the bucket should remove it.
        """
        if not self.local:
            files, path = self._remote(name)
            file = files.open(path, "wb")
            try:
                yield file
            except BaseException:
                with contextlib.suppress(Exception):
                    file.discard()
                file.closed = True  # else the garbage collector closes it, and closing uploads what is there
                raise
            file.close()
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(target)
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
        if not self.local:
            with worded(self.uri):
                files, path = self._remote(name)
                files.pipe_file(path, content)
            return
        with self.create(name) as file:
            file.write(content)

    def write_once(self, name: str, content: bytes) -> bool:
        """Write a whole small file if there is none of that name; False if there is, or another process was quicker.

        Of several at once one wins, where the store knows conditional writes: `preflight.check_store` finds that out.
        """
        if self.local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = _partial(target)
            try:
                with partial.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(partial, target)
            except FileExistsError:
                return False
            finally:
                partial.unlink(missing_ok=True)
            return True
        files, path = self._remote(name)
        try:
            files.pipe_file(path, content, mode="create")
        except OSError as error:
            if not _refused(error):
                raise
            # A first try may have come through although its answer was lost.
            with contextlib.suppress(FileNotFoundError):
                return bool(self.read(name) == content)
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder, sorted, without what is unfinished; empty if there is no such folder."""
        if self.local:
            here = Path(self.path(folder))
            found = [path.name for path in here.iterdir()] if here.is_dir() else []
        else:
            files, path = self._remote(folder)
            files.invalidate_cache()
            try:
                with worded(self.uri):
                    entries = [entry.rstrip("/") for entry in files.ls(path, detail=False)]
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                entries = []
            # Some tools mark a folder by an object of its name, which is listed in it.
            found = [entry.rsplit("/", 1)[-1] for entry in entries if entry != path.rstrip("/")]
        return sorted(name for name in found if name and not name.startswith("."))

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


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
