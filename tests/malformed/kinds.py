"""What a kind of bad input is, and the good samples beside it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tars import picture, sample

GOOD = (1, 2, 3)  # seeds of the pictures that lie beside the bad one
Content = bytes | list[tuple[str, bytes]]
Entry = tuple[str | tarfile.TarInfo, bytes]


@dataclass(frozen=True)
class Kind:
    """One kind of bad input. Whatever it is, the good samples must be rows; refused is what is said here, no more; nothing raises."""

    name: str
    format: str
    make: Callable[[Path], Path | str]  # writes it into an empty folder; the URI to ingest
    rejects: tuple[tuple[str, str], ...] = ()  # (key, error); key "" is the shard
    kept: tuple[str, ...] = ()  # keys of samples that look bad and are not
    good: tuple[int, ...] = GOOD
    refusal: tuple[type[Exception], str] | None = None  # the whole source is refused: exception, and what its message says
    config: Mapping[str, Any] = field(default_factory=dict)  # of ingest
    source: Mapping[str, Any] = field(default_factory=dict)  # of the source

    @property
    def samples(self) -> int:
        """How many samples lie in it: each is a row or a refusal."""
        return len(self.good) + len(self.kept) + sum(1 for key, _ in self.rejects if key)


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> Kind:
    assert kind.name not in KINDS, kind.name
    KINDS[kind.name] = kind
    return kind


def source(name: str, form: str, *rejects: tuple[str, str], **fields: Any) -> Callable[[Callable[[Path], Path | str]], Kind]:
    """A function that writes into a folder."""

    def wrap(make: Callable[[Path], Path | str]) -> Kind:
        return register(Kind(name, form, make, rejects, **fields))

    return wrap


def tar_bytes(entries: Iterable[Entry], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of members; what a `TarInfo` says is not checked, sizes aside."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for given, content in entries:
            info = tarfile.TarInfo(given) if isinstance(given, str) else given
            if info.isreg():
                info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tar_body(entries: Iterable[Entry]) -> bytes:
    """The members of a tar without the mark of its end."""
    entries = list(entries)
    buffer = io.BytesIO(tar_bytes(entries))
    with tarfile.open(fileobj=buffer) as file:
        last = file.getmembers()[-1]
    return buffer.getvalue()[: last.offset_data + -(-last.size // 512) * 512]


def good(number: int) -> list[Entry]:
    """The members of a good sample."""
    return list(sample(number, "good"))


def neighbours(between: Iterable[Entry]) -> list[Entry]:
    """A good sample before, two after."""
    return [*good(1), *between, *good(2), *good(3)]


def caption_of(number: int) -> str:
    return f"picture {number}"


def in_tar(
    name: str, *rejects: tuple[str, str], file: str = "bad.tar", **fields: Any
) -> Callable[[Callable[[], Iterable[Entry]]], Callable[[], Iterable[Entry]]]:
    """A function that gives the members between good ones."""

    def wrap(between: Callable[[], Iterable[Entry]]) -> Callable[[], Iterable[Entry]]:
        def make(folder: Path) -> Path:
            (folder / file).write_bytes(tar_bytes(neighbours(between())))
            return folder / file

        register(Kind(name, "webdataset", make, rejects, **fields))
        return between

    return wrap


def as_tar(
    name: str, *rejects: tuple[str, str], file: str = "bad.tar", **fields: Any
) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """A function that gives the bytes of a shard."""

    def wrap(content: Callable[[], bytes]) -> Callable[[], bytes]:
        def make(folder: Path) -> Path:
            (folder / file).write_bytes(content())
            return folder / file

        register(Kind(name, "webdataset", make, rejects, **fields))
        return content

    return wrap


def bad_image(name: str, error: str | None, content: Callable[[], bytes], ending: str = "jpg", **fields: Any) -> None:
    """An image of a sample that is fine otherwise. Error None: it is a row."""

    def between() -> list[Entry]:
        return [(f"bad.{ending}", content()), ("bad.txt", b"a picture that is not well")]

    rejects = () if error is None else (("bad", error),)
    in_tar(f"image-{name}", *rejects, kept=("bad",) if error is None else (), **fields)(between)


def bad_caption(name: str, error: str | None, content: bytes | None, **fields: Any) -> None:
    """A caption beside an image that is fine. Error None: it is a row."""

    def between() -> list[Entry]:
        return [("bad.jpg", picture(50)), *([] if content is None else [("bad.txt", content)])]

    rejects = () if error is None else (("bad", error),)
    in_tar(f"caption-{name}", *rejects, kept=("bad",) if error is None else (), **fields)(between)


def bad_meta(name: str, content: bytes, error: str | None = None, caption: bytes | None = b"a picture", **fields: Any) -> None:
    """A JSON beside an image that is fine."""

    def between() -> list[Entry]:
        return [("bad.jpg", picture(51)), *([] if caption is None else [("bad.txt", caption)]), ("bad.json", content)]

    rejects = () if error is None else (("bad", error),)
    in_tar(f"json-{name}", *rejects, kept=("bad",) if error is None else (), **fields)(between)


def beside_good(
    name: str, form: str, file: str, *rejects: tuple[str, str], **fields: Any
) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """A function that gives the bytes of a shard of which nothing can be used; a good one lies beside it."""

    def wrap(content: Callable[[], bytes]) -> Callable[[], bytes]:
        def make(folder: Path) -> Path:
            ending = file.partition(".")[2]
            write(folder / file, content())
            write(folder / f"good.{ending}", GOOD_SHARDS[form]())
            return folder

        register(Kind(name, form, make, rejects, **fields))
        return content

    return wrap


GOOD_SHARDS: dict[str, Callable[[], bytes]] = {"webdataset": lambda: tar_bytes(neighbours([]))}  # what a shard of good samples is


def records() -> list[dict[str, Any]]:
    """Good samples as rows of a table."""
    return [{"image": picture(n), "caption": caption_of(n), "key": f"good{n:06d}"} for n in GOOD]


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_bytes(document: Any) -> bytes:
    return json.dumps(document).encode()
