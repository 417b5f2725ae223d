"""The file-system layer: listings, files and fingerprints, here and on S3, and the message of everything that goes wrong."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from components import registry
from components.data import locations, remote
from components.data.locations import SourceError, fingerprint, listing, read_bytes, read_each
from components.interfaces import Broken, Source
from tests import _s3
from tests._s3 import BROKEN, BUSY, DENIED, HALF, RESET, Bucket
from tests._sources import broken, picture, put, read, small

FILES = {
    "a.txt": "a",
    "b/ä ö.txt": "bb",
    "b/c [1]?*#%+&.txt": "ccc",
    "b-.txt": "",
    ".hidden": "x",
    ".git/x": "x",
    "d/.x": "x",
}
SHOWN = ["a.txt", "b-.txt", "b/c [1]?*#%+&.txt", "b/ä ö.txt"]


# ------------------------------------------------------------------------------------------------------------- here


def test_a_listing_is_sorted_and_leaves_hidden_files_out(tmp_path):
    found = listing(str(put(tmp_path, FILES)))
    assert [(entry.name, entry.size) for entry in found] == list(zip(SHOWN, [1, 0, 3, 2], strict=True))
    for entry in found:
        assert read_bytes(str(tmp_path), entry.name).decode() == FILES[entry.name]


def test_a_file_is_a_place_of_its_own(tmp_path):
    put(tmp_path, FILES)
    (entry,) = listing(str(tmp_path / "a.txt"))
    assert entry.name == ""
    assert read_bytes(str(tmp_path / "a.txt"), entry.name) == b"a"


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path, {"real/x.txt": "x", "other/y.txt": "y"})
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "real" / "nowhere").symlink_to(tmp_path / "gone")
    assert [entry.name for entry in listing(str(tmp_path / "real"))] == ["linked/y.txt", "nowhere", "x.txt"]


def test_a_folder_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(put(tmp_path, {"data/x.txt": "x"})))
    assert [entry.name for entry in listing("~/data")] == ["x.txt"]
    assert read_bytes("~/data", "x.txt") == b"x"


def test_reading_each_gives_the_content_or_why_not(tmp_path):
    put(tmp_path, {"a": "1", "c": "3"})
    first, second, third = read_each(str(tmp_path), ["a", "b", "c"])
    assert (first, third) == (b"1", b"3")
    assert isinstance(second, FileNotFoundError)
    assert locations.why(second) == "cannot be read: No such file or directory"


def test_a_fingerprint_changes_with_names_sizes_and_times_only(tmp_path):
    place = put(tmp_path / "x", {"a": "1", "b/c": "2"})
    first = fingerprint(str(place))
    assert first == fingerprint(str(place)) == fingerprint(f"{place}/")
    seen = {first}
    put(place, {".hidden": "x"})
    assert fingerprint(str(place)) == first
    os.utime(place / "a", ns=(1, 1))
    seen.add(fingerprint(str(place)))
    (place / "a").rename(place / "d")
    seen.add(fingerprint(str(place)))
    (place / "d").write_text("123")
    os.utime(place / "d", ns=(1, 1))
    seen.add(fingerprint(str(place)))
    (place / "b" / "c").unlink()
    seen.add(fingerprint(str(place)))
    seen.add(fingerprint(str(place / "d")))
    assert len(seen) == 6


def test_a_fingerprint_loads_nothing_heavy(tmp_path):
    code = (
        "import sys; from components.data.locations import fingerprint; print(fingerprint(sys.argv[1]));"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'fsspec', 's3fs', 'pandas', 'pydantic'})"
    )
    command = [sys.executable, "-c", code, str(put(tmp_path, {"a": "1"}))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{fingerprint(str(tmp_path))}\n\n"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "there is no folder or file 'nothing'"),
        ("empty", "'empty' holds no files; expected pictures"),
        ("nope://x/y", "'nope://x/y' cannot be opened: Protocol not known: nope"),
        ("memory://nowhere", "there is nothing at 'memory://nowhere'|'memory://nowhere' holds no files"),
    ],
)
def test_a_place_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, path, message):
    (tmp_path / "empty").mkdir()
    put(tmp_path, {"empty/.hidden": "x"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message) as error:
        listing(path, "pictures")
    assert error.value.user_error and "\n" not in str(error.value)


def test_other_urls_are_read_through_fsspec(tmp_path):
    put(tmp_path, FILES)
    found = listing(f"file://{tmp_path}")
    assert [entry.name for entry in found] == SHOWN
    assert read_bytes(f"file://{tmp_path}", SHOWN[2]) == b"ccc"
    assert isinstance(next(read_each(f"file://{tmp_path}", ["gone"])), FileNotFoundError)
    with locations.open(f"file://{tmp_path}", SHOWN[3]) as file:
        file.seek(1)
        assert file.read() == b"b"


def test_a_file_on_a_web_server(tmp_path):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    put(tmp_path, {"x.jsonl": '{"text": "from afar"}\n'})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/x.jsonl"
        found = read(registry.build(Source, {"type": "jsonl", "path": url}))
        assert [(key, sample.text) for key, sample in found.items()] == [("x.jsonl#0", "from afar")]
    finally:
        server.shutdown()
        server.server_close()


# --------------------------------------------------------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[[pytest.MonkeyPatch], Bucket]]:
    with _s3.serve() as fresh:
        yield fresh


@pytest.fixture
def s3(server, monkeypatch) -> Bucket:
    return server(monkeypatch)


@pytest.fixture
def impatient(monkeypatch) -> None:
    """The pauses between attempts, without which these tests would take minutes."""
    import asyncio

    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *rest: sleep(min(seconds, 0.01), *rest))


@pytest.mark.slow
def test_a_bucket_is_listed_like_a_folder(s3, tmp_path):
    url = s3.upload(put(tmp_path, FILES))
    s3.put("data/marker/", b"")  # how some programs write a folder
    s3.put("data2/x", b"not below data")
    assert [(entry.name, entry.size) for entry in listing(url)] == list(zip(SHOWN, [1, 0, 3, 2], strict=True))
    assert [read_bytes(url, name).decode() for name in SHOWN] == [FILES[name] for name in SHOWN]
    assert list(read_each(url, SHOWN)) == [FILES[name].encode() for name in SHOWN]
    with locations.open(url, "b/ä ö.txt") as file:
        file.seek(-1, io.SEEK_END)
        assert file.read() == b"b"


def test_one_object_and_a_whole_bucket(s3, tmp_path):
    url = s3.upload(put(tmp_path, {"x.txt": "x"}))
    assert [entry.name for entry in listing(f"{url}/x.txt")] == [""]
    assert read_bytes(f"{url}/x.txt") == b"x"
    assert [entry.name for entry in listing(s3.url)] == ["data/x.txt"]


def test_a_listing_is_of_now_and_the_fingerprint_of_the_content(s3, tmp_path):
    url = s3.upload(put(tmp_path, {"x": "1"}))
    first = fingerprint(url)
    s3.put("data/x", b"1")  # written again, the same: nothing to do again
    assert fingerprint(url) == first
    s3.put("data/x", b"2")
    second = fingerprint(url)
    s3.put("data/y", b"")
    assert len({first, second, fingerprint(url)}) == 3
    before = locations.stat(url, "x")
    s3.put("data/x", b"333")
    after = locations.stat(url, "x")
    assert (before.size, after.size) == (1, 3) and before.mark != after.mark


@pytest.mark.parametrize(
    "name", ["image_folder", "audio_folder", "parquet", "webdataset", "jsonl", "text_files", "numpy_archive"]
)
def test_a_source_reads_from_s3_what_it_reads_from_a_folder(name, s3, tmp_path):
    spec = small(name, tmp_path / "data")
    here = list(registry.build(Source, spec).samples())
    there = registry.build(Source, spec | {"path": s3.upload(tmp_path / "data")})
    assert list(there.samples()) == here
    assert [sample for part in there.parts() for sample in there.read(part)] == here


@pytest.mark.parametrize("fault", [BUSY, BROKEN, RESET, HALF], ids=["503", "500", "reset", "half"])
@pytest.mark.parametrize("name", ["image_folder", "parquet", "webdataset", "jsonl"])
def test_what_passes_is_tried_again(name, fault, s3, tmp_path, impatient):
    spec = small(name, tmp_path / "data")
    here = list(registry.build(Source, spec).samples())
    there = registry.build(Source, spec | {"path": s3.upload(tmp_path / "data")})
    s3.proxy.fail_first(3, fault, of="/data/" if fault == HALF else "")
    assert list(there.samples()) == here
    assert s3.proxy.failed == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (BUSY, "answers SlowDown again and again, also after pauses; try later"),
        (BROKEN, "answers InternalError again and again, also after pauses; try later"),
        (RESET, "cannot be reached"),
        (HALF, "the connection to http://127.* breaks off again and again"),
    ],
    ids=["503", "500", "reset", "half"],
)
@pytest.mark.parametrize("name", ["image_folder", "parquet", "webdataset", "jsonl"])
def test_what_stays_is_said_and_is_no_damage_of_the_data(name, fault, message, s3, tmp_path, impatient):
    """Otherwise every sample would be `Broken` because of a night's outage."""
    spec = small(name, tmp_path / "data")
    source = registry.build(Source, spec | {"path": s3.upload(tmp_path / "data")})
    parts = source.parts()
    s3.proxy.fault = lambda method, path: fault if "/data/" in path and method == "GET" else None
    with pytest.raises(SourceError, match=message):
        list(source.read(parts[0]))


