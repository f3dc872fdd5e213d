"""What the samples of a shard say, as one hash: tells a change that left size and time of the file as they were."""

from __future__ import annotations

import hashlib

from mtv_core.data.sources.base import RawSample
from mtv_core.report import Reject


class Fingerprint:
    """sha256 over the samples in their order: key, image, captions, meta, url, licence; and what their reader refused, by its reason.

    Of an image its own sha256 is taken, which ingest needs anyhow: this costs some microseconds a sample, in every format, and the file is
    read once. What its reader skips (a tar's headers, images beyond `max_bytes`) is not in it.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, found: RawSample | Reject) -> None:
        """The next one, as its reader gave it."""
        if isinstance(found, Reject):
            self._take(_bytes(found.key), found.error.encode())
            return
        image = f"none {found.too_large}" if found.image is None else found.digest.hexdigest()
        captions = [part for caption in found.captions for part in (caption.kind.encode(), caption.text)]
        self._take(
            _bytes(found.key),
            image.encode(),
            b"" if found.meta is None else b"=" + found.meta,
            _bytes(found.url),
            _bytes(found.license),
            _bytes(found.problem and found.problem[0]),
            *captions,
        )

    def _take(self, *parts: bytes) -> None:
        """Each after its length, and their number first: so no two lists are the same bytes."""
        self._hash.update(b"".join([len(parts).to_bytes(4), *(len(part).to_bytes(8) + part for part in parts)]))

    @property
    def value(self) -> str:
        """64 hex digits, of everything that was added."""
        return self._hash.hexdigest()


def _bytes(text: str | None) -> bytes:
    """Another text is other bytes, whatever is in it; none at all is not an empty one."""
    return b"" if text is None else b"=" + text.encode(errors="surrogatepass")
