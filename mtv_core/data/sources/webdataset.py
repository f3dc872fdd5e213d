"""Webdataset tars, as img2dataset writes them: `KEY.jpg`, `KEY.txt`, `KEY.json`, the members of a sample side by side.

Read as a stream, so a shard may be of any size and in any store. A tar that stops in the middle gives what came whole before that.
Of a sample one image is held, and as many bytes of text as one image may have; every other member is passed over unread.
A sample with a member that has no business in a data set (a link, a device, a name that leaves the folder) is refused whole.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from mtv_core.data.sources.access import Opened, Options, hidden, opened, safe_name
from mtv_core.data.sources.base import RawSample, ShardRef
from mtv_core.data.sources.compression import Compressed, decompressed
from mtv_core.data.sources.format import Format, Samples, damaged
from mtv_core.data.sources.records import IMAGES, Seen, of_files, printable, text_names
from mtv_core.report import Reject

_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)  # key up to the first dot of the base name, extension after it
_BLOCK = 512
_MAX_EXTENDED = 1 << 20  # bytes of a long name or a PAX header, which tarfile reads whole
_EXTENDED = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_UNSAFE = {
    tarfile.SYMTYPE: "a symlink",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class _Header(tarfile.TarInfo):
    """Reads the header of an ordinary file itself, five times as fast; bounds what tarfile would read at once; remembers the end.

    tarfile takes a broken header in the middle for an end like any other.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        if len(buf) == _BLOCK and buf[156] in b"0\0x" and buf[257:262] == b"ustar" and not buf[345] and buf[124] < 0x80:
            with contextlib.suppress(ValueError):
                checksum, size = int(buf[148:156].rstrip(b"\0 "), 8), int(buf[124:136].rstrip(b"\0 "), 8)
                name = buf[:100].split(b"\0", 1)[0]
                if checksum == sum(buf) - sum(buf[148:156]) + 8 * 32 and not name.endswith(b"/") and size >= 0:
                    header = cls(name.decode(encoding, errors))
                    header.size, header.type = size, buf[156:157]
                    return _bounded(header)
        return _bounded(super().frombuf(buf, encoding, errors))

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            tarfile_.ended_by = error
            raise


def _bounded(header: tarfile.TarInfo) -> tarfile.TarInfo:
    if header.size < 0 or (header.type in _EXTENDED and header.size > _MAX_EXTENDED):
        raise tarfile.InvalidHeaderError(f"a header says that it has {header.size} bytes")  # type: ignore[attr-defined]
    return header


class _Forward:
    """A file that goes forward only, as tarfile wants it: far ahead by seeking, where the file below can, else by reading."""

    def __init__(self, file: Opened | Compressed) -> None:
        self.file = file
        self.position = 0
        self.headers = 0  # how many made sense

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.position += len(data)
        return data

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("a header points back")
        if isinstance(self.file, Opened) and position - self.position > 1 << 20:
            with contextlib.suppress(OSError):  # no ranges: read on
                self.position = self.file.seek(position)
            self.file.failure = None
        while self.position < position:
            if not self.read(min(position - self.position, 1 << 20)):
                raise tarfile.ReadError("unexpected end of data")


class _CutError(tarfile.ReadError):
    """The archive stops in a member of the sample `key`, or, if that is None, after its end: what came before is whole."""

    def __init__(self, message: str, key: str | None) -> None:
        super().__init__(message)
        self.key = key


class _Part(NamedTuple):
    key: str
    extension: str
    content: bytes | int  # its size, if it was not read
    problem: str | None = None


class WebDataset(Format):
    """Tars, compressed or not."""

    name = "webdataset"
    no_columns = {"key": "the name of a member up to its first dot is the key"}  # noqa: RUF012
    endings = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

    def read(self, shard: ShardRef, max_bytes: int, storage_options: Options = None) -> Samples:
        """See `Format.read`. The sample at which a damaged tar stops is left out, since nobody knows whether it was whole."""
        with opened(shard.uri, storage_options) as file:
            forward = _Forward(decompressed(file))
            samples = _Samples(shard, max_bytes)
            parts = _parts(forward, samples)
            whole = 0
            while True:
                try:
                    part = next(parts, None)
                except MemoryError:
                    raise
                except Exception as error:  # a damaged archive has tarfile stumble in many ways
                    file.blame()
                    before = samples.add(None) if isinstance(error, _CutError) and error.key != samples.key else None
                    if before is not None:
                        whole += 1
                        yield before
                    yield _damage(shard, forward, whole, error)
                    return
                sample = samples.add(part)
                if sample is not None:
                    whole += 1
                    yield sample
                if part is None:
                    return


def _damage(shard: ShardRef, file: _Forward, whole: int, error: Exception) -> Reject:
    if not file.headers:
        what = f"is no tar ({error})" if file.position else "is empty"
        return damaged(shard, "UnreadableShard", f"the file {what}; copy it again, and the next ingest takes it")
    return damaged(
        shard,
        "TruncatedShard",
        f"the tar is cut or damaged after {whole} samples ({str(error) or type(error).__name__}), which were kept; copy it again, and the "
        "next ingest takes the rest",
    )


