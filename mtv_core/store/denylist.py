"""The deny-list: what was taken down and must not come back, as keyed hashes, so that the list does not itself say what it is about.

    <table>/_takedowns/denied-<key id>.bin   sorted 16-byte hashes, nothing else
    <table>/_takedowns/deny.key              the key, made once, unless MTV_DENY_KEY is set

An entry is the first 16 bytes of HMAC-SHA256(key, kind ‖ value) of an image's sha256, of a normalised URL, or of a uid. Without the key
nobody can try images or URLs against the list; with it, only those they already have. A key beside the list protects copies of the list,
not the table's folder: who needs more sets MTV_DENY_KEY, and must not lose it. A list whose key is missing stops the ingest.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mtv_core.store.table import Table

FOLDER = "_takedowns"
KEY_VARIABLE = "MTV_DENY_KEY"
SIZE = 16  # bytes of an entry

Kind = Literal["image", "url", "uid", "reject", "place"]  # the last two are for the journal of a takedown

_KEY_FILE = f"{FOLDER}/deny.key"
_LIST = re.compile(r"denied-([0-9a-f]{8})\.bin")
_SHORTEST_KEY = 16
_PORTS = {"http": 80, "https": 443, "ftp": 21}
_NORMAL = re.compile(r"https?://(?:[a-z0-9-]+\.)*[a-z0-9-]+/[\w\-.~!$&'()*+,;=:@/]*(?:\?[\w\-.~!$&'()*+,;=:@/?]+)?", re.ASCII)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normalise_url(url: str) -> str:
    """One spelling of a URL: lower-case host without default port, http as https, no fragment, escapes as RFC 3986 recommends.

    Path and query are otherwise left alone: to a server another letter there may be another picture. Idempotent.
    """
    url = url.strip()
    if _NORMAL.fullmatch(url):  # most are, and a table has many
        return "https" + url[url.index(":") :]
    return _normalised(url)


def _normalised(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return url
    if not parts.scheme or not parts.hostname:
        return url
    host = parts.hostname.rstrip(".").lower()
    if not host.isascii():
        with contextlib.suppress(UnicodeError):
            host = host.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS.get(parts.scheme):
        host = f"{host}:{port}"
    user, at, _ = parts.netloc.rpartition("@")
    scheme = "https" if parts.scheme == "http" else parts.scheme
    query = f"?{_escaped(parts.query)}" if parts.query else ""
    return f"{scheme}://{user}{at}{host}{_escaped(parts.path) or '/'}{query}"


def _escaped(text: str) -> str:
    ascii_only = "".join(letter if "!" <= letter <= "~" else "".join(f"%{byte:02X}" for byte in _utf8(letter)) for letter in text)
    return _ESCAPE.sub(lambda found: _unescaped(found[1]), ascii_only)


def _utf8(letter: str) -> bytes:
    return letter.encode(errors="surrogatepass")


def _unescaped(digits: str) -> str:
    letter = chr(int(digits, 16))
    return letter if letter in _UNRESERVED else f"%{digits.upper()}"


@dataclass(frozen=True)
class DenyKey:
    """A key, and the name it goes by in file names."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """8 hex digits that say nothing of the key."""
        return hmac.digest(self.secret, b"mtv deny-list", "sha256")[:4].hex()

    def hash(self, kind: Kind, value: str) -> bytes:
        """An entry of the list: 16 bytes."""
        return hmac.digest(self.secret, f"{kind}\0{value}".encode(errors="surrogatepass"), "sha256")[:SIZE]


def keys(table: Table) -> list[DenyKey]:
    """The keys at hand, the one to write with first; none if nothing was ever taken down and none is set."""
    found = []
    given = os.environ.get(KEY_VARIABLE)
    if given:
        if len(given) < _SHORTEST_KEY:
            raise ValueError(f"{KEY_VARIABLE} is too short to be a key: give it at least {_SHORTEST_KEY} characters, made at random")
        found.append(DenyKey(hashlib.sha256(given.encode()).digest()))
    try:
        found.append(DenyKey(table.files.read(_KEY_FILE)))
    except FileNotFoundError:
        pass
    except PermissionError:
        if not given:
            raise PermissionError(
                f"the key of the deny-list, {table.files.path(_KEY_FILE)}, belongs to another user: run as that user, "
                f"or share the key with its group, or set {KEY_VARIABLE} for everybody before the next takedown"
            ) from None
    return found


def make_key(table: Table) -> DenyKey:
    """The key to write with; made now if there is none. Call it under the maintenance lock."""
    known = keys(table)
    if known:
        return known[0]
    secret = secrets.token_bytes(32)
    if table.files.local:
        path = Path(table.files.path(_KEY_FILE))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    else:
        table.files.write(_KEY_FILE, secret)
    return DenyKey(secret)


@dataclass(frozen=True)
class Denylist:
    """The list, ready to be asked. Pickles; 16 bytes an entry."""

    lists: tuple[tuple[DenyKey, bytes], ...] = ()

    @classmethod
    def load(cls, table: Table) -> Denylist:
        """The list of a table; empty if nothing was taken down there.

        Raises:
            ValueError: it cannot be checked, since its key is not at hand.
            PermissionError: the key's file may not be read.
        """
        names = [found for name in table.files.names(FOLDER) if (found := _LIST.fullmatch(name))]
        if not names:
            return cls()
        known = {key.id: key for key in keys(table)}
        missing = [found[1] for found in names if found[1] not in known]
        if missing:
            raise ValueError(
                f"the deny-list of {table.uri} was written with a key that is not at hand (id {', '.join(missing)}): set {KEY_VARIABLE} "
                "to the value it had then. Without it nobody can tell what must not come back"
            )
        return cls(tuple((known[found[1]], table.files.read(f"{FOLDER}/{found[0]}")) for found in names))

    def __len__(self) -> int:
        """Number of entries."""
        return sum(len(entries) // SIZE for _, entries in self.lists)

    def denies(self, sha256: str, url: str | None, uid: str | None = None) -> bool:
        """Whether a sample was taken down: its image (sha256 of the bytes as received), where it came from, or itself (`uid`)."""
        if not self.lists:
            return False
        return (
            self.has("image", sha256)
            or (bool(url) and self.has("url", normalise_url(url or "")))
            or (uid is not None and self.has("uid", uid))
        )

    def has(self, kind: Kind, value: str) -> bool:
        """Whether an entry is on the list; URLs in their normalised spelling."""
        return any(contains(entries, key.hash(kind, value)) for key, entries in self.lists)


def contains(entries: bytes, entry: bytes) -> bool:
    """Whether sorted, packed entries have one."""
    index = bisect_left(range(len(entries) // SIZE), entry, key=lambda i: entries[i * SIZE : (i + 1) * SIZE])
    return entries[index * SIZE : (index + 1) * SIZE] == entry


def pack(entries: Iterable[bytes]) -> bytes:
    """Entries sorted, each once, one after the other."""
    return b"".join(sorted(set(entries)))


def unpack(entries: bytes) -> set[bytes]:
    """The entries as a set."""
    return {entries[start : start + SIZE] for start in range(0, len(entries), SIZE)}


def hashes(key: DenyKey, values: Mapping[Kind, Iterable[str]]) -> bytes:
    """Packed entries of values; URLs are normalised here."""
    return pack(key.hash(kind, normalise_url(value) if kind == "url" else value) for kind, some in values.items() for value in some)


def _known(table: Table, key: DenyKey) -> set[bytes]:
    name = f"denied-{key.id}.bin"
    return unpack(table.files.read(f"{FOLDER}/{name}")) if name in table.files.names(FOLDER) else set()


def num_new(table: Table, key: DenyKey, entries: bytes) -> int:
    """How many of packed entries are not on the list."""
    return len(unpack(entries) - _known(table, key))


def add(table: Table, key: DenyKey, entries: bytes) -> None:
    """Put packed entries on the list. Again, it changes nothing. Call it under the maintenance lock."""
    known = _known(table, key)
    both = known | unpack(entries)
    if len(both) > len(known):
        table.files.write(f"{FOLDER}/denied-{key.id}.bin", pack(both))
