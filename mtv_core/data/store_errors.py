"""What object stores say when they do not answer or do not let us in, in words that say what to do.

The libraries below raise what they like (botocore's errors are no OSError, Lance's name a line of its source); here each becomes the
OSError that callers expect.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

# Whose errors mean the store, not a mistake of ours.
_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "adlfs", "requests", "urllib3"}
_CREDENTIAL_ERRORS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}
_LANCE = "LanceError(IO): "
_SOURCE_LINE = re.compile(r",?\s*/\S+\.rs:\d+(:\d+)?")
_NO_CREDENTIALS = re.compile(r"CredentialsNotLoaded|failed to get aws credentials|unable to locate credentials", re.IGNORECASE)
_REFUSED = re.compile(r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|\b40[13] (?:Forbidden|Unauthorized)")
_NO_BUCKET = re.compile(r"NoSuchBucket|specified bucket does not exist", re.IGNORECASE)
_KNOWN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class StoreError(OSError):
    """A store that cannot be reached, or cannot hold a table."""


def no_credentials(uri: str) -> PermissionError:
    """Nobody said who we are."""
    return PermissionError(errno.EACCES, f"no credentials for {uri}: {_KNOWN}")


def refused(uri: str, code: str) -> PermissionError:
    """The store knows us, or not, and does not let us in."""
    return PermissionError(
        errno.EACCES,
        f"{uri} refuses us ({code}): set credentials that may read, write, list and delete there "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or fsspec's configuration)",
    )


def no_bucket(uri: str) -> FileNotFoundError:
    """The bucket, not a file in it, is missing."""
    return FileNotFoundError(errno.ENOENT, f"there is no bucket for {uri}: make it, or correct its name")


def unusable(uri: str, error: Exception) -> StoreError:
    """It does not answer, or not as it should."""
    text = _SOURCE_LINE.sub("", str(error))
    what = text.removeprefix(_LANCE) if text.startswith(_LANCE) else f"{type(error).__name__}: {text}"
    return StoreError(f"cannot use {uri}: {what}; is the store up, and is its endpoint right (AWS_ENDPOINT_URL)?")


def in_words(error: Exception, uri: str) -> Exception:
    """The error that a file system raised for a URI in an object store, as one that says what to do; any other error as it is."""
    if isinstance(error, StoreError) or (isinstance(error, OSError) and uri in str(error)):
        return error  # has its words already
    if type(error).__name__ in _CREDENTIAL_ERRORS:
        return no_credentials(uri)
    if isinstance(error, FileNotFoundError):
        return no_bucket(uri) if is_no_bucket(error) else error
    if isinstance(error, PermissionError):
        return refused(uri, _code(error))
    if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] in _LIBRARIES:
        return unusable(uri, error)
    return error


def of_lance(error: Exception, uri: str) -> Exception:
    """The same for an error of Lance, which tells them apart in its text only."""
    text = str(error)
    if _NO_BUCKET.search(text):
        return no_bucket(uri)
    if _NO_CREDENTIALS.search(text):
        return no_credentials(uri)
    if code := _REFUSED.search(text):
        return refused(uri, code[0])
    if isinstance(error, OSError) or text.startswith(_LANCE):
        return unusable(uri, error)
    return error


def is_no_bucket(error: Exception) -> bool:
    """Whether what was not found is the bucket."""
    return bool(_NO_BUCKET.search(f"{type(error.__cause__).__name__} {error.__cause__} {error}"))


@contextlib.contextmanager
def worded(uri: str) -> Iterator[None]:
    """Errors of the block as `in_words` has them. The cause stays that of the library, where its answer is."""
    try:
        yield
    except Exception as error:
        said = in_words(error, uri)
        if said is error:
            raise
        raise said from (error.__cause__ or error)


def _code(error: OSError) -> str:
    """What the store calls it: SignatureDoesNotMatch, AccessDenied, …"""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code") or error.strerror or error)
