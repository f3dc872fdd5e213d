"""Credentials of an object store that Prefect keeps: from a block into the environment, where s3fs and Lance look, and nowhere else.

`MTV_CREDENTIALS_BLOCK=secret/NAME` names a Secret block whose value is a JSON object of variables (`{"AWS_ACCESS_KEY_ID": …}`), or
`aws-credentials/NAME` one of prefect-aws. Workers that a run starts on its own machine inherit them; a cluster elsewhere has its own.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

VARIABLE = "MTV_CREDENTIALS_BLOCK"

_ALLOWED = re.compile(r"(AWS|GOOGLE|GCS|AZURE)_[A-Z0-9_]+")  # never PATH, never LD_PRELOAD
_AWS = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_session_token": "AWS_SESSION_TOKEN",
    "profile_name": "AWS_PROFILE",
    "region_name": "AWS_REGION",
}
_TOGETHER = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"}  # of one identity; two are never mixed


def load() -> list[str]:
    """Put what the block says into the environment, and return the names of what was set; nothing without `MTV_CREDENTIALS_BLOCK`.

    Raises:
        ValueError: there is no such block, or it holds something else. The message repeats no value.
    """
    slug = os.environ.get(VARIABLE)
    if not slug:
        return []
    found = variables(_block(slug), slug)
    if found.keys() & _TOGETHER:
        for name in _TOGETHER - found.keys():
            os.environ.pop(name, None)
    os.environ.update(found)
    return sorted(found)


def _block(slug: str) -> Any:
    from prefect.blocks.core import Block

    try:
        return Block.load(slug, _sync=True)  # type: ignore[call-arg]
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{VARIABLE} names the block {slug!r}, which cannot be loaded: {type(error).__name__}") from error


def variables(block: Any, slug: str) -> dict[str, str]:
    """Variables of the environment that a block stands for."""
    if hasattr(block, "aws_access_key_id"):
        plain = {variable: _shown(getattr(block, field, None)) for field, variable in _AWS.items()}
        return {name: value for name, value in plain.items() if value}
    value = block.get() if hasattr(block, "get") else None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise ValueError(f"the block {slug!r} is no JSON object of variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    unknown = [name for name in value if not _ALLOWED.fullmatch(name)]
    if unknown:
        raise ValueError(f"the block {slug!r} sets {', '.join(sorted(unknown))}; only AWS_…, GOOGLE_…, GCS_… and AZURE_… are taken from it")
    return dict(value)


def _shown(value: Any) -> str | None:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value
