"""What a format has to say: where a shard lies, how it is written, and what else its readers want to find."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar

import pyarrow as pa

from mtv_core.dataset_export.config import Split
from mtv_core.dataset_export.plan import FileRecord, Plan


class Writer(ABC):
    """One format. Bytes follow from the rows alone: no times, no names of machines."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("uid",)  # columns that are exported whatever is asked for

    @abstractmethod
    def shard(self, plan: Plan, split: Split, index: int) -> str:
        """The path of a shard."""

    @abstractmethod
    def write(self, file: IO[bytes], schema: pa.Schema, pieces: Iterator[pa.Table]) -> None:
        """Write a shard, forward only.

        Args:
            file: has `write` and `tell`.
            schema: the columns, as the table has them.
            pieces: the rows, at least one.
        """

    def others(self, plan: Plan, schema: pa.Schema, shards: Mapping[Split, Sequence[FileRecord]]) -> dict[str, bytes]:
        """Files that are written when all shards are there, in this order."""
        return {}

    @abstractmethod
    def globs(self, plan: Plan) -> dict[Split, str]:
        """Split → pattern of its shards, for the card."""

    @abstractmethod
    def usage(self, plan: Plan) -> str:
        """How it is read, in Markdown, for the card."""


class Hashed:
    """A file that is written forward only, and hashed on the way."""

    closed = False  # pyarrow asks

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Write all of it."""
        size = memoryview(data).nbytes
        self._hash.update(data)
        self._file.write(data)
        self.bytes += size
        return size

    def tell(self) -> int:
        """Bytes so far."""
        return self.bytes

    def flush(self) -> None:
        """Leave that to whoever opened the file."""

    def close(self) -> None:
        """Leave that too."""

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._hash.hexdigest()


def json_bytes(document: Any) -> bytes:
    """JSON for people and programs."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