@pytest.mark.slow
def test_a_listing_that_fails_for_good_is_said(s3, tmp_path, impatient):
    url = s3.upload(put(tmp_path, {"x": "1"}))
    s3.proxy.fault = lambda method, path: BUSY
    with pytest.raises(SourceError, match=f"'{url}': http://127.0.0.1:.* answers SlowDown again and again"):
        listing(url)


def test_one_object_that_is_refused_is_broken_and_the_others_are_read(s3, tmp_path):
    url = s3.upload(put(tmp_path, {f"{n}.png": picture(seed=n) for n in range(3)}))
    source = registry.build(Source, {"type": "image_folder", "path": url})
    s3.proxy.fault = lambda method, path: DENIED if path.endswith("1.png") else None
    found = read(source)
    assert broken(found) == {"1.png": "cannot be read: on purpose"}
    assert set(found) == {"0.png", "1.png", "2.png"}


def test_an_object_that_went_away_is_broken(s3, tmp_path):
    url = s3.upload(put(tmp_path, {f"{n}.png": picture(seed=n) for n in range(2)}))
    source = registry.build(Source, {"type": "image_folder", "path": url})
    parts = source.parts()
    s3.client.delete_object(Bucket=s3.name, Key="data/0.png")
    first, second = (sample for part in parts for sample in source.read(part))
    assert isinstance(first, Broken) and first.key == "0.png"
    assert second.key == "1.png" and not isinstance(second, Broken)


