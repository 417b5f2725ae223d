"""Objects named by the MD5 of their bytes, in the layout of a DVC remote: `files/md5/ab/cdef...`, in a folder or on S3.

An object is there whole or not at all, and putting it again changes nothing; so any number of workers write at once and a
retry is free. A worker needs hashlib and boto3, no DVC, no repository and no lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from infra.storage import StorageError, parts_of

_CHUNK = 1 << 20
_LISTED = 300  # from so many objects on a listing is faster than asking for each
_AT_ONCE = 16  # requests
_ATTEMPTS = 8  # of a request to S3


def md5_of(path: Path) -> str:
    """The MD5 of a file's bytes."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Objects(Protocol):
    """A store of objects."""

    def put(self, digest: str, data: bytes) -> None: ...

    def put_file(self, digest: str, path: Path) -> None: ...

    def get(self, digest: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def download(self, digest: str, target: Path) -> None:
        """Into a new file. Raises FileNotFoundError."""
        ...

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Which of these are not there."""
        ...

    def every(self) -> Iterator[tuple[str, int, float]]:
        """(digest, bytes, seconds since it was written) of all objects."""
        ...

    def remove(self, digest: str) -> None: ...

    def local(self, digest: str) -> Path | None:
        """The object's own file, where the store is a folder here."""
        ...


def place(digest: str) -> str:
    return f"files/md5/{digest[:2]}/{digest[2:]}"


class FolderObjects:
    """Objects as files, read-only: DVC takes such a one as verified."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, digest: str, data: bytes) -> None:
        self._create(digest, lambda path: path.write_bytes(data))

    def put_file(self, digest: str, path: Path) -> None:
        import shutil

        self._create(digest, lambda target: shutil.copyfile(path, target))

    def _create(self, digest: str, write: Callable[[Path], Any]) -> None:
        target = self.root / place(digest)
        if target.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            write(fresh)
            os.chmod(fresh, 0o444)
            os.replace(fresh, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()

    def get(self, digest: str) -> bytes:
        return (self.root / place(digest)).read_bytes()

    def download(self, digest: str, target: Path) -> None:
        import shutil

        shutil.copyfile(self.root / place(digest), target)

    def missing(self, digests: Iterable[str]) -> set[str]:
        return {digest for digest in digests if not os.path.isfile(self.root / place(digest))}

    def every(self) -> Iterator[tuple[str, int, float]]:
        now = time.time()
        for folder in sorted((self.root / "files" / "md5").glob("??")):
            for path in folder.iterdir():
                if not path.name.startswith("."):
                    status = path.stat()
                    yield folder.name + path.name, status.st_size, now - status.st_mtime

    def remove(self, digest: str) -> None:
        (self.root / place(digest)).unlink(missing_ok=True)

    def local(self, digest: str) -> Path | None:
        path = self.root / place(digest)
        return path if path.is_file() else None


class S3Objects:
    """Objects in a bucket. Answers like 500, 503 and SlowDown and dropped connections are tried again with growing pauses;
    a large object goes up in pieces and is visible only when all have arrived."""

    def __init__(self, url: str) -> None:
        import boto3
        from botocore.config import Config

        self.url = url
        self.bucket, self.prefix = parts_of(url)
        retries = {"max_attempts": _ATTEMPTS, "mode": "standard"}
        self.client = boto3.client("s3", config=Config(retries=retries, max_pool_connections=2 * _AT_ONCE))

    def _key(self, digest: str) -> str:
        return f"{self.prefix}/{place(digest)}" if self.prefix else place(digest)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except NoCredentialsError as error:
            raise StorageError(
                f"{self.url}: there are no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
                "AWS_PROFILE)"
            ) from error
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"{self.url} has no {what}") from error
            hint = "; is the bucket's name right?" if code == "NoSuchBucket" else ""
            raise StorageError(f"{self.url}: {what}: {error}{hint}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise StorageError(f"{self.url}: {what}: {error}") from error

    def put(self, digest: str, data: bytes) -> None:
        import io

        if not self._has(digest):
            with self._explained(digest):
                self.client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(digest))

    def put_file(self, digest: str, path: Path) -> None:
        if not self._has(digest):
            with self._explained(digest):
                self.client.upload_file(str(path), self.bucket, self._key(digest))

    def get(self, digest: str) -> bytes:
        with self._explained(digest):
            return self.client.get_object(Bucket=self.bucket, Key=self._key(digest))["Body"].read()

    def download(self, digest: str, target: Path) -> None:
        with self._explained(digest):
            self.client.download_file(self.bucket, self._key(digest), str(target))

    def _has(self, digest: str) -> bool:
        try:
            with self._explained(digest):
                self.client.head_object(Bucket=self.bucket, Key=self._key(digest))
        except FileNotFoundError:
            return False
        return True

    def missing(self, digests: Iterable[str]) -> set[str]:
        wanted = set(digests)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            if len(wanted) < _LISTED:
                asked = sorted(wanted)
                return {digest for digest, there in zip(asked, pool.map(self._has, asked), strict=True) if not there}
            folders = sorted({digest[:2] for digest in wanted})
            for found in pool.map(lambda folder: {name for name, _, _ in self._list(folder)}, folders):
                wanted -= found
        return wanted

    def _list(self, folder: str = "") -> Iterator[tuple[str, int, float]]:
        base = self._key("")[:-1]  # .../files/md5
        now = time.time()
        with self._explained("a listing"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{base}{folder}")
            for page in pages:
                for entry in page.get("Contents", []):
                    name = entry["Key"].removeprefix(base).replace("/", "")
                    yield name, entry["Size"], now - entry["LastModified"].timestamp()

    def every(self) -> Iterator[tuple[str, int, float]]:
        return self._list()

    def remove(self, digest: str) -> None:
        with self._explained(digest):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(digest))

    def local(self, digest: str) -> Path | None:
        return None


def objects(url: str) -> Objects:
    """The store behind a folder's name or an s3:// URL; one client for a process, a place and its account."""
    account = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _opened(url, os.getpid(), account)


@lru_cache(maxsize=8)
def _opened(url: str, _process: int, _account: tuple[tuple[str, str], ...]) -> Objects:
    return S3Objects(url) if url.startswith("s3://") else FolderObjects(Path(url))
