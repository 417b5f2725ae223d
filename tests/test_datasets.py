"""The store of data sets: objects as DVC has them, trees that are sealed last, reading by hash, and everything that fails."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import datasets, s3_objects, shard_cache
from infra.datasets import Shard, Store, StoreError
from infra.objects import place
from infra.s3_objects import AccessError, S3Objects
from infra.shard_cache import Damaged, ShardCache
from infra.storage import StorageError
from tests import _s3
from tests._project import small_disk
from tests._s3 import BROKEN, BUSY, DENIED, HALF, RESET, Bucket

ROOT = Path(__file__).parent.parent
NAMES = ["train/part-00000-000.parquet", "train/part-1.x", "Ä ö/日本.bin", "a b.txt", "a.b/c", "a/z", "dataset.json"]
AGO = time.time() - 10 * 86400


def content(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest() * (1 + len(name))


def put_all(store: Store, names: list[str] = NAMES) -> list[Shard]:
    return [store.put(name, content(name)) for name in names]


@pytest.fixture(scope="module")
def moto() -> Iterator[Callable[[pytest.MonkeyPatch], Bucket]]:
    with _s3.serve() as fresh:
        yield fresh


@pytest.fixture
def bucket(moto: Callable[[pytest.MonkeyPatch], Bucket], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return moto(monkeypatch)


@pytest.fixture
def s3(bucket: Bucket, tmp_path: Path) -> Store:
    return Store(f"{bucket.url}/some/where", tmp_path / "shards", 1 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "remote"), tmp_path / "shards", 1 << 20)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process knows of files it has checked is forgotten between tests."""
    monkeypatch.setattr(shard_cache, "_checked", {})
    monkeypatch.setattr(shard_cache, "_fetched", {})


def overwrite(store: Store, digest: str, data: bytes, bucket: Bucket | None) -> None:
    """Damages an object behind the store's back."""
    if bucket is not None:
        bucket.put(f"some/where/{place(digest)}", data)
        return
    path = Path(store.url) / place(digest)
    os.chmod(path, 0o644)
    path.write_bytes(data)


def behind(request: pytest.FixtureRequest, store: Store) -> Bucket | None:
    return request.getfixturevalue("bucket") if store.url.startswith("s3") else None


# -------------------------------------------------------------------------------------------------------- writing


def test_an_object_is_where_dvc_looks_for_it(store: Store, request: pytest.FixtureRequest) -> None:
    shard = store.put("x.bin", b"hello")
    assert shard == Shard("x.bin", "5d41402abc4b2a76b9719d911017c592", 5)
    if bucket := behind(request, store):
        key = "some/where/files/md5/5d/41402abc4b2a76b9719d911017c592"
        assert bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read() == b"hello"
    else:
        path = Path(store.url) / "files/md5/5d/41402abc4b2a76b9719d911017c592"
        assert path.read_bytes() == b"hello"
        assert path.stat().st_mode & 0o777 == 0o444  # what DVC takes as verified


