"""Folders of images whose descriptions are damaged, lie, or lead elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tars import picture

from malformed.kinds import GOOD, Kind, caption_of, json_bytes, register, write

Make = Callable[[Path], None]


def good_rows() -> list[dict[str, Any]]:
    return [{"file_name": f"good{n}.jpg", "text": caption_of(n)} for n in GOOD]


def good_images(folder: Path) -> None:
    for n in GOOD:
        write(folder / f"good{n}.jpg", picture(n))


def jsonl(*bad: bytes | dict[str, Any]) -> bytes:
    """A good line, the bad ones, two good lines."""
    first, *others = good_rows()
    return b"".join((line if isinstance(line, bytes) else json_bytes(line)) + b"\n" for line in (first, *bad, *others))


def csv(*bad: bytes) -> bytes:
    first, *others = [f"{row['file_name']},{row['text']}".encode() for row in good_rows()]
    return b"".join(line + b"\n" for line in (b"file_name,text", first, *bad, *others))


def described(name: str, *rejects: tuple[str, str], **fields: Any) -> Callable[[Make], Make]:
    """A function that writes what is bad into a folder in which good images lie."""

    def wrap(fill: Make) -> Make:
        def make(folder: Path) -> Path:
            inner = folder / "in"
            good_images(inner)
            fill(inner)
            return inner

        register(Kind(f"folder-{name}", "imagefolder", make, rejects, **fields))
        return fill

    return wrap


def line(name: str, error: str | None, row: bytes | dict[str, Any], key: str = "bad.jpg", **fields: Any) -> None:
    """A line of `metadata.jsonl`, with an image that it may be of. Error None: it is a row."""
    rejects = () if error is None else ((key, error),)

    @described(name, *rejects, kept=(key,) if error is None else (), **fields)
    def _fill(folder: Path) -> None:
        if key == "bad.jpg":
            write(folder / key, picture(110))
        write(folder / "metadata.jsonl", jsonl(row))


def field(name: str, error: str | None, row: bytes, key: str = "bad.jpg", image: bool = True) -> None:
    """A line of `metadata.csv`."""
    rejects = () if error is None else ((key, error),)

    @described(name, *rejects, kept=(key,) if error is None else ())
    def _fill(folder: Path) -> None:
        if image:
            write(folder / "bad.jpg", picture(111))
        write(folder / "metadata.csv", csv(row))


def file(name: str, *rejects: tuple[str, str], **fields: Any) -> Callable[[Make], Make]:
    """A function that adds something to a folder with captions beside the images."""

    def wrap(fill: Make) -> Make:
        def both(folder: Path) -> None:
            for n in GOOD:
                write(folder / f"good{n}.txt", caption_of(n))
            fill(folder)

        described(name, *rejects, **fields)(both)
        return fill

    return wrap


# metadata.jsonl
line("line-broken", "BadRow", b'{"file_name": "bad.j', key="metadata.jsonl:2")
line("line-of-an-array", "BadRow", b'["bad.jpg", "a picture"]', key="metadata.jsonl:2")
line("line-nested-too-deep", "BadRow", b"[" * 100_000, key="metadata.jsonl:2")
line("line-of-megabytes", "BadRow", b'{"file_name": "bad.jpg", "text": "' + b"x" * (3 << 20) + b'"}', key="metadata.jsonl:2")
line("line-of-binary", "BadRow", bytes(range(11, 256)), key="metadata.jsonl:2")
line("line-without-a-file-name", "BadRow", {"text": "a picture"}, key="metadata.jsonl:2")
line("file-name-of-a-number", "BadRow", {"file_name": 17, "text": "a picture"}, key="metadata.jsonl:2")
line("file-name-null", "BadRow", {"file_name": None, "text": "a picture"}, key="metadata.jsonl:2")
line("file-missing", "NoImage", {"file_name": "missing.jpg", "text": "a picture"}, key="missing.jpg")
line("file-name-traversal", "UnsafePath", {"file_name": "../../etc/passwd", "text": "a picture"}, key="../../etc/passwd")
line("file-name-absolute", "UnsafePath", {"file_name": "/etc/passwd", "text": "a picture"}, key="/etc/passwd")
line("file-name-of-windows", "UnsafePath", {"file_name": "..\\..\\a.jpg", "text": "a picture"}, key="..\\..\\a.jpg")
line("file-name-with-nul", "UnsafePath", {"file_name": "bad\0.jpg", "text": "a picture"}, key="bad\0.jpg")
line("file-name-of-a-url", "NoImage", {"file_name": "http://a.org/1.jpg", "text": "a picture"}, key="http:/a.org/1.jpg")
line("text-of-a-number", "BadRow", {"file_name": "bad.jpg", "text": 17})
line("text-of-nan", "BadRow", b'{"file_name": "bad.jpg", "text": NaN}')
line("text-null", "NoCaption", {"file_name": "bad.jpg", "text": None})
line("text-missing", "NoCaption", {"file_name": "bad.jpg"})
line("text-not-utf-8", "CaptionNotUtf8", b'{"file_name": "bad.jpg", "text": "caf\xe9"}')
line("text-with-half-a-pair", "CaptionNotUtf8", b'{"file_name": "bad.jpg", "text": "half \\ud83d"}')
line("carriage-return", None, b'{"file_name": "bad.jpg", "text": "a picture"}\r')
line("nan-in-other-fields", None, b'{"file_name": "bad.jpg", "text": "a picture", "score": NaN, "n": 1e999}')


@described("file-named-twice", kept=("bad.jpg",))
def _twice(folder: Path) -> None:
    write(folder / "bad.jpg", picture(112))
    row = {"file_name": "bad.jpg", "text": "a picture"}
    write(folder / "metadata.jsonl", jsonl(row, {**row, "text": "another"}))


@described("byte-order-mark-and-empty-lines", kept=("bad.jpg",))
def _mark(folder: Path) -> None:
    write(folder / "bad.jpg", picture(113))
    write(folder / "metadata.jsonl", b"\xef\xbb\xbf" + jsonl(b"", b"  ", {"file_name": "./bad.jpg", "text": "a picture"}))


@described("image-not-described", ("bad.jpg", "NoCaption"))
def _undescribed(folder: Path) -> None:
    write(folder / "bad.jpg", picture(114))
    write(folder / "metadata.jsonl", jsonl())


# metadata.csv
field("csv-with-nul", None, b"bad.jpg,a pic\0ture")
field("csv-too-few-fields", "NoCaption", b"bad.jpg")
field("csv-too-many-fields", "BadRow", b"bad.jpg,a picture,of,what", key="metadata.csv:3", image=False)
field("csv-of-latin-1", "CaptionNotUtf8", b"bad.jpg,caf\xe9")
field("csv-over-lines", None, b'bad.jpg,"a picture\nof a ""dog"", sitting"')
field("csv-without-a-file-name", "BadRow", b",a picture", key="metadata.csv:3", image=False)


@described("csv-quote-not-closed", ("bad.jpg", "NoCaption"), ("metadata.csv:3", "BadRow"))
def _quote(folder: Path) -> None:
    """The line, and none after it."""
    write(folder / "bad.jpg", picture(115))
    write(folder / "metadata.csv", csv(b'"bad.jpg,a picture'))


# Beside the images
@file("text-empty", ("bad.jpg", "NoCaption"))
def _empty(folder: Path) -> None:
    write(folder / "bad.jpg", picture(116))
    write(folder / "bad.txt", b"")


@file("text-missing-beside", ("bad.jpg", "NoCaption"))
def _alone(folder: Path) -> None:
    write(folder / "bad.jpg", picture(117))


@file("text-without-image", ("bad.txt", "NoImage"))
def _text(folder: Path) -> None:
    write(folder / "bad.txt", b"a picture")


@file("text-too-large", ("bad.jpg", "CaptionTooLong"), config={"max_bytes": 50_000})
def _large(folder: Path) -> None:
    write(folder / "bad.jpg", picture(118))
    write(folder / "bad.txt", b"a picture " * 6000)


@file("image-too-large", ("bad.jpg", "TooLarge"), config={"max_bytes": 50_000})
def _large_image(folder: Path) -> None:
    write(folder / "bad.jpg", bytes(50_001))
    write(folder / "bad.txt", b"a picture")


@file("image-cut", ("bad.jpg", "BrokenImage"))
def _cut(folder: Path) -> None:
    write(folder / "bad.jpg", picture(119, (64, 48))[:700])
    write(folder / "bad.txt", b"a picture")


@file("link-out", ("bad.jpg", "UnsafePath"))
def _link(folder: Path) -> None:
    write(folder.parent / "outside.jpg", picture(120))
    (folder / "bad.jpg").symlink_to("../outside.jpg")
    write(folder / "bad.txt", b"a picture")


@file("link-out-for-a-caption", ("bad.jpg", "UnsafePath"))
def _link_text(folder: Path) -> None:
    write(folder / "bad.jpg", picture(121))
    (folder / "bad.txt").symlink_to("/etc/hostname")


@file("link-to-nothing", ("bad.jpg", "UnsafePath"))
def _dangling(folder: Path) -> None:
    (folder / "bad.jpg").symlink_to("nowhere.jpg")
    write(folder / "bad.txt", b"a picture")


@file("link-to-itself", ("bad.jpg", "UnsafePath"))
def _circle(folder: Path) -> None:
    (folder / "bad.jpg").symlink_to("bad.jpg")
    write(folder / "bad.txt", b"a picture")


@file("link-to-a-folder", ("more", "UnsafePath"))
def _folder_link(folder: Path) -> None:
    write(folder.parent / "other" / "bad.jpg", picture(122))
    (folder / "more").symlink_to("../other")


@file("link-to-its-own-folder")
def _loop(folder: Path) -> None:
    (folder / "loop").symlink_to(".")


@file("pipe", ("bad.jpg", "UnsafePath"))
def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "bad.jpg")
    write(folder / "bad.txt", b"a picture")


@file("folder-called-jpg")
def _directory(folder: Path) -> None:
    (folder / "bad.jpg").mkdir()


@file("what-systems-leave", kept=("sub/bad.JPG",))
def _leave(folder: Path) -> None:
    for name in (".DS_Store", "._good1.jpg", "Thumbs.db", "__MACOSX/good1.jpg", ".git/a.jpg", "README.md"):
        write(folder / name, b"x")
    write(folder / "sub" / "bad.JPG", picture(123))
    write(folder / "sub" / "bad.txt", b"a picture")


@file("name-of-bytes", ("b\\xe4d.jpg", "BrokenImage"), kept=("b\\xf6d.jpg",))
def _bytes(folder: Path) -> None:
    for name, content in ((b"b\xe4d", picture(124)[:90]), (b"b\xf6d", picture(125))):
        write(folder / os.fsdecode(name + b".jpg"), content)
        write(folder / os.fsdecode(name + b".txt"), b"a picture")


def refused(name: str, error: type[Exception], says: str) -> Callable[[Make], Make]:
    return described(name, good=(), refusal=(error, says))


@refused("without-captions", ValueError, r"not one usable sample \(3 × NoCaption\)")
def _nothing(folder: Path) -> None:
    """Images alone."""


@refused("metadata-parquet-broken", ValueError, "metadata.parquet is no parquet")
def _parquet(folder: Path) -> None:
    write(folder / "metadata.parquet", b"PAR1" + bytes(100))


@refused("csv-without-the-column", ValueError, r"not one usable sample \(3 × BadRow, 3 × NoCaption\)")
def _column(folder: Path) -> None:
    write(folder / "metadata.csv", csv().replace(b"file_name", b"name"))


# COCO
def coco(name: str, *rejects: tuple[str, str], **fields: Any) -> Callable[[Callable[[dict[str, Any]], Any]], None]:
    """A function that spoils a good document; `bad.jpg` lies in the folder and is of nobody yet."""

    def wrap(spoil: Callable[[dict[str, Any]], Any]) -> None:
        def make(folder: Path) -> Path:
            good_images(folder)
            write(folder / "bad.jpg", picture(126))
            document: dict[str, Any] = {
                "images": [{"id": n, "file_name": f"good{n}.jpg", "width": 24, "height": 16} for n in GOOD],
                "annotations": [{"id": n, "image_id": n, "caption": caption_of(n)} for n in GOOD],
            }
            spoiled = spoil(document)
            content = spoiled if isinstance(spoiled, bytes) else json.dumps(document).encode()
            return write(folder / "captions_val.json", content)

        register(Kind(f"coco-{name}", "coco", make, rejects, **{"source": {"format": "coco"}, **fields}))

    return wrap


def image(document: dict[str, Any], **more: Any) -> None:
    document["images"].append({"id": 9, "file_name": "bad.jpg", **more})


def annotation(document: dict[str, Any], **more: Any) -> None:
    document["annotations"].append({"id": 9, "image_id": 9, "caption": "a picture", **more})


def both(document: dict[str, Any], image_says: dict[str, Any] | None = None, **more: Any) -> None:
    image(document, **(image_says or {}))
    annotation(document, **more)


coco("fine", kept=("bad.jpg",))(both)
coco("image-without-caption", ("bad.jpg", "NoCaption"))(image)
coco("caption-null", ("bad.jpg", "NoCaption"))(lambda d: both(d, caption=None))
coco("caption-of-a-number", ("bad.jpg", "BadRow"))(lambda d: both(d, caption=17))
coco("caption-empty", ("bad.jpg", "NoCaption"))(lambda d: both(d, caption=""))
coco("caption-of-another-image", ("image_id 9", "NoImage"))(annotation)
coco("file-missing", ("missing.jpg", "NoImage"))(lambda d: both(d, {"file_name": "missing.jpg"}))
coco("file-name-traversal", ("../bad.jpg", "UnsafePath"))(lambda d: both(d, {"file_name": "../bad.jpg"}))
coco("file-name-absolute", ("/etc/passwd", "UnsafePath"))(lambda d: both(d, {"file_name": "/etc/passwd"}))
coco("broken", good=(), refusal=(ValueError, "is no COCO captions file"))(lambda d: json.dumps(d).encode()[:-40])
coco("of-an-array", good=(), refusal=(ValueError, "is no COCO captions file"))(lambda d: b"[1, 2]")
coco("of-nothing", good=(), refusal=(ValueError, "is no COCO captions file"))(lambda d: b"")
coco("nested-too-deep", good=(), refusal=(ValueError, "is no COCO captions file"))(lambda d: b"[" * 100_000)
