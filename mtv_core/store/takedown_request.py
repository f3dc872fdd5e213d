"""What to take down: uids, image hashes, keys and URLs, as a person gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel, Field, field_validator

_HEX = {"uids": 32, "images": 64}
_SEPARATOR = re.compile(r"[:#]")


class Request(BaseModel, frozen=True, extra="forbid"):
    """Entries of the four kinds. A row goes if one of them names it."""

    uids: list[str] = Field(default_factory=list, description="32 hex digits, the uid column")
    images: list[str] = Field(default_factory=list, description="sha256 of the image file as it was received, 64 hex digits")
    keys: list[str] = Field(
        default_factory=list,
        description="key of a sample; where keys repeat, shard:key or source:key, the shard by URI, file name or id (':' may be '#')",
    )
    urls: list[str] = Field(default_factory=list, description="where the image came from, the url column; its spelling is normalised")
    source: str | None = Field(None, description="name of the source that `keys` are of")

    @field_validator("uids", "images")
    @classmethod
    def _hex(cls, values: list[str], info: object) -> list[str]:
        kind = str(getattr(info, "field_name", ""))
        length = _HEX[kind]
        values = [value.strip().lower() for value in values]
        for value in values:
            if len(value) != length or not re.fullmatch(r"[0-9a-f]+", value):
                what = "a uid" if kind == "uids" else "the sha256 of an image"
                raise ValueError(f"{value!r} is not {what}, which has {length} hexadecimal digits")
        return list(dict.fromkeys(values))

    @field_validator("keys", "urls")
    @classmethod
    def _given(cls, values: list[str]) -> list[str]:
        return [value for value in dict.fromkeys(value.strip() for value in values) if value]

    @property
    def asked(self) -> dict[str, int]:
        """Kind → number of entries, of the kinds that were given."""
        return {kind: len(values) for kind in ("uids", "images", "keys", "urls") if (values := getattr(self, kind))}

    def key_readings(self) -> Iterator[tuple[str, str | None, str]]:
        """(entry, shard or source, key) for each way to read an entry: keys may hold separators themselves."""
        for entry in self.keys:
            yield entry, None, entry
            for found in _SEPARATOR.finditer(entry):
                if found.start() > 0 and found.end() < len(entry):
                    yield entry, entry[: found.start()], entry[found.end() :]
