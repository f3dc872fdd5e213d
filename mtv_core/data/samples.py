"""A sample as received → a row of the table, or the reason why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtv_core.data.captions import BadCaptionError, CaptionConfig, Captions, choose
from mtv_core.data.filters import Filter, Received
from mtv_core.data.images import BadImageError, ImageLimits, OpenedImage, StoredImage, open_image
from mtv_core.data.schema import split_of, uid_of
from mtv_core.data.sources.base import RawSample, ShardRef
from mtv_core.data.sources.records import LICENSE, URL
from mtv_core.report import Reject

STAGE = "ingest"
_COLUMN_HINT = "name the column that has it in the source's `columns.captions`"
_CAPTION_HINTS = {
    "webdataset": "add a .txt of the same key, or `caption` to its .json",
    "imagefolder": "add a .txt beside it, or a row to the folder's metadata",
    "coco": "add an annotation for it",
}


class Denied(Protocol):
    """Knows what was taken down."""

    def denies(self, sha256: str, url: str | None, uid: str | None = None) -> bool:
        """Whether a sample must not come back, by its image's hash, where it came from, or itself."""
        ...


@dataclass(frozen=True)
class Rules:
    """What samples have to meet."""

    limits: ImageLimits
    held_out: float
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    filters: Sequence[Filter] = ()
    denied: Denied | None = None


@dataclass(frozen=True)
class Kept:
    """A sample that passed: its row without `ingest_id`, and what else a statistic wants to know of it."""

    row: dict[str, Any]
    location: str  # where a person finds it
    opened: OpenedImage  # format and size as received
    passthrough: bool  # stored as received


class _RefusedError(Exception):
    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def make(raw: RawSample, shard: ShardRef, rules: Rules) -> Kept | Reject:
    """The row of a sample, or its refusal. Cheap checks come first: nothing is decoded that its caption, hash or header refuses."""
    uid: str | None = None
    try:
        image, captions = _present(raw, rules, shard.format)
        uid, sha256 = uid_of(raw.digest, captions.raw), raw.digest.hexdigest()
        meta, document = _meta(raw)
        url = raw.url or _first(document, URL)
        if rules.denied is not None and rules.denied.denies(sha256, url, uid):
            uid = None  # it is a hash of what was taken down: the refusal does without
            raise _RefusedError("Forgotten", "this image or its URL was taken down (mtv forget); it does not come back")
        opened = open_image(image, rules.limits)
        received = Received(
            key=raw.key,
            width=opened.width,
            height=opened.height,
            num_bytes=len(image),
            format=opened.format,
            captions=[caption.text for caption in captions.kept],
            url=url,
            license=raw.license or _first(document, LICENSE),
            meta=document,
            grey=None,
        )
        stored = _stored(opened, received, rules.filters)
    except (_RefusedError, BadCaptionError, BadImageError) as refusal:
        reason = refusal.error if isinstance(refusal, _RefusedError) else refusal.reason
        return Reject(uid=uid, shard=shard.id, key=raw.key, location=location(raw, shard), stage=STAGE, error=reason, message=str(refusal))
    row = {
        "uid": uid,
        "image": stored.jpeg,
        "width": stored.width,
        "height": stored.height,
        "caption": captions.kept[0].text,
        "captions": [{"text": caption.text, "kind": caption.kind} for caption in captions.kept],
        "caption_raw": captions.raw,
        "source": shard.source,
        "shard": shard.id,
        "key": raw.key,
        "url": url,
        "license": received.license,
        "meta": meta,
        "sha256": sha256,
        "phash": stored.phash,
        "split": split_of(sha256, rules.held_out),
    }
    return Kept(row, location(raw, shard), opened, stored.passthrough)


def location(raw: RawSample, shard: ShardRef) -> str:
    """Where a person finds a sample."""
    return raw.location or f"{shard.uri}#{raw.key}"


def _present(raw: RawSample, rules: Rules, form: str) -> tuple[bytes, Captions]:
    if raw.problem is not None:
        raise _RefusedError(*raw.problem)
    if raw.too_large:
        raise _RefusedError("TooLarge", f"the image file has {raw.too_large} bytes, more than is read (ingest.max_bytes)")
    if raw.image is None:
        raise _RefusedError("NoImage", f"the sample {raw.key!r} has no image")
    if not raw.captions:
        raise _RefusedError("NoCaption", f"the sample {raw.key!r} has an image but no caption; {_CAPTION_HINTS.get(form, _COLUMN_HINT)}")
    return raw.image, choose(raw.captions, rules.captions)


def _stored(opened: OpenedImage, received: Received, filters: Sequence[Filter]) -> StoredImage:
    _pass([one for one in filters if not one.needs_pixels], received)
    stored = opened.store()
    looks = [one for one in filters if one.needs_pixels]
    if looks:
        _pass(looks, received.seen(stored.grey))
    return stored


def _pass(filters: Sequence[Filter], received: Received) -> None:
    for one in filters:
        message = one(received)
        if message is not None:
            raise _RefusedError(one.error, message)


def _meta(raw: RawSample) -> tuple[str | None, dict[str, Any]]:
    """The JSON as received, and what it says if it is an object. A broken one costs the meta, not the sample."""
    if raw.meta is None:
        return None, {}
    try:
        text = raw.meta.decode()
        document = raw.document or json.loads(text)
    except (ValueError, RecursionError):
        return None, {}
    return text, document if isinstance(document, dict) else {}


def _first(document: dict[str, Any], names: tuple[str, ...]) -> str | None:
    found = next((value for name in names if isinstance(value := document.get(name), str) and value), None)
    return found.encode(errors="replace").decode() if found else None  # JSON can spell half a surrogate pair
