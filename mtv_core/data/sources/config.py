"""Which shards to read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

Format = Literal["auto", "webdataset"]


class SourceConfig(BaseModel, frozen=True, extra="forbid"):
    """A set of shards with pictures and captions."""

    uri: str = Field(
        description="a file, a folder, a glob or a brace range (shards-{0000..0099}.tar) of webdataset tars; local, s3:// or gs://; "
        "blocks://NAME?samples=N&seed=S makes synthetic ones"
    )
    format: Format = Field("auto", description="auto: by the ending of the file names")
    name: str | None = Field(None, description="what the column `source` says; default: the name of the folder")
