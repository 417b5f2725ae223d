"""Shards straight into the store: memory of the driver, and the time against `dvc add` and `dvc push` of the same folder.

    python -m benchmarks.data_writing [--gigabytes 1 10] [--objects 100 100000] [--compare 1.0] [--repeats 5] [--s3]

Memory: worker processes generate shards (32 MB each; of 1 KB where objects are counted) and put them, the driver collects
their records and seals. Printed is the driver's peak resident memory. Everything stays until the tree is sealed, so the
largest row must fit the disk; a row that does not is refused before anything is written.
Time: `--compare` gigabytes in a folder, 32 MB a file. Ours: worker processes put the files, the driver seals and writes the
pointer. DVC: `dvc add` and `dvc push` with their own number of threads. Both begin as commands, with the folder in the
page cache, and end when a fresh clone could pull; they take turns, and the disk is idle before each. Ratios are medians of the
ratios in a repeat.
`--s3` does all of it on moto's server on loopback instead of a folder. That is slow: 0.25 GB and 5,000 objects will do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from infra import datasets
from infra.datasets import Shard, Store
from infra.storage import write_json_atomic

LARGE, SMALL = 32 << 20, 1 << 10  # bytes of a shard
WORKERS, THREADS = 2, 2

_MOTO = """
import logging, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(1e6)
"""


# ----------------------------------------------------------------------------------------------------- ours: a command


def generate(numbers: range, store: Store, size: int) -> list[Shard]:
    """A worker's part: shards of random bytes, the same for a number each time."""
    import numpy as np

    return [store.put(f"part-{n:06d}.bin", np.random.default_rng(n).bytes(size)) for n in numbers]


def send(names: list[str], store: Store, folder: Path) -> list[Shard]:
    """A worker's part: files of a folder."""
    with ThreadPoolExecutor(THREADS) as pool:  # one file is hashed while another is on its way
        return list(pool.map(lambda name: store.put_file(name, folder / name), names))


