"""An S3 on loopback for tests: moto's real server, and a proxy before it that fails when it is told to."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest

#: what `Proxy.fault` may answer: a status with S3's name of the error, a closed connection, or half of the answer
BUSY, BROKEN, DENIED = (503, "SlowDown"), (500, "InternalError"), (403, "AccessDenied")
RESET, HALF = (0, "reset"), (-1, "half")
Fault = tuple[int, str] | None


class Proxy:
    """Hands requests on to `target`; `fault(method, path)` says whether and how one fails instead."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.fault: Callable[[str, str], Fault] = lambda method, path: None
        self.requests: list[str] = []
        self.failed = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                fault = proxy.fault(self.command, self.path)
                with proxy._lock:
                    proxy.requests.append(f"{self.command} {self.path}")
                    proxy.failed += fault is not None
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if fault == RESET:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                if fault and fault[0] > 0:
                    text = f"<Error><Code>{fault[1]}</Code><Message>on purpose</Message></Error>".encode()
                    self.reply(fault[0], {"Content-Type": "application/xml", "Content-Length": str(len(text))}, text)
                    return
                connection = http.client.HTTPConnection(*target, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                content = response.read()
                headers = {
                    k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")
                }
                if self.command != "HEAD":
                    headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
                    headers["Content-Length"] = str(len(content))
                self.reply(response.status, headers, content[: len(content) // 2] if fault == HALF else content)
                self.close_connection = fault == HALF

            def reply(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def fail_first(self, first: int, fault: Fault, of: str = "") -> None:
        """The next `first` requests whose path holds `of` fail."""
        left = list(range(first))  # `pop` is atomic: requests come side by side

        def decide(method: str, path: str) -> Fault:
            if of in path and left:
                left.pop()
                return fault
            return None

        self.fault = decide


class Bucket:
    """A bucket and the settings by which programs find it."""

    def __init__(self, name: str, client: Any, proxy: Proxy) -> None:
        self.name, self.client, self.proxy = name, client, proxy

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def upload(self, folder: Path, prefix: str = "data") -> str:
        """Everything below a folder; its URL."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.url}/{prefix}"


@contextmanager
def serve() -> Iterator[Callable[[pytest.MonkeyPatch], Bucket]]:
    """moto's server with a proxy before it. What is yielded makes a fresh bucket and sets `AWS_*` so that it is found."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        **{name.lower(): value for name, value in account.items() if "KEY" in name},
    )
    proxy = Proxy((host, port))
    number = count()

    def fresh(monkeypatch: pytest.MonkeyPatch) -> Bucket:
        for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(variable, raising=False)
        settings = account | {"AWS_ENDPOINT_URL": proxy.url, "AWS_EC2_METADATA_DISABLED": "true"}
        for variable, value in settings.items():
            monkeypatch.setenv(variable, value)
        proxy.fault, proxy.failed = lambda method, path: None, 0
        proxy.requests.clear()
        bucket = Bucket(f"bucket-{next(number)}", client, proxy)
        client.create_bucket(Bucket=bucket.name)
        return bucket

    try:
        yield fresh
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        server.stop()
