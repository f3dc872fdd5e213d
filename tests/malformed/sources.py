"""Sources of which nothing can be read at all, and folders with something among their shards that is none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tars import picture

from malformed.kinds import GOOD_SHARDS, source, write


def refused(name: str, error: type[Exception], says: str):  # type: ignore[no-untyped-def]
    return source(f"source-{name}", "auto", good=(), refusal=(error, says))


def good_tar(folder: Path) -> Path:
    write(folder / "good.tar", GOOD_SHARDS["webdataset"]())
    return folder


@refused("unknown-ending", ValueError, "cannot tell the format")
def _ending(folder: Path) -> Path:
    return write(folder / "data.xyz", b"x")


@refused("zip", ValueError, "unzip it")
def _zip(folder: Path) -> Path:
    return write(folder / "data.zip", b"PK\x05\x06" + bytes(18))


@refused("missing", FileNotFoundError, "does not exist")
def _missing(folder: Path) -> Path:
    return folder / "nowhere.tar"


@refused("empty-folder", FileNotFoundError, "is a folder without shards: it is empty")
def _empty(folder: Path) -> Path:
    return folder


@refused("folder-of-other-files", FileNotFoundError, "without shards: it holds")
def _other(folder: Path) -> Path:
    write(folder / "README.md", b"x")
    return folder


@refused("glob-of-nothing", FileNotFoundError, "matches no file")
def _glob(folder: Path) -> str:
    return f"{folder}/*.tar"


@refused("folder-called-tar", FileNotFoundError, "without shards")
def _called(folder: Path) -> Path:
    (folder / "x.tar").mkdir()
    return folder / "x.tar"


@refused("link-to-nothing", FileNotFoundError, "does not exist")
def _link(folder: Path) -> Path:
    (folder / "x.tar").symlink_to("nowhere.tar")
    return folder / "x.tar"


@refused("link-to-itself", FileNotFoundError, "does not exist")
def _circle(folder: Path) -> Path:
    (folder / "x.tar").symlink_to("x.tar")
    return folder / "x.tar"


@refused("range-backwards", ValueError, "is empty or too long")
def _range(folder: Path) -> str:
    return f"{folder}/{{9..0}}.tar"


@refused("range-without-end", ValueError, "is empty or too long")
def _endless(folder: Path) -> str:
    return f"{folder}/{{0..99999999999}}.tar"


@refused("unknown-scheme", ValueError, "cannot open")
def _scheme(folder: Path) -> str:
    return "gopher://example.org/x.tar"


@refused("password-in-the-uri", ValueError, "has a user or a password")
def _password(folder: Path) -> str:
    return "https://me:secret@example.org/x.tar"


@refused("several-formats", ValueError, "several formats")
def _several(folder: Path) -> Path:
    write(folder / "x.parquet", GOOD_SHARDS["parquet"]())
    write(folder / "x.arrow", GOOD_SHARDS["arrow"]())
    return folder


@refused("pictures-among-shards", ValueError, "several formats")
def _pictures(folder: Path) -> Path:
    write(folder / "preview.jpg", picture(130))
    return good_tar(folder)


@refused("nothing-usable", ValueError, r"not one usable sample \(1 × UnreadableShard\)")
def _unusable(folder: Path) -> Path:
    return write(folder / "x.tar", b"this is no tar " * 100)


@refused("pipe", OSError, "is no ordinary file")
def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.tar")
    return folder / "x.tar"


def permissions_hold() -> bool:
    """Not for root."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        return not os.access(file.name, os.R_OK)


if permissions_hold():

    @refused("unreadable", OSError, "none of 1 shards could be read")
    def _unreadable(folder: Path) -> Path:
        good_tar(folder).joinpath("good.tar").chmod(0)
        return folder / "good.tar"

    @source("source-unreadable-among-shards", "webdataset", ("", "Unreadable"))
    def _unreadable_among(folder: Path) -> Path:
        write(folder / "x.tar", GOOD_SHARDS["webdataset"]()).chmod(0)
        return good_tar(folder)


@source("source-folder-among-shards", "webdataset")
def _folder(folder: Path) -> Path:
    write(folder / "x.tar" / "picture.txt", b"x")
    return good_tar(folder)


@source("source-other-files-among-shards", "webdataset")
def _files(folder: Path) -> Path:
    """As img2dataset leaves them."""
    for name in ("good.parquet", "good_stats.json", "README.md", ".hidden.tar", "x.tar.part"):
        write(folder / name, b"x")
    return good_tar(folder)


@source("source-pipe-among-shards", "webdataset", ("", "Unreadable"))
def _pipe_among(folder: Path) -> Path:
    os.mkfifo(folder / "x.tar")
    return good_tar(folder)


@source("source-link-to-nothing-among-shards", "webdataset", ("", "Unreadable"))
def _link_among(folder: Path) -> Path:
    (folder / "x.tar").symlink_to("nowhere.tar")
    return good_tar(folder)
