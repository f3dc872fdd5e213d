"""Tars that are cut, damaged, hostile, or merely unusual."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable

import pyarrow as pa
from tars import picture

from malformed.kinds import GOOD, Entry, as_tar, beside_good, good, in_tar, neighbours, tar_body, tar_bytes

WHOLE = tar_bytes(neighbours([]))
BLOCK = 512
FIRST, SECOND, THIRD = (
    len(tar_body([member for n in range(1, last + 1) for member in good(n)])) for last in GOOD
)  # where good samples end
BEFORE = WHOLE[:SECOND]


def info(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def header(name: bytes, size: bytes, kind: bytes = b"0", more: bytes = b"") -> bytes:
    """A header with a right checksum, whatever else it says."""
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size.ljust(12, b"\0") + b"00000000000\0" + b" " * 8 + kind
    block = bytearray((fields + bytes(100) + b"ustar  \0" + bytes(200))[:BLOCK].ljust(BLOCK, b"\0"))
    block[386 : 386 + len(more)] = more
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def octal(size: int) -> bytes:
    return f"{size:011o}".encode()


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header(b"PaxHeader", octal(len(records)), kind) + padded(records)


def record(name: str, value: str) -> bytes:
    body = f" {name}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def pair(key: str = "bad", seed: int = 80, caption: bytes = b"a picture") -> list[Entry]:
    return [(f"{key}.jpg", picture(seed)), (f"{key}.txt", caption)]


def damaged_by(name: str, damage: Callable[[], bytes], file: str = "bad.tar", good_ones: tuple[int, ...] = (1,)) -> None:
    """Something no tar may hold, behind two good samples."""

    def content() -> bytes:
        whole = BEFORE + damage() + tar_bytes(good(3))
        return gzip.compress(whole, mtime=0) if file.endswith("gz") else whole

    as_tar(f"tar-{name}", ("", "TruncatedShard"), file=file, good=good_ones)(content)


def beside_a_good_one(name: str, error: str, file: str = "bad.tar") -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """A shard of which nothing can be used."""
    return beside_good(f"tar-{name}", "webdataset", file, ("", error))


def changed(content: bytes, at: int) -> bytes:
    """With one bit turned."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


