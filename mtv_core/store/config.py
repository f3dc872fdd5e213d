"""Where the table is."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field, field_validator

from mtv_core.data.uris import PlainUri

_SECRET = re.compile(r"secret|token|password|access_key|account_key", re.IGNORECASE)


class TableConfig(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """The place of one table: samples, rejects, the ledger of shards, and what is staged."""

    uri: PlainUri = Field(
        "auto",
        description="folder or URI (s3://…, gs://…) of the table; a relative path lies in MTV_HOME; 'auto': tables/<hash of the sources>",
    )
    storage_options: dict[str, str] = Field(
        default_factory=dict,
        description="for object stores, in Lance's words: aws_endpoint, aws_region, …; leave keys and secrets to the environment",
    )

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, options: dict[str, str]) -> dict[str, str]:
        for name in options:
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} is a credential, and a configuration is written to the run folder and to MLflow; "
                    "set it in the environment instead (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …)"
                )
        return options