def test_a_file_is_put_as_its_bytes_are(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "ä b.bin"
    path.write_bytes(b"x" * 100_000)
    assert store.put_file("y", path) == store.put("y", b"x" * 100_000)


def test_putting_again_changes_nothing(s3: Store, folder: Store, bucket: Bucket) -> None:
    shard = folder.put("x", b"hello")
    before = (Path(folder.url) / place(shard.digest)).stat()
    assert folder.put("x", b"hello") == shard
    after = (Path(folder.url) / place(shard.digest)).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for _ in range(2):
        s3.put("x", b"hello" * 500_000)  # asked for first
    assert sum(request.startswith("PUT") for request in bucket.proxy.requests) == 1
    versions = bucket.client.put_bucket_versioning
    versions(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(2):
        s3.put("x", b"hello")  # sent at once, and refused the second time
    key = f"some/where/{place(shard.digest)}"
    assert len(bucket.client.list_object_versions(Bucket=bucket.name, Prefix=key)["Versions"]) == 1


def test_a_store_travels_without_its_connections(store: Store) -> None:
    store.put("x", b"hello")
    sent = pickle.dumps(store)
    assert len(sent) < 500
    assert pickle.loads(sent).put("x", b"hello") == store.put("x", b"hello")


def test_a_worker_needs_no_dvc(store: Store) -> None:
    code = (
        "import pickle, sys\nstore = pickle.loads(sys.stdin.buffer.read())\nprint(store.put('x', b'hello').digest)\n"
        "print(any(name.partition('.')[0] in ('dvc', 'dvc_data', 's3fs', 'torch', 'prefect', 'ray') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(store), capture_output=True, cwd=ROOT)
    assert done.stdout.decode().split() == ["5d41402abc4b2a76b9719d911017c592", "False"], done.stderr.decode()
    assert not store.missing(["5d41402abc4b2a76b9719d911017c592"])


def test_what_a_power_cut_left_empty_is_put_again(folder: Store) -> None:
    shard = folder.put("x", b"hello")
    overwrite(folder, shard.digest, b"", None)
    assert folder.missing([shard.digest]) == {shard.digest}
    folder.put("x", b"hello")
    assert not folder.missing([shard.digest])
    assert folder.fetch(shard.digest).read_bytes() == b"hello"
    assert not folder.missing([folder.put("empty", b"").digest])


def test_putting_makes_an_old_object_young(folder: Store, s3: Store, bucket: Bucket, monkeypatch) -> None:
    """Whoever collects old garbage must leave what a worker counts on."""
    shard = folder.put("x", b"hello")
    os.utime(Path(folder.url) / place(shard.digest), (AGO, AGO))
    assert [age > 86400 for _, _, age in folder.objects.every()] == [True]
    folder.put("x", b"hello")
    assert [age > 86400 for _, _, age in folder.objects.every()] == [False]
    s3.put("x", b"hello")
    monkeypatch.setattr(s3_objects, "YOUNG", -1.0)
    before = bucket.client.head_object(Bucket=bucket.name, Key=f"some/where/{place(shard.digest)}")["LastModified"]
    time.sleep(1.1)  # S3's clock has seconds
    s3.put("x", b"hello")
    after = bucket.client.head_object(Bucket=bucket.name, Key=f"some/where/{place(shard.digest)}")["LastModified"]
    assert after > before
    assert s3.objects.get(shard.digest) == b"hello"


# --------------------------------------------------------------------------------------------------------- sealing


def test_the_tree_is_the_one_that_dvc_makes(store: Store) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta
    from dvc_data.hashfile.tree import Tree

    theirs = Tree()
    for name in NAMES:
        data = content(name)
        theirs.add(tuple(name.split("/")), Meta(size=len(data)), HashInfo("md5", hashlib.md5(data).hexdigest()))
    theirs.digest()
    sealed = datasets.seal(store, put_all(store))
    assert sealed.md5 == theirs.oid
    assert store.objects.get(sealed.md5) == theirs.as_bytes()
    assert (sealed.nfiles, sealed.size) == (len(NAMES), sum(len(content(name)) for name in NAMES))


def test_every_file_is_read_as_it_was_put(store: Store) -> None:
    sealed = datasets.seal(store, put_all(store))
    files = pickle.loads(pickle.dumps(datasets.open_tree(store, sealed.md5)))
    assert files.names() == sorted(NAMES)
    for name in NAMES:
        assert files.path(name).read_bytes() == content(name)
    with pytest.raises(FileNotFoundError, match="has no nothing.bin"):
        files.path("nothing.bin")


def test_a_tree_without_all_its_leaves_is_never_written(store: Store, request: pytest.FixtureRequest) -> None:
    shards = put_all(store)
    store.objects.remove(shards[2].digest)
    with pytest.raises(StoreError, match=r"1 objects are not whole.*Ä ö/日本\.bin"):
        datasets.seal(store, shards)
    assert not [digest for digest, _, _ in store.objects.every() if digest.endswith(".dir")]
    overwrite(store, shards[3].digest, b"short", behind(request, store))
    with pytest.raises(StoreError, match="2 objects are not whole"):
        datasets.seal(store, shards)
    put_all(store)
    assert datasets.seal(store, shards).nfiles == len(NAMES)


@pytest.mark.slow
def test_many_leaves_are_looked_for_by_listing(s3: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_objects, "_LISTED", 50)
    with ThreadPoolExecutor(8) as pool:
        shards = list(pool.map(lambda n: s3.put(f"{n}.bin", b"%d" % n), range(60)))
    bucket.proxy.requests.clear()
    datasets.seal(s3, shards)
    folders = len({shard.digest[:2] for shard in shards})
    assert sum("list-type" in request for request in bucket.proxy.requests) == folders < 60
    assert len(bucket.proxy.requests) == folders + 1  # and the tree
    s3.objects.remove(shards[7].digest)
    with pytest.raises(StoreError, match=r"1 objects .* 7\.bin"):
        datasets.seal(s3, shards)


def test_two_contents_of_one_name_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match=r"two different objects want to be x\.bin"):
        datasets.seal(store, [store.put("x.bin", b"a"), store.put("y.bin", b"a"), store.put("x.bin", b"b")])
    again = [store.put("x.bin", b"a"), store.put("x.bin", b"a")]  # a retry is no contradiction
    assert datasets.seal(store, again).nfiles == 1


def test_ten_thousand_empty_files_are_one_object(folder: Store) -> None:
    sealed = datasets.seal(folder, [folder.put(f"e/{number}", b"") for number in range(10_000)])
    assert (sealed.nfiles, sealed.size) == (10_000, 0)
    assert len(list(folder.objects.every())) == 2
    assert datasets.open_tree(folder, sealed.md5).path("e/9999").read_bytes() == b""


def test_a_new_version_needs_nothing_of_the_old_but_its_tree(s3: Store, bucket: Bucket) -> None:
    old = datasets.seal(s3, put_all(s3, NAMES[:5]))
    more = put_all(s3, NAMES[5:])
    changed = s3.put(NAMES[0], b"another")
    bucket.proxy.requests.clear()
    new = datasets.append(s3, old.md5, [*more, changed])
    read = [request for request in bucket.proxy.requests if request.startswith("GET") and "list-type" not in request]
    assert [request.partition("?")[0].rpartition("/")[2] for request in read] == [old.md5[2:]]
    put_all(s3)
    assert new == datasets.seal(s3, [*put_all(s3, NAMES[1:]), changed])
    assert datasets.tree(s3, old.md5)[NAMES[0]] != datasets.tree(s3, new.md5)[NAMES[0]]


@pytest.mark.slow
def test_dvc_gets_what_was_sealed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc pull` in a project of its own, with nothing but the pointer."""
    sealed = datasets.seal(store, put_all(store))
    project = tmp_path / "theirs"
    project.mkdir()
    for variable in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=project, check=True)
    subprocess.run([*dvc, "remote", "add", "-q", "-d", "r", store.url], cwd=project, check=True)
    out = {"md5": sealed.md5, "size": sealed.size, "nfiles": sealed.nfiles, "hash": "md5", "path": "data"}
    (project / "data.dvc").write_text(json.dumps({"outs": [out]}))
    done = subprocess.run([*dvc, "pull"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert (project / "data" / name).read_bytes() == content(name)
    status = subprocess.run([*dvc, "status", "-c"], cwd=project, capture_output=True, text=True)
    assert "in sync" in status.stdout, status.stdout + status.stderr


# ------------------------------------------------------------------------------------------------------ what fails


@pytest.mark.slow
@pytest.mark.parametrize("fault", [BUSY, BROKEN, RESET, HALF], ids=["busy", "broken", "reset", "half"])
def test_an_s3_that_stumbles_is_asked_again(s3: Store, bucket: Bucket, fault: _s3.Fault) -> None:
    bucket.proxy.fail_first(2, fault)
    shards = put_all(s3, NAMES[:3])
    bucket.proxy.fail_first(2, fault)
    sealed = datasets.seal(s3, shards)
    bucket.proxy.fail_first(2, fault)
    files = datasets.open_tree(s3, sealed.md5)
    bucket.proxy.fail_first(2, fault)
    assert all(files.path(name).read_bytes() == content(name) for name in NAMES[:3])
    assert bucket.proxy.failed == 8


def test_s3_is_told_what_must_arrive(s3: Store, bucket: Bucket) -> None:
    """S3 refuses a request whose body has not the MD5 of its header."""
    sent = []
    assert isinstance(s3.objects, S3Objects)
    s3.objects.client.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.headers)
    )
    s3.put("x", b"hello")
    (headers,) = sent
    assert headers["Content-MD5"] == b"XUFAKrxLKna5cZ2REBfFkg=="  # base64 of 5d41402a...


def large() -> bytes:
    return b"".join(hashlib.sha256(b"%d" % n).digest() * 1024 for n in range(2200))  # 69 MB: five pieces


@pytest.mark.slow
def test_an_upload_that_is_lost_half_way_leaves_nothing_visible(s3: Store, bucket: Bucket) -> None:
    data = large()
    bucket.proxy.fault = lambda method, path: DENIED if "partNumber=3" in path else None
    with pytest.raises(StorageError):
        s3.put("large.bin", data)
    assert not list(s3.objects.every())
    bucket.proxy.fault = lambda method, path: None
    shard = s3.put("large.bin", data)
    assert datasets.seal(s3, [shard]).size == len(data)
    assert sum("partNumber" in request and request.startswith("PUT") for request in bucket.proxy.requests) >= 5
    assert hashlib.md5(s3.objects.get(shard.digest)).hexdigest() == shard.digest


_KILLED = """
import pickle, sys
from tests.test_datasets import large
store = pickle.loads(sys.stdin.buffer.read())
print("ready", flush=True)
store.put("large.bin", large())
"""


@pytest.mark.slow
def test_a_worker_killed_during_an_upload_leaves_nothing_visible(s3: Store, bucket: Bucket) -> None:
    worker = subprocess.Popen([sys.executable, "-c", _KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    def kill(method: str, path: str) -> _s3.Fault:
        if "partNumber=3" in path:
            worker.kill()
            time.sleep(0.5)
        return None

    bucket.proxy.fault = kill
    worker.communicate(pickle.dumps(s3))
    assert worker.returncode == -signal.SIGKILL
    bucket.proxy.fault = lambda method, path: None
    assert not list(s3.objects.every())
    assert s3.objects.sweep(3600) == 1  # moto says of each upload that it began in 2010
    assert s3.objects.sweep(3600) == 0
    assert datasets.seal(s3, [s3.put("large.bin", large())]).nfiles == 1


_KILLED_HERE = """
import os, pickle, signal, sys
store = pickle.loads(sys.stdin.buffer.read())
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.put("x", b"hello")
"""


def test_a_worker_killed_during_a_write_leaves_nothing_visible(folder: Store) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED_HERE], input=pickle.dumps(folder), cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert not list(folder.objects.every())
    assert len([path for path in Path(folder.url).rglob("*") if path.is_file()]) == 1
    assert folder.objects.sweep(3600) == 0
    assert folder.objects.sweep(-60) == 1
    assert not [path for path in Path(folder.url).rglob("*") if path.is_file()]
    assert not folder.missing([folder.put("x", b"hello").digest])


def test_no_credentials_is_a_message(s3: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(AccessError, match="no credentials for S3; set AWS_ACCESS_KEY_ID"):
        s3.put("x", b"hello")


def test_a_wrong_bucket_or_no_rights_is_a_message(s3: Store, bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="there is no bucket 'nobodys'"):
        list(Store("s3://nobodys", tmp_path, 1).objects.every())
    with pytest.raises(AccessError, match="there is no bucket 'nobodys'"):
        Store("s3://nobodys", tmp_path, 1).put("x", b"hello")
    bucket.proxy.fault = lambda method, path: DENIED
    with pytest.raises(AccessError, match="may not do this"):
        s3.put("x", b"hello")


def test_a_store_that_does_not_answer_is_no_missing_data(s3: Store, bucket: Bucket) -> None:
    """Else a stage would be made anew because the network is down."""
    sealed = datasets.seal(s3, put_all(s3))
    bucket.proxy.fault = lambda method, path: DENIED
    with pytest.raises(StorageError):
        datasets.whole(s3, sealed.md5)


# --------------------------------------------------------------------------------------------------------- reading


def test_a_file_is_fetched_once(s3: Store, bucket: Bucket) -> None:
    shard = s3.put("x", b"hello" * 1000)
    path = s3.fetch(shard.digest)
    bucket.proxy.requests.clear()
    assert s3.fetch(shard.digest) == path
    assert not bucket.proxy.requests


def test_an_object_in_a_folder_is_not_copied(folder: Store) -> None:
    shard = folder.put("x", b"hello")
    assert folder.fetch(shard.digest) == Path(folder.url) / place(shard.digest)
    assert not folder.cache.exists()


def test_a_file_is_hashed_once_a_process_and_again_when_it_changes(s3: Store, monkeypatch) -> None:
    shard = s3.put("x", b"hello")
    hashed: list[Path] = []
    real = shard_cache.md5_of
    monkeypatch.setattr(shard_cache, "md5_of", lambda path: hashed.append(path) or real(path))
    path = s3.fetch(shard.digest)
    for _ in range(3):
        assert s3.fetch(shard.digest) == path
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # another process uses it
    assert len(hashed) == 1
    os.utime(path)
    s3.fetch(shard.digest)
    assert len(hashed) == 2


@pytest.mark.parametrize("known", [True, False], ids=["this process", "a later process"])
def test_a_damaged_copy_is_fetched_again(s3: Store, known: bool) -> None:
    shard = s3.put("x", b"hello")
    path = s3.fetch(shard.digest)
    before = path.stat()
    path.write_bytes(b"jello")
    if not known:  # silently, as a disk does
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        shard_cache._checked.clear()
    assert s3.fetch(shard.digest).read_bytes() == b"hello"


def test_a_damaged_object_is_named_with_what_to_do(store: Store, request: pytest.FixtureRequest) -> None:
    sealed = datasets.seal(store, put_all(store))
    files = datasets.open_tree(store, sealed.md5)
    digest = files.entries["a b.txt"]
    overwrite(store, digest, content("a b.txt")[:-1] + b"?", behind(request, store))
    for _ in range(2):
        with pytest.raises(Damaged, match=rf"a b\.txt of the data set {sealed.md5}.*{digest} is damaged.*data verify"):
            files.path("a b.txt")
    assert files.path("a/z").read_bytes() == content("a/z")
    assert not [path for path in store.cache.rglob(f"*{digest[2:]}*") if path.is_file()]  # neither kept nor left over


def test_a_lost_object_is_named_with_what_to_do(store: Store) -> None:
    sealed = datasets.seal(store, put_all(store))
    files = datasets.open_tree(store, sealed.md5)
    store.objects.remove(files.entries["a/z"])
    with pytest.raises(StoreError, match=rf"a/z of the data set {sealed.md5}.*has lost the object.*data verify"):
        files.path("a/z")
    assert not datasets.whole(store, sealed.md5)
    store.objects.remove(sealed.md5)
    with pytest.raises(StoreError, match="has lost the data set"):
        datasets.open_tree(store, sealed.md5)
    assert not datasets.whole(store, sealed.md5)


def test_a_damaged_tree_is_not_believed(store: Store, request: pytest.FixtureRequest) -> None:
    sealed = datasets.seal(store, put_all(store))
    rows = json.loads(store.objects.get(sealed.md5))
    overwrite(store, sealed.md5, json.dumps(rows[1:]).encode(), behind(request, store))
    with pytest.raises(Damaged, match="list of files"):
        datasets.open_tree(store, sealed.md5)
    assert not datasets.whole(store, sealed.md5)


# ----------------------------------------------------------------------------------------------------- the cache


def fill(cache: ShardCache, number: int, size: int = 1000, used: float | None = None) -> Path:
    data = b"%04d" % number * (size // 4)
    path = cache.take(hashlib.md5(data).hexdigest(), lambda target: target.write_bytes(data))
    if used is not None:
        os.utime(path, ns=(int(used * 1e9), path.stat().st_mtime_ns))
    return path


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3000)
    paths = [fill(cache, number, used=AGO + number) for number in range(3)]
    fill(cache, 0)  # used now
    fill(cache, 3)
    assert [path.exists() for path in paths] == [True, False, True]
    fill(cache, 4)
    assert [path.exists() for path in paths] == [True, False, False]


def test_what_was_just_handed_out_stays(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3000)
    paths = [fill(cache, number) for number in range(6)]
    assert all(path.exists() for path in paths)  # all of them young: the bound gives way
    last = fill(cache, 6)  # but not to more than twice its size
    assert last.exists()
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= 6000


def test_what_another_process_takes_meanwhile_is_not_removed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3000)
    path = fill(cache, 0, used=AGO)
    seen = path.stat().st_atime
    fill(cache, 0)
    assert not cache._remove(str(path), seen)
    assert path.exists()
    assert cache._remove(str(path), path.stat().st_atime)
    assert not path.exists()


def test_an_object_larger_than_the_cache_is_read_all_the_same(tmp_path: Path) -> None:
    assert fill(ShardCache(tmp_path, 3000), 0, size=8000).stat().st_size == 8000


def test_leftovers_of_killed_downloads_go(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3000)
    fill(cache, 0)
    old, new = tmp_path / "ab" / ".old.1.1", tmp_path / "ab" / ".new.1.1"
    old.parent.mkdir(exist_ok=True)
    for path in (old, new):
        path.write_bytes(b"x" * 5000)
    os.utime(old, (AGO, AGO))
    fill(cache, 1)
    assert (old.exists(), new.exists()) == (False, True)


_READER = """
import hashlib, pickle, random, sys
store, digests, seed = pickle.loads(sys.stdin.buffer.read())
order = random.Random(seed).choices(digests, k=300)
for digest in order:
    assert hashlib.md5(store.fetch(digest).read_bytes()).hexdigest() == digest
"""


@pytest.mark.slow
def test_several_processes_share_a_cache(s3: Store, bucket: Bucket) -> None:
    shards = [s3.put(f"{number}", b"%04d" % number * 250) for number in range(30)]
    small = Store(s3.url, s3.cache, 16_000)  # half of what is read: under pressure, but less than twice its size
    readers = [
        subprocess.Popen([sys.executable, "-c", _READER], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        for _ in range(3)
    ]
    for seed, reader in enumerate(readers):
        assert reader.stdin is not None
        reader.stdin.write(pickle.dumps((small, [shard.digest for shard in shards], seed)))
        reader.stdin.close()
    for reader in readers:
        assert reader.stderr is not None
        errors = reader.stderr.read().decode()
        assert reader.wait() == 0, errors


@pytest.fixture
def megabyte(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    with small_disk(tmp_path / "disk", "1m") as place:
        yield place


def test_a_full_disk_makes_room_and_else_says_so(s3: Store, megabyte: Path) -> None:
    there = Store(s3.url, megabyte / "shards", 1 << 30)
    shards = [s3.put(f"{number}", bytes([number]) * 300_000) for number in range(4)]
    for shard in shards[:3]:
        there.fetch(shard.digest)
    for path in (megabyte / "shards").glob("??/*"):
        os.utime(path, ns=(int(AGO * 1e9), path.stat().st_mtime_ns))
    assert there.fetch(shards[3].digest).read_bytes() == bytes([3]) * 300_000  # in the place of old ones
    (megabyte / "others").write_bytes(b"x" * 500_000)
    with pytest.raises(StoreError, match=r"the disk of .*shards is full.*TESSERA_SHARD_CACHE_MB is 1024"):
        there.fetch(shards[0].digest)
    (megabyte / "others").unlink()
    assert there.fetch(shards[0].digest).read_bytes() == bytes([0]) * 300_000
