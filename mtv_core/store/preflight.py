"""Whether an object store can hold a table, asked before the first byte is written.

Lance and the locks rest on two promises: of several who create one object at once, one wins (`If-None-Match: *`, "conditional PUT"), and
who lists sees what was written before. A store that ignores the condition would lose commits in silence.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from mtv_core.data.files import Files
from mtv_core.data.store_errors import StoreError, in_words, no_bucket, unusable

__all__ = ["FOLDER", "StoreError", "check_store"]

FOLDER = "_locks"  # the probes lie beside what they are asked for
_RIVALS = 8
_passed: set[tuple[str, tuple[tuple[str, str], ...]]] = set()


def check_store(uri: str, storage_options: Mapping[str, str] | None = None) -> None:
    """Prove what tables need of an object store; on a file system nothing is asked. Costs some requests, once a process and table.

    Raises:
        ValueError: the URI has a credential in it, or nobody knows its scheme.
        PermissionError: the store refuses us.
        FileNotFoundError: there is no such bucket.
        StoreError: it cannot be reached, ignores the condition, or lists what is not so.
    """
    files = Files(uri, storage_options)
    key = (files.uri, tuple(sorted(files.storage_options.items())))
    if files.local or key in _passed:
        return
    if files.uri.startswith(("memory://", "http://", "https://", "ftp://", "github://")):
        scheme = files.uri.partition("://")[0]
        raise StoreError(
            f"{scheme}:// cannot hold a table, since other processes could not write to it: choose a path, s3://…, gs://… or az://…"
        )
    probe = f"{FOLDER}/probe-{secrets.token_hex(8)}"
    try:
        _prove(files, probe)
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise no_bucket(files.uri) from error
    except Exception as error:
        said = in_words(error, files.uri)
        raise (said if isinstance(said, (StoreError, PermissionError)) else unusable(files.uri, error)) from error
    _passed.add(key)


def _prove(files: Files, probe: str) -> None:
    name = probe.rpartition("/")[2]
    try:
        if not files.write_once(probe, b"first"):
            raise StoreError(f"{files.uri} says that an object exists which was never written")
        # All at once: a store that only looks first and writes then would let several through.
        with ThreadPoolExecutor(_RIVALS) as threads:
            rivals = [f"{probe}-rivals"] * _RIVALS
            won = sum(threads.map(files.write_once, rivals, [f"{number}".encode() for number in range(_RIVALS)]))
        again = files.write_once(probe, b"second")
        if again or won != 1 or files.read(probe) != b"first":
            raise StoreError(
                f"{files.uri} ignores conditional writes (PUT with If-None-Match: *), so two commits at once would lose one in silence. "
                "Use a store that knows them: AWS S3, GCS, Azure, MinIO, Ceph; or put the table on a file system "
                "(the shards may stay where they are)"
            )
        if {name, f"{name}-rivals"} - set(files.names(FOLDER)):
            raise StoreError(f"{files.uri} does not list what was just written; tables need a store that does")
    finally:
        files.remove(probe)
        files.remove(f"{probe}-rivals")
