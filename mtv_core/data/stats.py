"""Statistics of samples that add up: made for each shard on its worker, summed by the committer, and taken from the table's own rows.

Addition is associative and commutative, exactly: every number is an integer, a minimum or a maximum. So it matters neither how the work
was cut nor in which order it finished. Two things are approximate, and say so:

- quantiles are the smallest value of a bin of 1/32 octave, so they are at most 2.2 % too small, and exact where few values are frequent;
- licences and domains are counted exactly while there are at most 1024 different ones. Beyond that their shares are those of a uniform
  sample of 512 rows (the ones of smallest uid, which is a hash): the standard error of a share of 10 % is 1.3 points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from mtv_core.reasons import counts_as_failure
from mtv_core.report import Reject

BINS = 32  # an octave
DISTINCT = 1024  # different values up to which a tally is exact
SAMPLE = 512  # rows a tally knows when there are more
_LONGEST = 80  # letters of a tallied value
_FLUSH = 1024  # samples a builder holds before it counts them
# Scheme, user, www. and port are left out; the rest of the host is kept, since what its owner registered cannot be told without a list.
_HOST = r"^[a-z][a-z0-9+.\-]*://(?:[^/?#@]*@)?(?:www\.)?(?P<host>[^/?#:@]+)"

CHEAP = ["uid", "width", "height", "captions", "url", "license", "source", "split"]  # columns of a row that statistics are made of


def _sum(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return {name: _sum(a[name], b[name]) if name in a and name in b else a.get(name, b.get(name)) for name in {**a, **b}}
    return a + b


class _Sum(BaseModel, frozen=True, extra="forbid"):
    """Numbers, mappings and other sums; the sum of two has the sums of their fields. A new one is zero."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: _sum(getattr(self, name), getattr(other, name)) for name in type(self).model_fields})


class Histogram(BaseModel, frozen=True, extra="forbid"):
    """Positive numbers in logarithmic bins; bin b holds those from 2^(b/32) to below 2^((b+1)/32)."""

    bins: dict[int, int] = Field(default_factory=dict, description="bin → how many")
    lows: dict[int, float] = Field(default_factory=dict, description="bin → the smallest of them")
    total: int | None = Field(0, description="sum of the values, where they are whole numbers")
    low: float | None = Field(None, description="smallest value")
    high: float | None = Field(None, description="largest value")

    @classmethod
    def of(cls, values: NDArray[Any]) -> Histogram:
        """Count values, all above zero."""
        if not len(values):
            return cls()
        assert values.min() > 0, values.min()
        values = np.sort(values)
        bins, first, counts = np.unique(np.floor(np.log2(values) * BINS).astype(np.int64), return_index=True, return_counts=True)
        return cls(
            bins=dict(zip(bins.tolist(), counts.tolist(), strict=True)),
            lows=dict(zip(bins.tolist(), values[first].astype(np.float64).tolist(), strict=True)),
            total=int(values.sum()) if np.issubdtype(values.dtype, np.integer) else None,
            low=float(values[0]),
            high=float(values[-1]),
        )

    def __add__(self, other: Histogram) -> Histogram:
        ends = [(one.low, one.high) for one in (self, other) if one.low is not None and one.high is not None]
        return Histogram(
            bins=_sum(self.bins, other.bins),
            lows={place: min(one.lows[place] for one in (self, other) if place in one.lows) for place in {**self.lows, **other.lows}},
            total=self.total + other.total if self.total is not None and other.total is not None else None,
            low=min((low for low, _ in ends), default=None),
            high=max((high for _, high in ends), default=None),
        )

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.bins.values())

    @property
    def mean(self) -> float | None:
        """Arithmetic mean, exact; None for ratios and for nothing."""
        return self.total / self.count if self.total is not None and self.bins else None

    def quantile(self, q: float) -> float | None:
        """The smallest value that at least a share q of the values does not exceed, or one at most 2.2 % below. None if there are none."""
        if not self.bins:
            return None
        places = sorted(self.bins)
        reached = np.cumsum([self.bins[place] for place in places])
        place = places[int(np.searchsorted(reached, max(1.0, np.ceil(q * self.count))))]
        return self.high if q == 1 else self.lows[place]


