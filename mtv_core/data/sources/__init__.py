"""Where samples come from. A format is one module here and one line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mtv_core.data.sources import finding
from mtv_core.data.sources.arrow import Arrow
from mtv_core.data.sources.base import RawCaption, RawSample, ShardRef
from mtv_core.data.sources.coco import Coco
from mtv_core.data.sources.config import SourceConfig
from mtv_core.data.sources.format import Format
from mtv_core.data.sources.imagefolder import ImageFolder
from mtv_core.data.sources.parquet import Parquet
from mtv_core.data.sources.webdataset import WebDataset
from mtv_core.report import Reject

__all__ = ["FORMATS", "RawCaption", "RawSample", "ShardRef", "SourceConfig", "expand", "read", "source_name"]

FORMATS: dict[str, Format] = {form.name: form for form in (WebDataset(), Parquet(), Arrow(), ImageFolder(), Coco())}


def read(shard: ShardRef, max_bytes: int, storage_options: Mapping[str, str] | None = None) -> Iterator[RawSample | Reject]:
    """The samples of a shard in their order; a refusal with an empty key says that the shard itself is damaged.

    Raises:
        OSError: it cannot be read now; nothing is wrong with the data.
    """
    return FORMATS[shard.format].read(shard, max_bytes, storage_options)


def expand(source: SourceConfig, storage_options: Mapping[str, str] | None = None) -> list[ShardRef]:
    """The shards of a source, sorted by URI. Looks at names, sizes and times only, and at what lists other files.

    Raises:
        FileNotFoundError: a path is missing, or a folder or glob holds nothing.
        ValueError: the format cannot be told.
        OSError: the store does not answer, or does not let us in.
    """
    return finding.Finder(FORMATS, storage_options).expand(source)


def source_name(source: SourceConfig) -> str:
    """The name given, or that of the folder the files lie in."""
    return finding.source_name(source, FORMATS)