def _parts(file: _Forward, samples: _Samples) -> Iterator[_Part]:
    """Every file of the archive, with its content if `samples`, which has got those before it, can use it.

    Raises:
        Exception: the archive is damaged from here on.
    """
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header, encoding="utf-8") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members = []  # else it keeps them all
            file.headers += 1
            leads_out = safe_name(member.name) is None
            if member.isdir() or (not leads_out and hidden(member.name.removeprefix("./"))):
                continue
            name = _MEMBER.fullmatch(member.name)
            problem = f"is {_UNSAFE[member.type]}" if member.type in _UNSAFE else None
            if leads_out:
                problem = "has a name that leads out of the folder"
            if problem is not None:
                key, extension = name.groups() if name else (member.name, "")
                message = f"the member {printable(member.name)!r} {problem}; pack the file itself, under a plain name"
                yield _Part(key, extension.lower(), 0, message)
            elif name and member.isreg() and not hidden(member.name):
                try:
                    read = samples.wants(name[1], name[2].lower(), member.size)
                    content = _content(tar, file, member) if read else member.size
                except tarfile.ReadError as error:
                    raise _CutError(str(error), name[1]) from None
                yield _Part(name[1], name[2].lower(), content)
        if not isinstance(getattr(tar, "ended_by", None), tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("there is no end-of-archive mark")
        while rest := file.read(1 << 16):
            if rest.count(0) != len(rest):
                raise _CutError("there is more after the end-of-archive mark: zeros in the middle, or tars joined by cat", None)


def _content(tar: tarfile.TarFile, file: _Forward, member: tarfile.TarInfo) -> bytes:
    if member.sparse is not None:
        reader = tar.extractfile(member)
        assert reader is not None
        content = reader.read()
    else:
        content = file.read(member.size)
    if len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


class _Samples:
    """Parts → samples. A key that comes again names another sample, which is refused: members of a sample lie side by side."""

    def __init__(self, shard: ShardRef, max_bytes: int) -> None:
        self.columns, self.max_bytes = shard.columns, max_bytes
        self.parts: dict[str, bytes | int] = {}
        self.key: str | None = None
        self.problem: str | None = None
        self.seen = Seen()
        self.images = IMAGES if self.columns.image is None else (self.columns.image.lower(),)
        self.texts = {name.lower() for name in text_names(self.columns)} - {*self.images, "json"}

    def wants(self, key: str, extension: str, size: int) -> bool:
        """Whether the next member is of use and not too large. An image is let go when a better one of its sample comes."""
        held = {} if key != self.key or extension in self.parts else self.parts
        if extension in self.images:
            rank = self.images.index(extension)
            if any(one in held for one in self.images[:rank]):
                return False
            for one in self.images[rank + 1 :]:
                if one in held:
                    held[one] = 0
        elif extension in self.texts or extension == "json":
            size += sum(len(content) for one, content in held.items() if one not in self.images and isinstance(content, bytes))
        else:
            return False
        return size <= self.max_bytes

    def add(self, part: _Part | None) -> RawSample | None:
        """The sample before this part, if it is complete now. None: the end."""
        done = None
        if self.key is not None and (part is None or part.key != self.key or part.extension in self.parts):
            done = self._sample(self.key)
            self.parts, self.problem = {}, None
        if part is not None:
            self.key = part.key
            self.parts[part.extension] = part.content
            self.problem = self.problem or part.problem
        return done

    def _sample(self, key: str) -> RawSample:
        name, again = self.seen.name(printable(key))
        parts = self.parts
        image = next((parts[one] for one in self.images if one in parts), None)
        json_ = parts.get("json")
        texts = {one: content for one, content in parts.items() if one in self.texts and isinstance(content, bytes)}
        found = of_files(texts, json_, self.columns)
        return RawSample(
            key=name,
            image=image if isinstance(image, bytes) else None,
            captions=found.captions,
            meta=json_ if isinstance(json_, bytes) else None,
            document=found.document,
            url=found.url,
            license=found.license,
            too_large=image if isinstance(image, int) else 0,
            problem=self._problem(key, again) or found.problem,
        )

    def _problem(self, key: str, again: bool) -> tuple[str, str] | None:
        if self.problem is not None:
            return "UnsafePath", self.problem
        if again:
            message = f"the key {printable(key)!r} came before in this tar; the members of a sample have to lie side by side"
            return "DuplicateKey", message
        large = next((one for one, content in self.parts.items() if one in self.texts and isinstance(content, int)), None)
        if large is None:
            return None
        size = self.parts[large]
        message = f"the file .{large} has {size!s} bytes, with the sample's other texts more than is read (ingest.max_bytes)"
        return "CaptionTooLong", message
