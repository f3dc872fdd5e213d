"""The columns of a table's three datasets: samples, rejects, shards."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from hashlib import _Hash

CAPTION = pa.struct([pa.field("text", pa.string()), pa.field("kind", pa.string())])  # kind: web | synthetic

SAMPLES = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        # JPEG, RGB, EXIF-oriented. It does not compress, and trying to costs more than writing it.
        pa.field("image", pa.binary(), nullable=False, metadata={"lance-encoding:compression": "none"}),
        pa.field("width", pa.int32(), nullable=False),  # of the stored image, px
        pa.field("height", pa.int32(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),  # the first of captions, cleaned
        pa.field("captions", pa.list_(CAPTION), nullable=False),
        pa.field("caption_raw", pa.string(), nullable=False),  # as received
        pa.field("source", pa.string(), nullable=False),  # name of the source
        pa.field("shard", pa.string(), nullable=False),  # id of the shard
        pa.field("key", pa.string(), nullable=False),  # of the sample in its shard
        pa.field("url", pa.string()),
        pa.field("license", pa.string()),
        pa.field("meta", pa.string()),  # the sample's own JSON, as received
        pa.field("sha256", pa.string(), nullable=False),  # of the image as received
        pa.field("phash", pa.uint64()),  # 64-bit perceptual hash
        pa.field("split", pa.string(), nullable=False),  # train | held_out
        pa.field("ingest_id", pa.string(), nullable=False),  # which ingest brought it
    ]
)

REJECTS = pa.schema(
    [
        pa.field("uid", pa.string()),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("location", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reject_class", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        pa.field("survivor", pa.string()),
        pa.field("attempt", pa.int32(), nullable=False),
    ]
)

SHARDS = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),  # id: hash of URI and identity
        pa.field("uri", pa.string(), nullable=False),
        pa.field("identity", pa.string(), nullable=False),  # etag, or size and hash: what tells a changed file from the same one
        pa.field("size", pa.int64(), nullable=False),  # bytes
        pa.field("rows_in", pa.int64(), nullable=False),
        pa.field("rows_out", pa.int64(), nullable=False),
        pa.field("rows_rejected", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),  # done | damaged
        pa.field("ingest_id", pa.string(), nullable=False),
        pa.field("content", pa.string()),  # fingerprint of the samples that were read
        pa.field("replaces", pa.string()),  # id of the shard that was behind the same URI before
        pa.field("reading", pa.string()),  # hash of format and named columns
    ]
)

# What an expert writes, beside its `<expert>_rev`.
LABELS: dict[str, pa.Schema] = {
    "depth": pa.schema([pa.field("depth", pa.binary())]),  # mtv_core.data.depth
    "detection": pa.schema(
        [
            pa.field("boxes", pa.list_(pa.list_(pa.float32(), 4))),  # normalised xyxy of the stored image
            pa.field("phrases", pa.list_(pa.string())),
            pa.field("scores", pa.list_(pa.float32())),
        ]
    ),
}


def label_schema(expert: str) -> pa.Schema:
    """An expert's columns with the revision that wrote them, which is part of the same data file."""
    return LABELS[expert].append(pa.field(f"{expert}_rev", pa.string()))


def sample_uid(image: bytes, caption: str) -> str:
    """32 hex digits: the first 16 bytes of sha256(image bytes as received ‖ first caption as received, in UTF-8).

    Independent of how the input was cut into shards, so labels and joins survive re-sharding.
    """
    return uid_of(hashlib.sha256(image), caption)


def uid_of(digest: _Hash, caption: str) -> str:
    """`sample_uid`, of an image whose sha256 is known."""
    whole = digest.copy()
    whole.update(caption.encode())
    return whole.hexdigest()[:32]


def caption_hash(caption: str) -> int:
    """64 bits that stand for a caption where only its being the same matters."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest())


def split_of(sha256: str, held_out: float) -> str:
    """'held_out' for the share `held_out` of images, by their own hash: an image is on one side for good, whatever its captions."""
    return "held_out" if int(sha256[-8:], 16) < held_out * 2**32 else "train"
