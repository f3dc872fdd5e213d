"""`metadata.jsonl`, `.csv` and `.parquet` as Hugging Face's ImageFolder has them: rows that name a file and say things of it.

A row is found once, by whoever cuts the folder into parts, and read again by whoever reads its part; in between only its place is known.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mtv_core.data.sources.access import Opened, Options, opened
from mtv_core.data.sources.cells import cells, has_bytes
from mtv_core.data.sources.config import Columns

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_NAMES = ("file_name", "image_file_name", "filename", "file", "image", "path")  # columns, best first
_MAX_ROW = 1 << 20  # bytes
_BLOCK = 1 << 20
_GAP = 1 << 16  # bytes between two rows that are read as one piece
_BATCH = 4096
_TOO_LONG = b"x" * (_MAX_ROW + 1)

Place = tuple[str, int, int]  # file, first byte and length of a row; of a table, its number and 0


@dataclass(frozen=True)
class Row:
    """A row as it is found."""

    place: Place
    line: int  # from 1, for people
    digest: str  # of all it says
    file_name: str | None = None  # as it says it
    problem: str | None = None


def scan(path: str, name: str, columns: Columns, storage_options: Options) -> Iterator[Row]:
    """The rows of a file, one at a time.

    Args:
        path: full path or URI.
        name: what the file is called in the places.
        columns: `image` names the column with the file names, if it is none of the usual ones.
        storage_options: of its store.

    Raises:
        ValueError: it is not what its name says.
        OSError: it cannot be read now.
    """
    lower = path.lower()
    if lower.endswith(".parquet"):
        yield from _scan_parquet(path, name, columns, storage_options)
        return
    with opened(path, storage_options) as file:
        pieces = _csv_rows(file, path) if lower.endswith(".csv") else _json_rows(file)
        for start, line, raw, parsed in pieces:
            digest = hashlib.blake2b(raw, digest_size=8).hexdigest()
            place = (name, start, len(raw))
            if isinstance(parsed, str):
                yield Row(place, line, digest, problem=parsed)
                continue
            found = file_name(parsed, columns)
            yield Row(place, line, digest, found, None if found else _no_file(columns, parsed))


def fetch(places: Iterable[Place], folder: str, storage_options: Options) -> dict[Place, dict[str, Any]]:
    """The rows at some places of the files in a folder.

    Raises:
        OSError: a file cannot be read now, or is not the one that was scanned.
    """
    by_file: dict[str, list[Place]] = defaultdict(list)
    for place in sorted(set(places)):
        by_file[place[0]].append(place)
    found: dict[Place, dict[str, Any]] = {}
    for name, wanted in by_file.items():
        path = name if name.startswith("/") or "://" in name else f"{folder.rstrip('/')}/{name}"
        try:
            if name.lower().endswith(".parquet"):
                found.update(_fetch_parquet(path, wanted, storage_options))
                continue
            with opened(path, storage_options, sequential=False) as file:
                header = _header(_csv_lines(file), path) if name.lower().endswith(".csv") else None
                for place, raw in _pieces(file, wanted):
                    found[place] = _parse(raw, header)
        except (ValueError, csv.Error) as error:
            raise OSError(f"{path} changed while it was read ({error}); the next ingest looks again") from error
    return found


def file_name(found: Mapping[str, Any], columns: Columns) -> str | None:
    """The file that a row names."""
    names = FILE_NAMES if columns.image is None else (columns.image,)
    value = next((found[name] for name in names if found.get(name)), None)
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value if isinstance(value, str) else None


def _no_file(columns: Columns, row: Mapping[str, Any]) -> str:
    return f"names no file ({columns.image or ', '.join(FILE_NAMES[:3])}); it has {', '.join(map(str, row)) or 'nothing'}"


# Lines


def _lines(file: Opened) -> Iterator[tuple[int, bytes]]:
    """(first byte, line with its end). One that is too long is not kept: something else that is too long stands for it."""
    start, dropped, rest = 0, 0, b""
    while block := file.read(_BLOCK):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield start, _TOO_LONG if dropped else line + b"\n"
            start += dropped + len(line) + 1
            dropped = 0
        if dropped or len(rest) > _MAX_ROW:
            dropped, rest = dropped + len(rest), b""
    if dropped or rest:
        yield start, _TOO_LONG if dropped else rest


def _json_rows(file: Opened) -> Iterator[tuple[int, int, bytes, dict[str, Any] | str]]:
    for number, (start, line) in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        if len(line) > _MAX_ROW:
            yield start, number, b"", f"has more than {_MAX_ROW} bytes"
            continue
        try:
            yield start, number, line, _parse(line, None)
        except ValueError as error:
            yield start, number, line, f"is no JSON object ({error})"


def _parse(raw: bytes, header: list[str] | None) -> dict[str, Any]:
    """One row.

    Raises:
        ValueError, csv.Error: it is none.
    """
    if header is not None:
        values = next(csv.reader(io.StringIO(raw.decode(errors="surrogateescape"), newline=""), strict=True), [])
        return dict(zip(header, (value.encode(errors="surrogateescape") for value in values), strict=False))
    try:
        document = json.loads(raw.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"a {type(document).__name__}")
    return document


def _csv_lines(file: Opened) -> Iterator[tuple[int, int, bytes, list[str] | str]]:
    """(first byte, number of its last line, bytes, fields) of each row: one may go over several lines.

    A line whose quote is not closed would take those after it with it: it is refused alone, and they are read again.
    """
    lines = _lines(file)
    ahead: deque[tuple[int, bytes]] = deque()
    taken: list[tuple[int, bytes]] = []
    number = 0

    def feed() -> Iterator[str]:
        nonlocal number
        while (one := ahead.popleft() if ahead else next(lines, None)) is not None:
            taken.append(one)
            number += 1
            yield (one[1].removeprefix(b"\xef\xbb\xbf") if one[0] == 0 else one[1]).decode(errors="surrogateescape")

    reader = csv.reader(feed(), strict=True)
    while True:
        try:
            values: list[str] | str | None = next(reader, None)
        except csv.Error as error:
            values = f"is no CSV ({error}); is a quote not closed?"
            ahead.extendleft(reversed(taken[1:]))
            number -= len(taken) - 1
            del taken[1:]
            reader = csv.reader(feed(), strict=True)
        if values is None:
            return
        start, raw = taken[0][0], b"".join(line for _, line in taken)
        taken.clear()
        if values:
            yield start, number, raw, values


def _header(rows: Iterator[tuple[int, int, bytes, list[str] | str]], path: str) -> list[str]:
    header = next(rows, (0, 0, b"", ""))[3]
    if isinstance(header, str):
        raise ValueError(f"the first line of {path} has to name its columns; it {header or 'is empty'}")
    return header


def _csv_rows(file: Opened, path: str) -> Iterator[tuple[int, int, bytes, dict[str, Any] | str]]:
    rows = _csv_lines(file)
    header = _header(rows, path)
    for start, line, raw, values in rows:
        if isinstance(values, str):
            yield start, line, raw, values
        elif len(values) > len(header):
            yield start, line, raw, f"has {len(values)} fields, the first line {len(header)}"
        else:
            yield start, line, raw, dict(zip(header, (value.encode(errors="surrogateescape") for value in values), strict=False))


def _pieces(file: Opened, places: list[Place]) -> Iterator[tuple[Place, bytes]]:
    """Rows by place; near ones are read together."""
    at = 0
    while at < len(places):
        end = at + 1
        while end < len(places) and places[end][1] - sum(places[end - 1][1:]) < _GAP and sum(places[end][1:]) - places[at][1] < 8 * _BLOCK:
            end += 1
        first, last = places[at][1], sum(places[end - 1][1:])
        file.seek(first)
        block = file.read(last - first)
        for place in places[at:end]:
            yield place, block[place[1] - first : sum(place[1:]) - first]
        at = end


# Tables


def _scan_parquet(path: str, name: str, columns: Columns, storage_options: Options) -> Iterator[Row]:
    for number, row in enumerate(_parquet_rows(path, None, storage_options)):
        digest = hashlib.blake2b(repr(row).encode(errors="surrogatepass"), digest_size=8).hexdigest()
        found = file_name(row, columns)
        yield Row((name, number, 0), number + 1, digest, found, None if found else _no_file(columns, row))


def _fetch_parquet(path: str, places: list[Place], storage_options: Options) -> Iterator[tuple[Place, dict[str, Any]]]:
    wanted = {place[1]: place for place in places}
    rows = _parquet_rows(path, wanted.keys(), storage_options)
    yield from ((wanted[number], row) for number, row in zip(sorted(wanted), rows, strict=True))


def _parquet_rows(path: str, only: Iterable[int] | None, storage_options: Options) -> Iterator[dict[str, Any]]:
    """All rows, or those of some numbers in their order: only their row groups are read. Texts are bytes."""
    wanted = None if only is None else sorted(only)
    with opened(path, storage_options, sequential=False) as file:
        try:
            with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BLOCK) as parquet:
                names = [field.name for field in parquet.schema_arrow if not has_bytes(field.type)]
                first = 0  # row of the file
                for group in range(parquet.num_row_groups):
                    after = first + parquet.metadata.row_group(group).num_rows
                    if wanted is None or any(first <= number < after for number in wanted):
                        for batch in parquet.iter_batches(_BATCH, [group], names, use_threads=False):
                            columns = {name: cells(batch.column(name), True) for name in names}
                            here = range(batch.num_rows)
                            for row in here if wanted is None else [number - first for number in wanted if number - first in here]:
                                yield {name: column[row] for name, column in columns.items()}
                            first += batch.num_rows
                    first = after
        except (pa.ArrowException, OSError) as error:
            file.blame()
            raise ValueError(f"{path} is no parquet, or damaged ({' '.join(str(error).split())})") from error
