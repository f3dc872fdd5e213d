"""A sample as received → a row of the table, or the reason why not."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from mtv_core.data.images import BadImageError, store
from mtv_core.data.schema import sample_uid, split_of
from mtv_core.data.sources.base import RawSample, ShardRef
from mtv_core.report import Reject

_URL_KEYS = ("url", "image_url", "URL")
_LICENSE_KEYS = ("license", "LICENSE")


def clean(caption: str) -> str:
    """NFC, one space between words, no control characters, nothing at the ends. The words stay as they are."""
    printable = "".join(
        " " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in unicodedata.normalize("NFC", caption)
    )
    return " ".join(printable.split())


def row(raw: RawSample, shard: ShardRef, *, max_side: int, quality: int, max_pixels: int, held_out: float) -> dict[str, Any] | Reject:
    """The row, without `ingest_id`; or a refusal."""
    uid: str | None = None

    def refuse(error: str, message: str) -> Reject:
        return Reject(uid=uid, shard=shard.id, key=raw.key, location=f"{shard.uri}#{raw.key}", stage="ingest", error=error, message=message)

    if raw.too_large:
        return refuse("TooLarge", f"the image file has {raw.too_large} bytes, more than is read (ingest.max_bytes)")
    if raw.image is None:
        return refuse("NoImage", f"the sample {raw.key!r} has no .jpg, .jpeg, .png or .webp")
    try:
        received = [caption.decode() for caption in raw.captions]
    except UnicodeDecodeError:
        return refuse("CaptionNotUtf8", f"the caption of {raw.key!r} is not UTF-8; save it as UTF-8")
    captions = [text for text in dict.fromkeys(clean(caption) for caption in received) if text]
    if not captions:
        return refuse("NoCaption", f"the sample {raw.key!r} has an image but no caption; add {raw.key}.txt, or `caption` to its .json")
    uid = sample_uid(raw.image, received[0])
    try:
        image = store(raw.image, max_side, quality, max_pixels)
    except BadImageError as error:
        return refuse(error.reason, str(error))
    meta, document = _meta(raw.meta)
    sha256 = hashlib.sha256(raw.image).hexdigest()
    return {
        "uid": uid,
        "image": image.jpeg,
        "width": image.width,
        "height": image.height,
        "caption": captions[0],
        "captions": [{"text": text, "kind": "web"} for text in captions],
        "caption_raw": received[0],
        "source": shard.source,
        "shard": shard.id,
        "key": raw.key,
        "url": _first(document, _URL_KEYS),
        "license": _first(document, _LICENSE_KEYS),
        "meta": meta,
        "sha256": sha256,
        "phash": image.phash,
        "split": split_of(sha256, held_out),
    }


def _meta(received: bytes | None) -> tuple[str | None, dict[str, Any]]:
    """The JSON as received, and what it says if it is an object. A broken one costs the meta, not the sample."""
    if received is None:
        return None, {}
    try:
        text = received.decode()
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None, {}
    return text, document if isinstance(document, dict) else {}


def _first(document: dict[str, Any], names: tuple[str, ...]) -> str | None:
    found = next((value for name in names if isinstance(value := document.get(name), str) and value), None)
    return found.encode(errors="replace").decode() if found else None  # JSON can spell half a surrogate pair