class Tally(BaseModel, frozen=True, extra="forbid"):
    """How often values occur that may be of any number: exact while they are few, then from a uniform sample of rows."""

    total: int = Field(0, description="rows that have a value")
    counts: dict[str, int] | None = Field(default_factory=dict, description="value → rows; null: more than 1024 different ones")
    sample: list[tuple[str, str]] = Field(default_factory=list, description="(start of the uid, value) of the rows of smallest uid")

    @classmethod
    def of(cls, uids: pa.Array, values: pa.Array) -> Tally:
        """Count the values that are not null."""
        there = pc.is_valid(values)
        rows = pa.table({"uid": pc.utf8_slice_codeunits(uids, 0, 12), "value": pc.utf8_slice_codeunits(values, 0, _LONGEST)}).filter(there)
        if not rows.num_rows:
            return cls()
        counted = rows["value"].combine_chunks().value_counts()
        distinct = rows.group_by(["uid", "value"], use_threads=False).aggregate([])
        first = distinct.take(pc.select_k_unstable(distinct, SAMPLE, sort_keys=[("uid", "ascending"), ("value", "ascending")]))
        return cls(
            total=rows.num_rows,
            counts={pair["values"]: pair["counts"] for pair in counted.to_pylist()} if len(counted) <= DISTINCT else None,
            sample=list(zip(first["uid"].to_pylist(), first["value"].to_pylist(), strict=True)),
        )

    def __add__(self, other: Tally) -> Tally:
        counts = _sum(self.counts, other.counts) if self.counts is not None and other.counts is not None else None
        return Tally(
            total=self.total + other.total,
            counts=counts if counts is not None and len(counts) <= DISTINCT else None,
            sample=sorted({*self.sample, *other.sample})[:SAMPLE],
        )

    def anonymous(self) -> Tally:
        """The same shares without what names rows, to be shown and not added any more."""
        sample = [] if self.exact else [(str(i), value) for i, (_, value) in enumerate(self.sample)]
        return self.model_copy(update={"sample": sample})

    @property
    def exact(self) -> bool:
        """Whether `top` counts every row."""
        return self.counts is not None

    def top(self, number: int) -> list[tuple[str, float]]:
        """The most frequent values with their share of the rows that have one, ties by name."""
        counts, total = self.counts, self.total
        if counts is None:
            counts, total = {}, len(self.sample)
            for _, value in self.sample:
                counts[value] = counts.get(value, 0) + 1
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return [(value, count / total) for value, count in ordered[:number]]


class SampleStats(_Sum, frozen=True, extra="forbid"):
    """What samples look like. The same whether made on a worker or read from the table."""

    rows: int = 0
    width: Histogram = Field(default_factory=Histogram, description="of the stored image, px")
    height: Histogram = Field(default_factory=Histogram, description="of the stored image, px")
    aspect: Histogram = Field(default_factory=Histogram, description="width / height")
    captions: dict[str, Histogram] = Field(default_factory=dict, description="kind → captions a sample, of the samples that have some")
    characters: dict[str, Histogram] = Field(default_factory=dict, description="kind → length of a caption")
    words: dict[str, Histogram] = Field(default_factory=dict, description="kind → words of a caption, which are what spaces part")
    licenses: Tally = Field(default_factory=Tally)
    domains: Tally = Field(default_factory=Tally, description="hosts the images came from")
    sources: dict[str, int] = Field(default_factory=dict, description="name of the source → rows")
    splits: dict[str, int] = Field(default_factory=dict, description="train, held_out → rows")

    @classmethod
    def of(cls, rows: pa.RecordBatch | pa.Table) -> SampleStats:
        """Of rows with the columns `CHEAP`."""
        if not rows.num_rows:
            return cls()
        width, height = (_whole(rows[name]).to_numpy(zero_copy_only=False).astype(np.int64) for name in ("width", "height"))
        captions = _whole(rows["captions"])
        parents = pc.list_parent_indices(captions).to_numpy(zero_copy_only=False)
        flat = pc.list_flatten(captions)
        text, kind = pc.struct_field(flat, "text"), pc.struct_field(flat, "kind")
        characters = pc.utf8_length(text).to_numpy(zero_copy_only=False).astype(np.int64)
        words = pc.count_substring(text, " ").to_numpy(zero_copy_only=False).astype(np.int64) + 1
        number: dict[str, Histogram] = {}
        lengths: dict[str, Histogram] = {}
        spaces: dict[str, Histogram] = {}
        for name in sorted(pc.unique(kind).to_pylist()):
            chosen = pc.equal(kind, name).to_numpy(zero_copy_only=False)
            each = np.bincount(parents[chosen])
            number[name] = Histogram.of(each[each > 0])
            lengths[name] = Histogram.of(np.maximum(characters[chosen], 1))
            spaces[name] = Histogram.of(words[chosen])
        uids = _whole(rows["uid"])
        host = pc.struct_field(pc.extract_regex(pc.utf8_lower(_whole(rows["url"]).cast(pa.string())), _HOST), "host")
        return cls(
            rows=rows.num_rows,
            width=Histogram.of(width),
            height=Histogram.of(height),
            aspect=Histogram.of(width / height),
            captions=number,
            characters=lengths,
            words=spaces,
            licenses=Tally.of(uids, _whole(rows["license"]).cast(pa.string())),
            domains=Tally.of(uids, host),
            sources=_counts(rows["source"]),
            splits=_counts(rows["split"]),
        )


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _counts(column: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in _whole(column).value_counts().to_pylist()}


