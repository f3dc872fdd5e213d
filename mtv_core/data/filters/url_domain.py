"""Images from domains that are not wanted."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from mtv_core.data.filters.base import Filter, Missing, Received


class UrlDomain(Filter, frozen=True):
    """The domain that the image came from, by the sample's URL. A blocked domain takes its subdomains with it."""

    reason: ClassVar[str] = "BlockedDomain"

    name: Literal["url_domain"] = "url_domain"
    block: tuple[str, ...] = Field(min_length=1, description="domains: example.org refuses www.example.org too")
    missing: Missing = Field("keep", description="what becomes of a sample without a URL, or with one that names no host")

    @field_validator("block")
    @classmethod
    def _domains(cls, block: tuple[str, ...]) -> tuple[str, ...]:
        for domain in block:
            if not _host(f"//{domain}") or any(sign in domain for sign in "/:@?#* "):
                raise ValueError(f"{domain!r} is no domain; give it as example.org, without a scheme, a path or a star")
        return block

    @functools.cached_property
    def _blocked(self) -> frozenset[str]:
        return frozenset(host for domain in self.block if (host := _host(f"//{domain}")))

    def __call__(self, sample: Received) -> str | None:
        """None to keep the sample, else what is wrong with it."""
        host = _host(sample.url) if sample.url else None
        if host is None:
            return None if self.missing == "keep" else "the sample has no URL with a host"
        labels = host.split(".")
        for start in range(len(labels)):
            domain = ".".join(labels[start:])
            if domain in self._blocked:
                return f"{host} is of the blocked domain {domain}"
        return None


def _host(url: str) -> str | None:
    """The host in its one spelling: small letters, no port, no dot at the end, international names in their ASCII form."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    if not host:
        return None
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            return host.rstrip(".")
    return host.rstrip(".") or None
