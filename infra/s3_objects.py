"""Objects in a bucket (`infra.objects` in a folder's place): one request for one of up to 64 MB, pieces for a larger one.

What arrives is checked by S3: against the MD5 that is the object's name, or piece by piece against a CRC. Answers like 500,
503 and SlowDown and dropped connections are tried again with growing pauses; a large object is visible only when all of its
pieces have arrived.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from infra.objects import YOUNG, place
from infra.storage import StorageError, parts_of

_CHUNK = 1 << 20
_LISTED = 300  # from so many objects on a listing is faster than asking for each
_AT_ONCE = 16  # requests
_ATTEMPTS = 8  # of a request to S3
_READS = 4  # of an object whose connection breaks while it is read
_WHOLE = 64 << 20  # bytes up to which an object goes up in one request, which S3 checks against the MD5
_SMALL = 1 << 20  # bytes up to which an object is sent without asking whether it is there
_THERE = ("PreconditionFailed", "412", "ConditionalRequestConflict", "NotImplemented")  # or a store without conditions
_COPIED = 5 << 30  # S3 copies no larger object in one request


class AccessError(StorageError):
    """The person's to mend: no credentials, no such bucket, no rights."""

    user_error = True


class S3Objects:
    """`infra.objects.Objects` on S3."""

    def __init__(self, url: str) -> None:
        from boto3.s3.transfer import TransferConfig
        from boto3.session import Session
        from botocore.config import Config

        self.url = url
        self.bucket, self.prefix = parts_of(url)
        config = Config(
            retries={"max_attempts": _ATTEMPTS, "mode": "standard"},
            max_pool_connections=2 * _AT_ONCE,
            # the MD5 that S3 checks is in a signed header: neither a second nor a third hash of each byte
            request_checksum_calculation="when_required",
            s3={"payload_signing_enabled": False},
        )
        # a session of its own: the default one must not be used by two threads that open clients
        self.client = Session().client("s3", config=config)
        self.transfer: dict[str, Any] = {
            "Config": TransferConfig(multipart_threshold=_WHOLE, multipart_chunksize=16 << 20),
            "ExtraArgs": {"ChecksumAlgorithm": "CRC32"},  # of each piece
        }

    def _key(self, digest: str) -> str:
        return f"{self.prefix}/{place(digest)}" if self.prefix else place(digest)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except NoCredentialsError as error:
            raise AccessError(
                f"{self.url}: there are no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
                "AWS_PROFILE)"
            ) from error
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"{self.url} has no {what}") from error
            if code == "NoSuchBucket":
                raise AccessError(f"{self.url}: there is no bucket '{self.bucket}'; is its name right?") from error
            if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                raise AccessError(f"{self.url}: the credentials in use may not do this: {error}") from error
            raise StorageError(f"{self.url}: {what}: {error}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise StorageError(f"{self.url}: {what}: {error}") from error

    def put(self, digest: str, data: bytes) -> None:
        if len(data) <= _SMALL and self._put_whole(digest, data, IfNoneMatch="*"):
            return
        if self._has(digest, len(data)):
            return
        if len(data) <= _WHOLE:
            self._put_whole(digest, data)
        else:
            with self._explained(digest):
                self.client.upload_fileobj(io.BytesIO(data), self.bucket, self._key(digest), **self.transfer)

    def put_file(self, digest: str, path: Path) -> None:
        size = path.stat().st_size
        if size <= _SMALL:
            self.put(digest, path.read_bytes())
        elif self._has(digest, size):
            return
        elif size <= _WHOLE:
            with open(path, "rb") as file:
                self._put_whole(digest, file)
        else:
            with self._explained(digest):
                self.client.upload_file(str(path), self.bucket, self._key(digest), **self.transfer)

    def _put_whole(self, digest: str, data: bytes | BinaryIO, **condition: str) -> bool:
        """In one request that S3 refuses unless the bytes that arrive have the MD5 of their name; False where it says that
        there is such an object."""
        from botocore.exceptions import ClientError

        md5 = base64.b64encode(bytes.fromhex(digest.removesuffix(".dir"))).decode()
        with self._explained(digest):
            try:
                self.client.put_object(
                    Bucket=self.bucket, Key=self._key(digest), Body=data, ContentMD5=md5, **condition
                )
            except ClientError as error:
                if not condition or error.response["Error"]["Code"] not in _THERE:
                    raise
                return False
        return True

    def _has(self, digest: str, size: int) -> bool:
        """Whether an object need not be put; one that is old becomes young."""
        head = self._head(digest)
        if head is None or head["ContentLength"] != size:
            return False
        if time.time() - head["LastModified"].timestamp() <= YOUNG:
            return True
        if size > _COPIED:
            return False
        key = self._key(digest)
        with self._explained(digest):  # onto itself, which moves no bytes
            source = {"Bucket": self.bucket, "Key": key}
            self.client.copy_object(Bucket=self.bucket, Key=key, CopySource=source, MetadataDirective="REPLACE")
        return True

    def _head(self, digest: str) -> dict[str, Any] | None:
        try:
            with self._explained(digest):
                return self.client.head_object(Bucket=self.bucket, Key=self._key(digest))
        except FileNotFoundError:
            return None

    def get(self, digest: str) -> bytes:
        return self._read(digest, lambda body: body.read())

    def hashed(self, digest: str) -> str:
        def hashed(body: Any) -> str:
            found = hashlib.md5(usedforsecurity=False)
            for chunk in body.iter_chunks(_CHUNK):
                found.update(chunk)
            return found.hexdigest()

        return self._read(digest, hashed)

    def _read(self, digest: str, use: Callable[[Any], Any]) -> Any:
        """What `use` makes of the object's stream; from the beginning where the connection breaks."""
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        with self._explained(digest):
            for attempt in range(_READS):
                try:
                    return use(self.client.get_object(Bucket=self.bucket, Key=self._key(digest))["Body"])
                except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                    if attempt == _READS - 1:
                        raise
                    time.sleep(0.2 * 2**attempt)

    def download(self, digest: str, target: Path) -> None:
        with self._explained(digest):
            self.client.download_file(self.bucket, self._key(digest), str(target))

    def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        wanted = set(digests)
        found: dict[str, int] = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            if len(wanted) < _LISTED:
                heads = zip(wanted, pool.map(self._head, wanted), strict=True)
                return {digest: head["ContentLength"] for digest, head in heads if head is not None}
            for page in pool.map(lambda folder: list(self._list(folder)), sorted({digest[:2] for digest in wanted})):
                found |= {name: size for name, size, _ in page if name in wanted}
        return found

    def _list(self, folder: str = "") -> Iterator[tuple[str, int, float]]:
        base = self._key("")[:-1]  # .../files/md5/
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

    def sweep(self, older: float) -> int:
        swept = 0
        with self._explained("a listing of uploads"):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._key("")[:-1]
            )
            for upload in (upload for page in pages for upload in page.get("Uploads", [])):
                if time.time() - upload["Initiated"].timestamp() > older:
                    self.client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    swept += 1
        return swept

    def local(self, digest: str) -> Path | None:
        return None
