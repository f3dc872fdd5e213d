"""Where things are kept: one folder, `MTV_HOME`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Settings(BaseSettings):
    """Settings of an installation, from the environment. What a run does is configured elsewhere: see `mtv_core.config`."""

    model_config = SettingsConfigDict(env_prefix="MTV_", frozen=True)

    home: Annotated[Path, AfterValidator(lambda path: Path(path).expanduser().absolute())] = Field(
        Path(".mtv"), description="folder of all state: services, tables, runs; made when first used", validate_default=True
    )


def home() -> Path:
    """The absolute path of `MTV_HOME` (default `.mtv` in the working directory). Read anew at each call."""
    return Settings().home


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine, with or without `file://`."""
    return not _SCHEME.match(uri) or uri.startswith("file://")


def resolve(uri: str) -> str:
    """Where an output goes: a relative path lies in `MTV_HOME`, everything else is what it says."""
    if uri.startswith("file://"):
        return uri.removeprefix("file://")
    return str(home() / Path(uri).expanduser()) if is_local(uri) else uri