def test_nothing_there_and_no_such_bucket(s3):
    s3.put("data/.hidden", b"")
    with pytest.raises(SourceError, match=f"there is nothing at '{s3.url}/none'|'{s3.url}/none' holds no files"):
        listing(f"{s3.url}/none", "pictures")
    with pytest.raises(SourceError, match="holds no files; expected pictures"):
        listing(f"{s3.url}/data", "pictures")
    with pytest.raises(SourceError, match="'s3://not-there/x': there is no such bucket at http://127"):
        listing("s3://not-there/x")
    with pytest.raises(SourceError, match="there is no such bucket"):
        read_bytes("s3://not-there/x", "y")


def test_no_credentials(s3, monkeypatch, tmp_path):
    url = s3.upload(put(tmp_path, {"x.txt": "x"}))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(SourceError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        listing(url)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for use in (listing, read_bytes, fingerprint):
        with pytest.raises(
            SourceError, match=f"'{url}.*': there are no credentials for http://127.*; set AWS_ACCESS_KEY_ID"
        ):
            use(url)
    with pytest.raises(SourceError, match="there are no credentials"):
        list(read_each(url, ["x.txt"]))
    with pytest.raises(SourceError, match="there are no credentials"), locations.open(url, "x.txt"):
        pass


def test_a_public_bucket_needs_none(s3, monkeypatch, tmp_path):
    url = s3.upload(put(tmp_path, {"x.txt": "x"}))
    code = f"from components.data.locations import listing; print(listing({url!r})[0].name)"
    variables = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    variables |= {"AWS_ENDPOINT_URL": s3.proxy.url, "FSSPEC_S3_ANON": "true", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "x.txt\n"


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_wrong_credentials(s3, tmp_path, code):
    url = s3.upload(put(tmp_path, {"x.txt": "x"}))
    s3.proxy.fault = lambda method, path: (403, code)
    message = f"'{url}': http://127.* does not accept the credentials \\({code}\\); check AWS_ACCESS_KEY_ID"
    for use in (listing, read_bytes):
        with pytest.raises(SourceError, match=message):
            use(url)


def test_credentials_that_may_not_list(s3, tmp_path):
    url = s3.upload(put(tmp_path, {"x.txt": "x"}))
    s3.proxy.fault = lambda method, path: DENIED
    with pytest.raises(SourceError, match=f"'{url}' cannot be listed: on purpose"):
        listing(url)


def test_an_endpoint_where_nobody_is(s3, monkeypatch, impatient):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="'s3://x/y': http://127.0.0.1:9 cannot be reached"):
        listing("s3://x/y")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(SourceError, match="AWS_ENDPOINT_URL is no URL \\(127.0.0.1:9000\\); expected http://host:port"):
        listing("s3://x/y")


def test_a_profile_that_is_not_there_and_a_bucket_that_cannot_be(s3, monkeypatch):
    with pytest.raises(SourceError, match="Invalid bucket name"):
        listing("s3://not a bucket/x")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SourceError, match="The config profile \\(nobody\\) could not be found"):
        listing("s3://x/y")


def test_a_large_object_is_read_in_ranges(s3):
    data = os.urandom(24 << 20)
    s3.put("large", data)
    s3.proxy.requests.clear()
    with locations.open(f"{s3.url}/large") as file:
        file.seek(20 << 20)
        assert file.read(1000) == data[20 << 20 : (20 << 20) + 1000]
    assert len([request for request in s3.proxy.requests if request.startswith("GET")]) == 1


def test_small_objects_are_fetched_side_by_side(s3):
    for number in range(8):
        s3.put(f"many/{number}", b"x")
    four = threading.Barrier(4)  # nobody passes before four are there

    def wait(method: str, path: str) -> None:
        four.wait(30)

    s3.proxy.fault = wait
    assert list(read_each(f"{s3.url}/many", [str(n) for n in range(8)])) == [b"x"] * 8
    assert len(s3.proxy.requests) == 8, "one request for each"


def test_the_client_follows_a_change_of_account(s3, monkeypatch, tmp_path):
    url = s3.upload(put(tmp_path, {"x.txt": "x"}))
    first, _ = remote.filesystem(url)
    assert remote.filesystem(url)[0] is first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert remote.filesystem(url)[0] is not first