class IngestStats(_Sum, frozen=True, extra="forbid"):
    """What an ingest, or one shard of it, received, refused and kept.

    On a worker `received` = `kept.rows` + the sum of `refused`. The committer adds what deduplication decided: refusals for its reasons,
    `added` and `again`; then `received` = `added` + `again` + the sum of `refused`, while `kept` still has what it refused.
    """

    shards: int = 0
    received: int = Field(0, description="samples")
    bytes_read: int = Field(0, description="of the images and captions received")
    bytes_written: int = Field(0, description="of the images kept")
    formats: dict[str, int] = Field(default_factory=dict, description="format as received → kept samples")
    passthrough: int = Field(0, description="kept byte for byte")
    reencoded: int = Field(0, description="decoded and encoded anew")
    received_width: Histogram = Field(default_factory=Histogram, description="of kept images as received, px")
    received_height: Histogram = Field(default_factory=Histogram, description="of kept images as received, px")
    image_bytes: Histogram = Field(default_factory=Histogram, description="of the stored image")
    kept: SampleStats = Field(default_factory=SampleStats, description="samples that reached deduplication")
    refused: dict[str, int] = Field(default_factory=dict, description="reason → samples")
    failed: dict[str, int] = Field(default_factory=dict, description="reason → those of them that a failure budget counts")
    failed_shards: dict[str, int] = Field(default_factory=dict, description="reason → shards that were not read, or not to their end")
    added: int = Field(0, description="rows that came into the table")
    again: int = Field(0, description="samples that were rows already, from a shard that was moved or read before")
    nanoseconds: dict[str, int] = Field(default_factory=dict, description="step → work, added up over workers")

    def seconds(self) -> dict[str, float]:
        """Step → seconds of work, added up over workers."""
        return {step: spent / 1e9 for step, spent in self.nanoseconds.items()}


class _Opened(Protocol):
    """An image whose header was read: its format and size as received."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def format(self) -> str: ...


class StatsBuilder:
    """The statistics of one shard while it is read; some microseconds a sample, and memory for 1024 of them."""

    def __init__(self) -> None:
        self._sum = IngestStats()
        self._rows: list[tuple[Any, ...]] = []
        self._received = self._bytes_read = self._bytes_written = self._passthrough = 0
        self._refused: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        self._failed_shards: dict[str, int] = {}
        self._nanoseconds: dict[str, int] = {}

    def received(self, num_bytes: int) -> None:
        """A sample was read, with so many bytes of image and captions."""
        self._received += 1
        self._bytes_read += num_bytes

    def kept(self, row: Mapping[str, Any], opened: _Opened, *, passthrough: bool) -> None:
        """A sample became a row: its `CHEAP` columns and `image` are looked at."""
        size = len(row["image"])
        self._bytes_written += size
        self._passthrough += passthrough
        self._rows.append((*[row[name] for name in CHEAP], size, opened.width, opened.height, opened.format))
        if len(self._rows) >= _FLUSH:
            self._flush()

    def refused(self, reject: Reject) -> None:
        """A sample was refused, or with an empty key the shard itself or the rest of it."""
        if not reject.key:
            self._failed_shards[reject.error] = self._failed_shards.get(reject.error, 0) + 1
            return
        self._refused[reject.error] = self._refused.get(reject.error, 0) + 1
        if counts_as_failure(reject):
            self._failed[reject.error] = self._failed.get(reject.error, 0) + 1

    def spent(self, step: str, seconds: float) -> None:
        """So much time went into a step: read, decode, write, …"""
        self._nanoseconds[step] = self._nanoseconds.get(step, 0) + round(seconds * 1e9)

    def _flush(self) -> None:
        if not self._rows:
            return
        columns: Sequence[Sequence[Any]] = list(zip(*self._rows, strict=True))
        self._rows = []
        # Captions are dictionaries of two strings: taken apart here, since Arrow is slow to find that out row by row.
        captions = cast(Sequence[Sequence[Mapping[str, str]]], columns[CHEAP.index("captions")])
        flat = pa.StructArray.from_arrays(
            [pa.array([caption[name] for several in captions for caption in several], pa.string()) for name in ("text", "kind")],
            ["text", "kind"],
        )
        offsets = np.concatenate([[0], np.cumsum([len(several) for several in captions])]).astype(np.int32)
        arrays = {
            name: pa.array(column, pa.int64() if name in ("width", "height") else pa.string())
            for name, column in zip(CHEAP, columns, strict=False)
            if name != "captions"
        }
        arrays["captions"] = pa.ListArray.from_arrays(offsets, flat)
        size, width, height = (np.asarray(column, np.int64) for column in columns[len(CHEAP) : len(CHEAP) + 3])
        formats, counts = np.unique(np.asarray(columns[-1]), return_counts=True)
        self._sum += IngestStats(
            received_width=Histogram.of(width),
            received_height=Histogram.of(height),
            image_bytes=Histogram.of(size),
            formats=dict(zip(formats.tolist(), counts.tolist(), strict=True)),
            kept=SampleStats.of(pa.table(arrays)),
        )

    def build(self) -> IngestStats:
        """What was counted, as of one shard."""
        self._flush()
        return self._sum + IngestStats(
            shards=1,
            received=self._received,
            bytes_read=self._bytes_read,
            bytes_written=self._bytes_written,
            passthrough=self._passthrough,
            reencoded=self._sum.kept.rows - self._passthrough,
            refused=dict(self._refused),
            failed=dict(self._failed),
            failed_shards=dict(self._failed_shards),
            nanoseconds=dict(self._nanoseconds),
        )