# Names and types of members
in_tar("tar-traversal", ("../../evil", "UnsafePath"))(lambda: pair("../../evil"))
in_tar("tar-traversal-inside", ("a/../../evil", "UnsafePath"))(lambda: pair("a/../../evil"))
in_tar("tar-absolute-name", ("/tmp/evil", "UnsafePath"))(lambda: pair("/tmp/evil"))
in_tar("tar-windows-drive", ("C:\\evil", "UnsafePath"))(lambda: pair("C:\\evil"))
in_tar("tar-windows-traversal", ("a\\", "UnsafePath"))(lambda: pair("a\\..\\..\\evil"))
in_tar("tar-symlink", ("bad", "UnsafePath"))(lambda: [(info("bad.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), ("bad.txt", b"a picture")])
in_tar("tar-symlink-to-a-neighbour", ("bad", "UnsafePath"))(
    lambda: [(info("bad.jpg", tarfile.SYMTYPE, "good000001.jpg"), b""), ("bad.txt", b"a picture")]
)
in_tar("tar-symlink-for-a-caption", ("bad", "UnsafePath"))(
    lambda: [("bad.jpg", picture(81)), (info("bad.txt", tarfile.SYMTYPE, "/etc/hostname"), b"")]
)
in_tar("tar-hard-link", ("bad", "UnsafePath"))(
    lambda: [(info("bad.jpg", tarfile.LNKTYPE, "good000001.jpg"), b""), ("bad.txt", b"a picture")]
)
in_tar("tar-character-device", ("bad", "UnsafePath"))(lambda: [(info("bad.jpg", tarfile.CHRTYPE), b""), ("bad.txt", b"a picture")])
in_tar("tar-block-device", ("bad", "UnsafePath"))(lambda: [(info("bad.jpg", tarfile.BLKTYPE), b""), ("bad.txt", b"a picture")])
in_tar("tar-pipe", ("bad", "UnsafePath"))(lambda: [(info("bad.jpg", tarfile.FIFOTYPE), b""), ("bad.txt", b"a picture")])
in_tar("tar-directories", kept=("bad",))(
    lambda: [(info("bad", tarfile.DIRTYPE), b""), (info("bad.jpg", tarfile.DIRTYPE), b""), (info("../..", tarfile.DIRTYPE), b""), *pair()]
)
in_tar("tar-name-of-bytes", kept=("b\\xe4d",))(lambda: pair("b\udce4d"))
in_tar("tar-name-of-controls", kept=("b\x1b[31m\nd",))(lambda: pair("b\x1b[31m\nd"))
in_tar("tar-name-of-5000", kept=("b" * 5000,))(lambda: pair("b" * 5000))
in_tar("tar-what-systems-leave", kept=("bad",))(
    lambda: [
        ("._bad.jpg", b"Mac OS X"), ("__MACOSX/bad.jpg", b"x"), (".DS_Store", b"x"), ("README", b"x"), (".jpg", b"x"), *pair()
    ]
)  # fmt: skip
in_tar("tar-upper-case", kept=("BAD",))(lambda: [("BAD.JPG", picture(82)), ("BAD.TXT", b"a picture")])
in_tar("tar-dots-in-the-name", ("bad", "NoImage"))(lambda: [("bad.v1.jpg", picture(83)), ("bad.v1.txt", b"a picture")])
in_tar("tar-no-image", ("bad", "NoImage"))(lambda: [("bad.txt", b"a picture"), ("bad.json", b"{}")])
in_tar("tar-no-caption", ("bad", "NoCaption"))(lambda: [("bad.jpg", picture(84))])
in_tar("tar-other-files", ("table", "NoImage"))(lambda: [("table.parquet", b"PAR1PAR1")])
in_tar("tar-nested", ("bad", "NoImage"))(lambda: [("bad.tar", WHOLE), ("bad.txt", b"a shard in a shard")])

# Keys
in_tar("tar-key-twice", ("bad#2", "DuplicateKey"), kept=("bad", "other"))(
    lambda: [*pair(), *pair("other", 85), *pair("bad", 86, b"another")]
)
in_tar("tar-key-twice-in-a-row", ("bad#2", "DuplicateKey"), kept=("bad",))(lambda: [*pair(), *pair("bad", 86, b"another")])
in_tar("tar-image-twice", ("bad", "NoCaption"), ("bad#2", "DuplicateKey"))(lambda: [("bad.jpg", picture(87)), *pair()])
in_tar("tar-members-apart", ("a", "NoCaption"), ("b", "NoCaption"), ("a#2", "DuplicateKey"), ("b#2", "DuplicateKey"))(
    lambda: [("a.jpg", picture(88)), ("b.jpg", picture(89)), ("a.txt", b"a picture"), ("b.txt", b"a picture")]
)
in_tar("tar-same-key-in-two-folders", kept=("one/bad", "two/bad"))(lambda: [*pair("one/bad"), *pair("two/bad", 90)])
in_tar("tar-same-sample-twice", ("twin", "Duplicate"))(lambda: [("twin.jpg", picture(1)), ("twin.txt", b"picture 1")])

# Sizes
in_tar("tar-member-too-large", ("bad", "TooLarge"), config={"max_bytes": 50_000})(lambda: [*pair()[1:], ("bad.jpg", bytes(50_001))])


@as_tar("tar-sparse-of-a-terabyte", ("bad", "TooLarge"))
def _sparse() -> bytes:
    """512 bytes that say that they are a terabyte, with a hole."""
    parts = [(0, BLOCK), (1 << 40, 0)]
    table = b"".join(octal(offset) + b"\0" + octal(size) + b"\0" for offset, size in parts).ljust(96, b"\0")
    size = b"\x80" + (1 << 40).to_bytes(11, "big")
    member = header(b"bad.jpg", octal(BLOCK), b"S", table + b"\0" + size) + bytes(BLOCK)
    return BEFORE + member + tar_bytes([("bad.txt", b"a picture"), *good(3)])


@as_tar("tar-gz-of-zeros", ("bad", "TooLarge"), file="bad.tar.gz")
def _zeros() -> bytes:
    return gzip.compress(tar_bytes(neighbours([("bad.jpg", bytes(80 << 20)), ("bad.txt", b"a picture")])), 1, mtime=0)


# Headers
damaged_by("wrong-checksum", lambda: changed(tar_body(pair()), 150))
damaged_by("garbage-for-a-header", lambda: bytes(range(256)) * 2)
damaged_by("negative-size", lambda: header(b"bad.jpg", b"\xff" + b"\xff" * 10 + b"\x00"))
damaged_by("size-of-exabytes", lambda: header(b"bad.jpg", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7), good_ones=(1, 2))
damaged_by("size-that-is-no-number", lambda: header(b"bad.jpg", b"0000zzzz000"))
damaged_by("long-name-of-gigabytes", lambda: header(b"././@LongLink", octal(4 << 30), b"L"))
damaged_by("long-name-bomb", lambda: header(b"././@LongLink", octal(64 << 20), b"L") + bytes(64 << 20), file="bad.tar.gz")
damaged_by("pax-bomb", lambda: header(b"PaxHeader", octal(64 << 20), b"x") + bytes(64 << 20), file="bad.tar.gz")
damaged_by("long-names-without-end", lambda: (header(b"././@LongLink", octal(8), b"L") + padded(b"bad.jpg\0")) * 3000)
damaged_by("pax-size-of-terabytes", lambda: pax(record("size", str(1 << 42))) + header(b"bad.jpg", octal(BLOCK)), good_ones=(1, 2))


def before_pair(head: bytes) -> Callable[[], bytes]:
    return lambda: BEFORE + head + tar_bytes([*pair()[:1], *pair()[1:], *good(3)])


as_tar("tar-pax-numbers-that-are-none", kept=("bad",))(before_pair(pax(record("mtime", "yesterday") + record("uid", "me"))))
as_tar("tar-pax-traversal", ("../../evil", "UnsafePath"), ("bad", "NoImage"))(before_pair(pax(record("path", "../../evil.jpg"))))
as_tar("tar-pax-global", kept=("bad",))(before_pair(pax(record("comment", "x" * 10_000), b"g")))


# Cut
def cut(name: str, at: int, *rejects: tuple[str, str], good: tuple[int, ...]) -> None:
    as_tar(f"tar-cut-{name}", *rejects, good=good)(lambda: WHOLE[:at])


cut("in-a-header", SECOND + 100, ("", "TruncatedShard"), good=(1,))
cut("after-a-header", SECOND + BLOCK, ("", "TruncatedShard"), good=(1, 2))
cut("in-an-image", SECOND + BLOCK + 300, ("", "TruncatedShard"), good=(1, 2))
cut("in-the-padding", THIRD - 3, ("", "TruncatedShard"), good=(1, 2))
cut("between-members", SECOND + 2 * BLOCK + 1024, ("", "TruncatedShard"), good=(1, 2))
cut("between-samples", SECOND, ("", "TruncatedShard"), good=(1,))
cut("before-the-end-mark", THIRD, ("", "TruncatedShard"), good=(1, 2))
cut("in-the-end-mark", THIRD + BLOCK, good=GOOD)
as_tar("tar-joined-by-cat", ("", "TruncatedShard"))(lambda: WHOLE + tar_bytes(pair()))
as_tar("tar-garbage-behind", ("", "TruncatedShard"))(lambda: WHOLE + b"garbage" * 100)
as_tar("tar-more-zeros-behind", good=GOOD)(lambda: WHOLE + bytes(100_000))

# Compressed
as_tar("tar-gz-cut", ("", "TruncatedShard"), file="bad.tar.gz", good=(1, 2))(lambda: gzip.compress(WHOLE, 0, mtime=0)[:-3000])
as_tar("tar-gz-wrong-checksum", ("", "TruncatedShard"), file="bad.tar.gz", good=(1, 2))(
    lambda: changed(gz := gzip.compress(WHOLE, mtime=0), len(gz) - 8)
)
as_tar("tar-gz-called-tar", good=GOOD)(lambda: gzip.compress(WHOLE, mtime=0))
as_tar("tar-xz-called-tar", good=GOOD)(lambda: lzma.compress(WHOLE))
as_tar("tar-bz2-called-tar", good=GOOD)(lambda: bz2.compress(WHOLE))
as_tar("tar-zst-called-tar", good=GOOD)(lambda: pa.compress(WHOLE, "zstd", asbytes=True))
as_tar("tar-called-gz", file="bad.tar.gz", good=GOOD)(lambda: WHOLE)


# Shards of nothing
@beside_a_good_one("zip-called-tar", "UnreadableShard")
def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo("bad.jpg"), picture(91))
    return buffer.getvalue()


beside_a_good_one("html-called-tar", "UnreadableShard")(lambda: b"<!DOCTYPE html><title>403</title>" * 100)
beside_a_good_one("zero-bytes", "UnreadableShard")(lambda: b"")
beside_a_good_one("hundred-bytes", "UnreadableShard")(lambda: WHOLE[:100])
beside_a_good_one("random-bytes", "UnreadableShard")(lambda: struct.pack("<4096H", *((n * 7919) % 65521 for n in range(4096))))
beside_a_good_one("gzip-of-gzip", "UnreadableShard", file="bad.tar.gz")(lambda: gzip.compress(gzip.compress(WHOLE, mtime=0), mtime=0))
beside_a_good_one("gzip-header-alone", "UnreadableShard", file="bad.tar.gz")(lambda: gzip.compress(WHOLE, mtime=0)[:8])
beside_a_good_one("first-header-damaged", "UnreadableShard")(lambda: changed(WHOLE, 150))
beside_a_good_one("of-no-member", "EmptyShard")(lambda: tar_bytes([]))
beside_a_good_one("of-directories", "EmptyShard")(lambda: tar_bytes([(info(name, tarfile.DIRTYPE), b"") for name in ("a", "a/b", "c.jpg")]))
beside_a_good_one("cut-in-the-first-sample", "TruncatedShard")(lambda: WHOLE[:1500])