def drive(url: str, what: str, pointer: Path) -> None:
    """Writes a data set from worker processes, seals it, and leaves a pointer that `dvc pull` follows. `what` is a folder,
    or NUMBERxBYTES for as many generated shards. Prints the driver's peak memory in MB."""
    store = Store(url, pointer.parent / "shards", 1 << 30)
    if os.path.isdir(what):
        folder = Path(what)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        step = max(1, len(names) // (2 * WORKERS))
        parts = [names[start : start + step] for start in range(0, len(names), step)]
        work: Callable[..., list[Shard]] = partial(send, store=store, folder=folder)
    else:
        number, size = map(int, what.split("x"))
        step = max(1, min(200, number // (8 * WORKERS)))
        parts = [range(start, min(start + step, number)) for start in range(0, number, step)]  # type: ignore[misc]
        work = partial(generate, store=store, size=size)
    with get_context("spawn").Pool(WORKERS) as pool:
        written = pool.imap_unordered(work, parts)
        store.missing([])  # opens the driver's own connection while the workers write
        sealed = datasets.seal(store, (shard for part in written for shard in part))
    out = {"md5": sealed.md5, "size": sealed.size, "nfiles": sealed.nfiles, "hash": "md5", "path": "data"}
    write_json_atomic(pointer, {"outs": [out]})
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def ours(url: str, what: str | Path, pointer: Path) -> float:
    """Runs `drive` as a command; the driver's peak memory in MB."""
    command = [sys.executable, "-m", __spec__.name if __spec__ else "benchmarks.data_writing", "--drive"]
    done = subprocess.run([*command, url, str(what), str(pointer)], check=True, capture_output=True, text=True)
    return float(done.stdout)


# ------------------------------------------------------------------------------------------------------------- theirs


def dvc(project: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments, "-q"], cwd=project, check=True)


def new_project(project: Path, url: str) -> None:
    project.mkdir()
    dvc(project, "init", "--no-scm")
    dvc(project, "remote", "add", "-d", "store", url)


def theirs(project: Path) -> None:
    dvc(project, "add", "data")
    dvc(project, "push")


# -------------------------------------------------------------------------------------------------------------- places


@contextmanager
def moto() -> Iterator[Callable[[], str]]:
    """Makes a new bucket on a server of its own; DVC and boto3 find it by `AWS_*`."""
    server = subprocess.Popen([sys.executable, "-c", _MOTO], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    import boto3

    client, made = boto3.client("s3"), iter(range(1_000_000))

    def bucket() -> str:
        name = f"bucket-{next(made)}"
        client.create_bucket(Bucket=name)
        return f"s3://{name}"

    try:
        yield bucket
    finally:
        server.kill()
        server.wait()


@contextmanager
def folders(root: Path) -> Iterator[Callable[[], str]]:
    made = iter(range(1_000_000))
    yield lambda: str(root / f"remote-{next(made)}")


def empty(url: str) -> None:
    """Gives the room back."""
    if url.startswith("s3://"):
        import boto3

        boto3.resource("s3").Bucket(url.removeprefix("s3://")).objects.delete()
    else:
        shutil.rmtree(url, ignore_errors=True)


def need(root: Path, gigabytes: float, what: str) -> None:
    free = shutil.disk_usage(root).free / 2**30
    print(f"{what}: writes {gigabytes:.1f} GB, {free:.0f} GB of {root} are free", file=sys.stderr, flush=True)
    if gigabytes > 0.9 * free:
        sys.exit(
            f"{what} needs {gigabytes:.0f} GB; only {free:.0f} GB of {root} are free (TMPDIR=... takes another disk)"
        )


# ------------------------------------------------------------------------------------------------------------ measures


def memory(root: Path, place: Callable[[], str], rows: list[tuple[str, int, int]]) -> None:
    """Prints the driver's peak memory for each (label, shards, bytes of a shard), and the growth since the first."""
    first = None
    for label, number, size in rows:
        need(root, number * max(size, 4096) / 2**30, label)
        url = place()
        started = time.perf_counter()
        peak = ours(url, f"{number}x{size}", root / "pointer.dvc")
        seconds = time.perf_counter() - started
        first = first or peak
        print(
            f"{label:<16} {number:>8,} shards   driver {peak:6.0f} MB  {peak - first:+6.1f} MB ({peak / first:.2f}x)   "
            f"{number * size / 2**20 / seconds:6.0f} MB/s"
        )
        empty(url)


def throughput(root: Path, place: Callable[[], str], gigabytes: float, repeats: int) -> None:
    need(root, 4 * gigabytes, "comparison")  # the folder, DVC's cache, one remote each
    number = max(1, round(gigabytes * 2**30 / LARGE))
    spans: dict[str, list[float]] = {"ours": [], "dvc": []}
    for repeat in range(repeats):
        theirs_url, ours_url = place(), place()
        project = root / f"project-{repeat}"
        new_project(project, theirs_url)
        (project / "data").mkdir()
        for n in range(number):
            (project / "data" / f"part-{n:06d}.bin").write_bytes(os.urandom(LARGE))
        turns: list[tuple[str, Callable[[], object]]] = [
            ("ours", partial(ours, ours_url, project / "data", root / "pointer.dvc")),
            ("dvc", partial(theirs, project)),
        ]
        for name, run in turns[:: 1 if repeat % 2 else -1]:
            os.sync()
            started = time.perf_counter()
            run()
            spans[name].append(time.perf_counter() - started)
        sealed = json.loads((root / "pointer.dvc").read_text())["outs"][0]["md5"]
        assert sealed in (project / "data.dvc").read_text(), "both must have written the same data set"
        shutil.rmtree(project)
        empty(theirs_url)
        empty(ours_url)
    rates = {name: number * LARGE / 2**20 / statistics.median(took) for name, took in spans.items()}
    ratios = sorted(theirs / own for own, theirs in zip(spans["ours"], spans["dvc"], strict=True))
    print(
        f"{gigabytes:g} GB in {number} files   ours {rates['ours']:6.0f} MB/s   dvc add + push {rates['dvc']:6.0f} MB/s   "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[1, 10])
    parser.add_argument("--objects", type=int, nargs="*", default=[100, 100_000])
    parser.add_argument("--compare", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drive:
        drive(asked.drive[0], asked.drive[1], Path(asked.drive[2]))
        return
    with tempfile.TemporaryDirectory(prefix="tessera-writing-") as folder:
        root = Path(folder)
        for variable in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
            os.environ[variable] = str(root / variable)
        os.environ["DVC_NO_ANALYTICS"] = "1"
        with moto() if asked.s3 else folders(root) as place:
            print(f"to {'S3 (moto on loopback)' if asked.s3 else 'a folder'}, {WORKERS} worker processes")
            memory(root, place, [(f"{g:g} GB", max(1, round(g * 2**30 / LARGE)), LARGE) for g in asked.gigabytes])
            memory(root, place, [(f"{n:,} objects", n, SMALL) for n in asked.objects])
            if asked.compare and asked.repeats:
                throughput(root, place, asked.compare, asked.repeats)


if __name__ == "__main__":
    main()
