"""Bytes where they belong: atomic local files, and a small object store (a folder or S3) with create-only writes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class StorageError(RuntimeError):
    """The store refused; the message says which object and why."""


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """The file has the old content or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_json_atomic(path: Path, value: Any) -> None:
    write_bytes_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def yaml_bytes(value: Any) -> bytes:
    """YAML in the dialect that DVC reads and writes."""
    from ruamel.yaml import YAML

    text = io.StringIO()
    writer: Any = YAML(typ="safe")  # in C: a lock is written after each stage
    writer.default_flow_style = writer.sort_base_mapping_type_on_output = False
    writer.width, writer.allow_unicode = 4096, True
    writer.dump(value, text)
    return text.getvalue().encode()


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """One process at a time; the lock dies with its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Store(Protocol):
    """Objects by name. `put_if_absent` is the one primitive that commits, records and the ledger are built on."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Creates the object whole; False if there is one of that name, which then stays as it is."""
        ...

    def get(self, name: str) -> bytes | None:
        """The object's content, None if there is none of that name."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Every object in the folder `prefix`, sorted."""
        ...


class FolderStore:
    """Objects as files; created whole by linking a finished temporary file under its name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_if_absent(self, name: str, data: bytes) -> bool:
        target = self._path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".new.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o444)
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True

    def get(self, name: str) -> bytes | None:
        path = self._path(name)
        return path.read_bytes() if path.is_file() else None

    def names(self, prefix: str) -> list[str]:
        folder, root = self._path(prefix), self.root.resolve()
        found = folder.rglob("*") if folder.is_dir() else []
        return sorted(p.relative_to(root).as_posix() for p in found if p.is_file() and not p.name.startswith("."))

    def _path(self, name: str) -> Path:
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise StorageError(f"'{name}' leaves the store")
        return path


def parts_of(url: str) -> tuple[str, str]:
    """Bucket and prefix of an s3:// URL."""
    bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
    return bucket, prefix


class S3Store:
    """Objects in a bucket; create-only through a conditional put."""

    def __init__(self, url: str) -> None:
        import boto3

        self.bucket, self.prefix = parts_of(url)
        self.client = boto3.client("s3")

    def put_if_absent(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                return False
            raise StorageError(f"s3://{self.bucket}/{self._key(name)}: {error}") from error
        return True

    def get(self, name: str) -> bytes | None:
        from botocore.exceptions import ClientError

        try:
            return self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise StorageError(f"s3://{self.bucket}/{self._key(name)}: {error}") from error

    def names(self, prefix: str) -> list[str]:
        # the slash: without it `promotions/a` would list those of the model `ab`, too
        folder = self._key(prefix.rstrip("/") + "/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return sorted(key.removeprefix(f"{self.prefix}/" if self.prefix else "") for key in keys)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


def open_store(url: str) -> Store:
    """The store behind a folder name or an s3:// URL."""
    return S3Store(url) if url.startswith("s3://") else FolderStore(Path(url))
