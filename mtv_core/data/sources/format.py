"""What a format has to say: which files are its own, how they are cut into shards, and how a shard is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from mtv_core.data.sources.access import Options
from mtv_core.data.sources.base import RawSample, ShardRef
from mtv_core.data.sources.config import Columns, SourceConfig
from mtv_core.data.sources.listing import FileInfo, Folder
from mtv_core.report import Reject

Samples = Iterator[RawSample | Reject]


class Format(ABC):
    """A way in which samples are stored. By default every file with one of the endings is a shard."""

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]  # of the files that can be named one by one, in lower case
    no_columns: ClassVar[Mapping[str, str]] = {}  # fields of `columns` that mean nothing here: name → why
    outranks: ClassVar[frozenset[str]] = frozenset()  # formats whose files in the same folder belong to this one

    def claims(self, folder: Folder, named: bool = False) -> Sequence[FileInfo]:
        """The files of a folder that are this format's. `named`: somebody said that it is this format, so nothing is left to others."""
        return [file for file in folder.files if file.base.lower().endswith(self.endings) and file.kind != "link"]

    def shards(self, folder: Folder, claimed: Sequence[FileInfo], source: SourceConfig, name: str) -> Sequence[ShardRef]:
        """The shards of what was claimed.

        Raises:
            ValueError: they are not what they seem.
        """
        return [self._file(FileInfo(folder.path(file.name), *file[1:]), source, name) for file in claimed]

    def file_shards(self, file: FileInfo, source: SourceConfig, name: str, storage_options: Options) -> Sequence[ShardRef]:
        """The shards of a file that was named itself; its name is its whole path.

        Raises:
            ValueError: it is not what it seems.
        """
        return [self._file(file, source, name)]

    def _file(self, file: FileInfo, source: SourceConfig, name: str) -> ShardRef:
        return ShardRef(file.name, file.identity, file.size, name, self.name, source.columns, root=file.name.rpartition("/")[0])

    def check(self, columns: Columns) -> None:
        """Nothing that was named is ignored.

        Raises:
            ValueError: this format has no use for one of the names.
        """
        for name, why in self.no_columns.items():
            if getattr(columns, name) is not None:
                raise ValueError(f"the source's `columns.{name}` means nothing in a source of the format {self.name}: {why}; leave it out")

    @abstractmethod
    def read(self, shard: ShardRef, max_bytes: int, storage_options: Options = None) -> Samples:
        """The samples of a shard in their order; a refusal with an empty key says that the shard itself is damaged.

        Args:
            shard: which.
            max_bytes: an image that is larger is not read, or at least not handed on.
            storage_options: of its store.

        Raises:
            OSError: it cannot be read now; nothing is wrong with the data.
        """


def damaged(shard: ShardRef, error: str, message: str) -> Reject:
    """The refusal of a shard."""
    return Reject(shard=shard.id, key="", location=shard.uri, stage="ingest", error=error, message=message)


def one_line(error: Exception) -> str:
    """What a library said, for a message."""
    return " ".join(str(error).split())[:300] or type(error).__name__
