"""Named fields → captions, URL, licence. The fields are columns of a table, keys of a JSON object, or files of a sample in a tar."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtv_core.data.sources.base import CaptionKind, RawCaption
from mtv_core.data.sources.config import Columns

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")  # extensions, best first
IMAGE_ENDINGS = tuple(f".{extension}" for extension in IMAGES)
CAPTION_FILES = ("txt", "caption")  # extensions

# The usual names, best first. Of the web's captions the first that is there is taken, of a model's all.
WEB = ("caption", "captions", "text", "txt", "TEXT", "alt_text", "sentences")
SYNTHETIC = (
    "synthetic",
    "synthetic.txt",
    "synthetic_caption",
    "synthetic_captions",
    "generated_caption",
    "recaption",
    "re_caption",
    "blip_caption",
    "llava_caption",
    "caption_blip",
    "caption_llava",
)
URL = ("url", "URL", "image_url", "coco_url", "flickr_url")
LICENSE = ("license", "LICENSE", "licence")
KEY = ("key", "__key__")


@dataclass(frozen=True)
class Fields:
    """What the fields of a sample say."""

    captions: list[RawCaption] = field(default_factory=list)
    url: str | None = None
    license: str | None = None
    problem: tuple[str, str] | None = None
    document: dict[str, Any] | None = None  # of the JSON they were found in


def fields(found: Mapping[str, Any], columns: Columns, web: Sequence[str] | None = None) -> Fields:
    """Captions of people first, then those of models. A field of a wrong type is a problem only if it leaves no caption.

    Args:
        found: name → value.
        columns: which names are meant.
        web: names that are used instead of the usual ones.
    """
    if columns.captions is not None:
        web = columns.captions
    elif web is None:
        web = [name for name in WEB if found.get(name) is not None][:1]
    synthetic = SYNTHETIC if columns.synthetic is None else columns.synthetic
    captions, wrong = [], []
    named: Iterable[tuple[str, CaptionKind]] = [*((name, "web") for name in web), *((name, "synthetic") for name in synthetic)]
    for name, kind in named:
        value = found.get(name)
        if value is None:
            continue
        try:
            captions += [RawCaption(text, kind) for text in _texts(value)]
        except TypeError as error:
            wrong.append(f"{name!r} {error}")
    problem = ("BadRow", f"there is no caption: {', '.join(wrong)}") if wrong and not captions else None
    return Fields(
        captions,
        _first(found, URL if columns.url is None else (columns.url,)),
        _first(found, LICENSE if columns.license is None else (columns.license,)),
        problem,
    )


def text_names(columns: Columns) -> list[str]:
    """What can name a file of a sample that says something of it; `.json` apart. Extensions of files are these in lower case."""
    web = (*CAPTION_FILES, *WEB) if columns.captions is None else columns.captions
    synthetic = SYNTHETIC if columns.synthetic is None else columns.synthetic
    url, license_ = (usual if name is None else (name,) for usual, name in ((URL, columns.url), (LICENSE, columns.license)))
    return list(dict.fromkeys([*web, *synthetic, *url, *license_]))


def of_files(texts: Mapping[str, bytes], json_: bytes | int | None, columns: Columns, captioned: bool = False) -> Fields:
    """What the files of a sample say, and its JSON, where they say nothing.

    A JSON that is too large to be read costs the sample only if there is no caption without it.

    Args:
        texts: extension, in lower case → content.
        json_: content of the `.json`; its bytes if it is too large.
        columns: which names are meant.
        captioned: there are captions of people from elsewhere, so those in the JSON are not needed, unless they are named.
    """
    document = document_of(json_ if isinstance(json_, bytes) else None)
    named = {name: texts[name.lower()] for name in text_names(columns) if name.lower() in texts}
    own = [one for one in CAPTION_FILES if one in texts]
    found = fields({**document, **named}, columns, own or (() if captioned else None))
    if isinstance(json_, int) and not found.captions and not captioned:
        message = f"the file .json has {json_} bytes, more than is read (ingest.max_bytes), and there is no caption but in it"
        found = replace(found, problem=("TooLarge", message))
    return replace(found, document=document or None)


def _texts(value: Any) -> list[bytes]:
    if isinstance(value, str):
        return [value.encode(errors="surrogatepass")]  # JSON can spell half a surrogate pair: no UTF-8 then, and that is said later
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, list | tuple):
        return [text for one in value if one is not None for text in _texts(one)]
    raise TypeError(f"is {value!r:.40}, not a text")


def _first(found: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        value = found.get(name)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(value, str) and value:
            return value.encode(errors="replace").decode()
    return None


def document_of(meta: bytes | None) -> dict[str, Any]:
    """A JSON object; empty if it is none."""
    if meta is None:
        return {}
    try:
        document = json.loads(meta)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def meta_of(rest: Mapping[str, Any]) -> bytes | None:
    """Other fields as JSON, with null where JSON has no word: NaN, bytes. None if there are none."""
    if not rest:
        return None
    return json.dumps({name: _plain(value) for name, value in rest.items()}, ensure_ascii=False).encode(errors="replace")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return None if isinstance(value, bytes) else str(value)


class Seen:
    """The keys of a shard, eight bytes of each."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}

    def name(self, key: str) -> tuple[str, bool]:
        """The key, and whether it was there before; then with `#2`, `#3`, … so that each refusal has a name of its own."""
        hashed = _hash(key)
        count = self._seen.get(hashed, 0) + 1
        if count == 1:
            self._seen[hashed] = 1
            return key, False
        while (other := _hash(f"{key}#{count}")) in self._seen:
            count += 1
        self._seen[hashed], self._seen[other] = count, 1
        return f"{key}#{count}", True


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()


def printable(name: str) -> str:
    """A name that may be any bytes, or any nonsense that JSON can spell, as text."""
    try:
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:
        return name.encode(errors="backslashreplace").decode()


def unused(found: Mapping[str, Any], columns: Columns, without: Sequence[str] = ()) -> list[str]:
    """The names whose values have no place of their own in the table."""
    web = columns.captions if columns.captions is not None else [name for name in WEB if found.get(name) is not None][:1]
    taken = {*web, *(SYNTHETIC if columns.synthetic is None else columns.synthetic), *without}
    for usual, name in ((URL, columns.url), (LICENSE, columns.license)):
        taken.update([name] if name else [one for one in usual if found.get(one)][:1])
    if columns.image:
        taken.add(columns.image)
    return [name for name in found if name not in taken]
