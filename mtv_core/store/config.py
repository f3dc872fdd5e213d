"""Where the table is."""

from __future__ import annotations

from pydantic import BaseModel, Field


class TableConfig(BaseModel, frozen=True, extra="forbid"):
    """The place of one table: samples, rejects, the ledger of shards, and what is staged."""

    uri: str = Field(
        "auto",
        description="folder or URI (s3://…, gs://…) of the table; a relative path lies in MTV_HOME; 'auto': tables/<hash of the sources>",
    )
    storage_options: dict[str, str] = Field(
        default_factory=dict,
        description="for object stores, in Lance's words: aws_endpoint, aws_region, …; leave keys and secrets to the environment",
    )
