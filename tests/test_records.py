"""Create-only objects, the records made of them, and what a stage cost last time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from infra import records
from infra.settings import Settings
from infra.storage import FolderStore, StorageError, write_bytes_atomic


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=tmp_path, home=Path(".tessera"))


def put(settings: Settings, key: str, **changes: object) -> dict[str, object]:
    content = {"stage": "tokenizer", "run": "one", "system": "tiny", "outs": {"outputs/tokenizer": "x.dir"}}
    return records.put(
        settings, key, **{**content, "metrics": {"psnr": 20.5}, "seconds": 3.0, "started": 1e9, **changes}
    )


def test_a_record_is_created_once(settings: Settings) -> None:
    assert records.find(settings, "ab" * 32) is None
    first = put(settings, "ab" * 32)
    assert put(settings, "ab" * 32, run="two", seconds=9.0) == first
    assert records.find(settings, "ab" * 32) == first
    assert first["metrics"] == {"psnr": 20.5}


def test_the_last_cost_is_this_runs_or_else_the_systems(settings: Settings) -> None:
    assert records.last_cost(settings, "tokenizer", "one") is None
    put(settings, "a" * 64, seconds=3.0, started=1e9)
    put(settings, "b" * 64, seconds=5.0, started=1e9 + 60)
    put(settings, "c" * 64, seconds=7.0, started=1e9 + 90, run="two")
    assert records.last_cost(settings, "tokenizer", "one") == 5.0
    assert records.last_cost(settings, "tokenizer", "new") is None
    assert records.last_cost(settings, "tokenizer", "new", "tiny") == 7.0
    assert records.last_cost(settings, "generator", "new", "tiny") is None


def test_of_many_writers_one_creates(tmp_path: Path) -> None:
    store, start, won = FolderStore(tmp_path), threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        if store.put_if_absent("a/b.json", str(number).encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("a/b.json") == str(won[0]).encode() * 1000
    assert store.names("a") == ["a/b.json"]


def test_names_are_those_of_the_folder_only(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for name in ("p/tok/1", "p/tok/2", "p/tokenbridge/1"):
        store.put_if_absent(name, b"")
    assert store.names("p/tok") == ["p/tok/1", "p/tok/2"]
    assert store.names("nothing") == []


def test_a_name_cannot_leave_the_store(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="leaves the store"):
        FolderStore(tmp_path / "store").put_if_absent("../outside", b"")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_bytes_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_s3_objects_are_create_only_and_listed_by_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto", reason="moto is not installed")
    import boto3

    from infra.storage import open_store

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        store = open_store("s3://bucket/prefix")
        assert store.put_if_absent("p/tok/1", b"first")
        assert not store.put_if_absent("p/tok/1", b"second")
        store.put_if_absent("p/tokenbridge/1", b"")
        assert store.get("p/tok/1") == b"first"
        assert store.get("p/none") is None
        assert store.names("p/tok") == ["p/tok/1"]
