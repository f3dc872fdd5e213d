"""URIs that may be written down. Imports nothing heavy."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from mtv_core.settings import is_local

CREDENTIAL = "credential"  # type of a validation error whose input must not be shown
# What a signed URL of S3, GCS, Azure or CloudFront carries: whoever has it has the file.
_SIGNATURE = re.compile(r"(?i)(?:^|&)(?:x-amz-(?:signature|security-token|credential)|x-goog-signature|signature|sig|awsaccesskeyid)=")


def check_uri(uri: str) -> str:
    """The URI, unless a credential is part of it: URIs are written to the ledger, to run folders and to MLflow.

    Raises:
        ValueError: it has `user:password@`, or a signature. The message does not repeat it.
    """
    if is_local(uri):
        return uri
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise ValueError(
            f"the {parts.scheme}:// URI has a user or a password before its '@', and URIs are written to reports and to MLflow; "
            "give credentials by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …) or fsspec's configuration"
        )
    if _SIGNATURE.search(parts.query):
        raise ValueError(
            f"the URI of {parts.scheme}://{parts.netloc}{parts.path} is signed: its signature is a credential, and URIs are written to "
            "reports and to MLflow; read it by its plain URI, with credentials from the environment"
        )
    return uri


def _validated(uri: str) -> str:
    try:
        return check_uri(uri)
    except ValueError as error:
        # A kind of its own, so that whoever shows the mistake can leave out what was given.
        raise PydanticCustomError(CREDENTIAL, "{reason}", {"reason": str(error)}) from None


PlainUri = Annotated[str, AfterValidator(_validated)]  # of a configuration
