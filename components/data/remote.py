"""The file system behind a URL, and what its errors mean in one sentence each; imported only where there is a URL.

Mechanism: 1. fsspec's file system; S3's takes its account and endpoint from the usual `AWS_*` variables, one client for a
process and these variables; 2. botocore tries 500, 503, SlowDown and refused connections again with growing pauses, s3fs
what breaks in the middle of a body; 3. `explaining` turns what concerns the whole place - no credentials, no bucket, no
answer - into a `SourceError`, and lets errors about one file pass as the `OSError` that they are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_ATTEMPTS = 5  # of a request

_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "NoAuthTokenError"}
_WRONG = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_OVERLOADED = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504"}
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "fsspec")
_SETTINGS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"


class SourceError(ValueError):
    """A place that cannot be read at all; the message says which, why and what to do."""

    user_error = True


def filesystem(path: str) -> tuple[AbstractFileSystem, str]:
    """fsspec's file system of a URL, and the path in it."""
    if is_s3(path):
        settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        files = _s3(os.getpid(), settings)
        return files, files._strip_protocol(path)
    try:
        import fsspec

        return fsspec.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise SourceError(f"'{path}' cannot be opened: {error}") from error


def is_s3(path: str) -> bool:
    return path.lower().startswith(("s3://", "s3a://"))


@lru_cache(maxsize=2)
def _s3(process: int, settings: tuple[tuple[str, str], ...]) -> AbstractFileSystem:
    """One client for a process and its settings: connections do not outlive a fork, nor a change of account."""
    try:
        import s3fs
    except ImportError as error:
        raise SourceError("reading s3:// needs the package s3fs; install it with: pip install s3fs") from error
    files = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        max_concurrency=1,  # of one object; otherwise each is asked for its size first
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
            "connect_timeout": 10,
            "read_timeout": 60,
        },
    )
    files.retries = _ATTEMPTS  # where a connection breaks in the middle of a body, and botocore no longer looks
    return files


@contextlib.contextmanager
def explaining(path: str) -> Iterator[None]:
    """Errors of the libraries that concern the whole place become a SourceError."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        message = _explained(path, error)
        if message is None:
            raise
        raise SourceError(f"'{path}': {message}") from error


def _explained(path: str, error: Exception) -> str | None:
    """What is wrong with the place; None where it is about one file only, or no library's error at all."""
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
    endpoint = named if is_s3(path) else "the server"
    code = next((found for cause in (error, error.__cause__) if (found := _code(cause))), "")
    if type(error).__name__ in _NO_CREDENTIALS:
        return f"there are no credentials for {endpoint}; set {_SETTINGS}, or FSSPEC_S3_ANON=true for a public bucket"
    if code in _WRONG:
        return f"{endpoint} does not accept the credentials ({code}); check {_SETTINGS}"
    if code == "NoSuchBucket":
        return f"there is no such bucket at {endpoint}"
    if code in _OVERLOADED:
        return f"{endpoint} answers {code} again and again, also after pauses; try later"
    if isinstance(error, ValueError) and "Invalid endpoint" in str(error):
        return f"AWS_ENDPOINT_URL is no URL ({endpoint}); expected http://host:port or https://host"
    library = type(error).__module__.partition(".")[0] in _LIBRARIES
    if code or not library or isinstance(error, FileNotFoundError):
        return None
    kind, said = type(error).__name__, str(error) or type(error).__name__
    if "Payload" in kind or "Incomplete" in kind:
        return f"the connection to {endpoint} breaks off again and again: {said}"
    unreachable = not is_s3(path) or "Connection" in kind or "Timeout" in kind
    return f"{endpoint} cannot be reached: {said}" if unreachable else f"cannot be read: {said}"


def _code(error: BaseException | None) -> str:
    """S3's name of an error, or the number of the HTTP status."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
