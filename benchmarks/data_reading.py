"""Reading for training: pictures against the `webdataset` package, tokens against numpy.memmap.

    python -m benchmarks.data_reading images [--pictures 3000] [--repeats 7]
    python -m benchmarks.data_reading tokens

Pictures: shuffled batches of 64, float in [-1, 1], from a data set through `ImageStream` and `Prefetch`, and from tars with
the same JPEG files through webdataset's shuffle buffer and loader; both decode with `components.data.images.decode`, in as
many processes. webdataset is timed twice: with batches finished by its workers, and with its workers sending bytes that
are made floats here; the better one counts. The same stream with threads instead of processes stands beside them.
Tokens: the same shuffled batches as rows of memory maps, with the rows known beforehand.
The readers of a repeat take turns; what each has made ahead is taken before its clock starts. Ratios are medians of the
ratios in a repeat.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.own_pictures import photographs
from components.data.batches import to_float
from components.data.files import Folder
from components.data.image_stream import ImageStream
from components.data.images import decode
from components.data.prefetch import Prefetch
from components.data.shards import describe
from components.data.stream import StreamBatches
from components.data.token_stream import TokenStream
from components.data.writing import Job, Layout, Whole, write_part
from components.interfaces import ImageFormat, Part, Sample, Source

BATCH, DEPTH = 64, 4
Take = Callable[[], Any]  # the next batch of a reader


class Crops(Source):
    """JPEG crops of the bundled photographs, `side` pixels wide and high, 500 a part."""

    def __init__(self, *, side: int, pictures: int) -> None:
        self.side, self.pictures = side, pictures

    def parts(self) -> Sequence[Part]:
        return [Part((), first, min(first + 500, self.pictures)) for first in range(0, self.pictures, 500)]

    def read(self, part: Part) -> Iterator[Sample]:
        rng, photos = random.Random(part.start), [photo for photo in photographs() if min(photo.size) > self.side]
        for number in range(part.start, part.stop or self.pictures):
            photo = rng.choice(photos)
            x, y = (rng.randint(0, length - self.side) for length in photo.size)
            buffer = io.BytesIO()
            photo.crop((x, y, x + self.side, y + self.side)).save(buffer, "JPEG", quality=90)
            yield Sample(f"{number:06d}", buffer.getvalue(), label=str(number % 10))


def write(folder: Path, side: int, pictures: int) -> None:
    """The data set in `folder/ours`, the same pictures in `folder/tars`."""
    import json

    import webdataset

    spec = {"type": "benchmarks.data_reading:Crops", "side": side, "pictures": pictures}
    source, layout, sink = Crops(side=side, pictures=pictures), Layout(("image",), 0.0, False), Folder(folder / "ours")
    jobs = [Job(number, "source", spec, part) for number, part in enumerate(source.parts())]
    whole = Whole([write_part(job, layout, sink) for job in jobs])
    sink.put("dataset.json", json.dumps(whole.summary(layout, ImageFormat(side, 3))).encode())
    (folder / "tars").mkdir()
    for number, part in enumerate(source.parts()):
        with webdataset.TarWriter(str(folder / "tars" / f"{number:04d}.tar")) as tar:
            for sample in source.read(part):
                tar.write({"__key__": sample.key, "jpg": sample.image, "cls": sample.label})


# -------------------------------------------------------------------------------------------------------- pictures


def ours(folder: Path, workers: int) -> Take:
    batches = Prefetch(_batches(folder), depth=DEPTH * workers, workers=workers)
    steps = count()
    return lambda: batches.batch(next(steps))


def threads(folder: Path, workers: int) -> Take:
    """The stream with threads instead of processes."""
    batches, pool, steps = _batches(folder), ThreadPoolExecutor(workers), count()
    waiting = [pool.submit(batches.batch, next(steps)) for _ in range(DEPTH * workers)]

    def take() -> dict[str, Tensor]:
        waiting.append(pool.submit(batches.batch, next(steps)))
        return waiting.pop(0).result()

    return take


def _batches(folder: Path) -> StreamBatches[Any]:
    files = Folder(folder / "ours")
    about = describe(files)
    return StreamBatches(
        ImageStream(files, about, seed=0, window=about["splits"]["train"]["bytes"] // 3), BATCH, seed=0
    )


def webdataset_reader(folder: Path, workers: int, finished: bool, image: ImageFormat) -> Take:
    import webdataset

    tars = sorted(str(path) for path in (folder / "tars").iterdir())
    batched = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000)
    batched = batched.map(partial(_decoded, image=image)).batched(BATCH, collation_fn=_stacked)
    if finished:
        batched = batched.map(_floats)
    loader = iter(webdataset.WebLoader(batched.repeat(), batch_size=None, num_workers=workers, prefetch_factor=DEPTH))
    return lambda: next(loader) if finished else _floats(next(loader))


def _decoded(sample: dict[str, Any], image: ImageFormat) -> tuple[np.ndarray, int]:
    return decode(sample["jpg"], image), int(sample["cls"])


def _stacked(samples: Sequence[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([pixels for pixels, _ in samples])), torch.tensor([label for _, label in samples])


def _floats(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"images": to_float(batch[0]), "labels": batch[1]}


def images(pictures: int, repeats: int, seconds: float) -> None:
    for side in (64, 256):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, side, pictures)
            image = ImageFormat(side, 3)
            ours_alone: list[float] = []  # with one worker
            for workers in (1, 2):
                readers = {
                    "ours": ours(folder, workers),
                    "webdataset": webdataset_reader(folder, workers, True, image),
                    "webdataset, bytes": webdataset_reader(folder, workers, False, image),
                    "ours in threads": threads(folder, workers),
                }
                speeds = timed(readers, repeats, seconds, 2 * DEPTH * workers, BATCH)
                best = [max(pair) for pair in zip(speeds["webdataset"], speeds["webdataset, bytes"], strict=True)]
                print(f"{side} px, {workers} worker{'s' * (workers > 1)}: pictures/s")
                report(speeds, best, "webdataset")
                ours_alone = ours_alone or speeds["ours"]
            training(folder, side, 1.5 * BATCH / statistics.median(ours_alone), repeats)


def training(folder: Path, side: int, seconds: float, repeats: int) -> None:
    """How long a step takes whose device computes for `seconds` (this process sleeps), with one worker."""
    direct, steps = _batches(folder), count()
    readers: dict[str, Take] = {
        "ours": ours(folder, 1),
        "ours in threads": threads(folder, 1),
        "ours without prefetching": lambda: direct.batch(next(steps)),
    }
    found: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats):
        for name, take in readers.items():
            for number in range(5 * DEPTH):
                if number == 2 * DEPTH:
                    started = time.perf_counter()
                take()
                time.sleep(seconds)
            found[name].append((time.perf_counter() - started) / (3 * DEPTH))
    print(f"{side} px: a step that computes for {1000 * seconds:.1f} ms, 1 worker: ms a step")
    for name, each in found.items():
        taken = statistics.median(each)
        print(f"  {name:<34} {1000 * taken:>14,.1f}   waits {100 * (1 - seconds / taken):.0f}% of the time", flush=True)


# ---------------------------------------------------------------------------------------------------------- tokens


def tokens(repeats: int, seconds: float) -> None:
    for batch, length in ((64, 256), (64, 1024), (256, 1024)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shards, rows = 8, (256 << 20) // 8 // (2 * length)
            rng = np.random.default_rng(0)
            (folder / "train").mkdir()
            for shard in range(shards):
                values = rng.integers(0, 50_000, (rows, length), dtype=np.uint16)
                np.save(folder / f"train/part-{shard:05d}-000.tokens.npy", values)
                np.save(folder / f"train/part-{shard:05d}-000.labels.npy", np.zeros(rows, np.int64))
            paths = sorted((folder / "train").glob("*.tokens.npy"))
            np.save(folder / "one.npy", np.concatenate([np.load(path) for path in paths]))
            stream = TokenStream(Folder(folder), seed=0, window=64 << 20)
            runs = stream.order.where(0, stream.length // batch * batch)
            which, row = (np.concatenate([getattr(run, name) for run in runs]) for name in ("shards", "rows"))
            maps, one = [np.load(path, mmap_mode="r") for path in paths], np.load(folder / "one.npy", mmap_mode="r")
            ours = StreamBatches(stream, batch, seed=0).batch
            raw: dict[str, Callable[[int], Tensor]] = {
                "memmaps, row by row": partial(_row_by_row, maps, which, row, batch),
                "memmaps, file by file": partial(_file_by_file, maps, which, row, batch),
                "one memmap of everything": partial(_at_once, one, which * rows + row, batch),
            }
            if not all(torch.equal(ours(step)["tokens"], read(step)) for step in (0, 1, 99) for read in raw.values()):
                raise SystemExit("the readers do not give the same batches")
            readers = {name: _over_and_over(read, len(row) // batch) for name, read in {"ours": ours, **raw}.items()}
            print(f"batches of {batch} x {length} tokens, uint16 on disk: tokens/s")
            speeds = timed(readers, repeats, seconds, 1, batch * length)
            print(f"  {'ours':<34} {statistics.median(speeds['ours']):>14,.0f}")
            for name in raw:
                ratio = statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name], strict=True))
                print(
                    f"  {name:<34} {statistics.median(speeds[name]):>14,.0f}   ours is {ratio:5.2f} of it", flush=True
                )


def _row_by_row(maps: list[np.ndarray], which: np.ndarray, rows: np.ndarray, batch: int, step: int) -> Tensor:
    mine = slice(step * batch, (step + 1) * batch)
    found = [maps[shard][row] for shard, row in zip(which[mine].tolist(), rows[mine].tolist(), strict=True)]
    return torch.from_numpy(np.stack(found).astype(np.int64))


def _file_by_file(maps: list[np.ndarray], which: np.ndarray, rows: np.ndarray, batch: int, step: int) -> Tensor:
    mine = slice(step * batch, (step + 1) * batch)
    found = np.empty((batch, maps[0].shape[1]), np.int64)
    for shard in np.unique(which[mine]).tolist():
        own = np.flatnonzero(which[mine] == shard)
        found[own] = maps[shard][rows[mine][own]]
    return torch.from_numpy(found)


def _at_once(one: np.ndarray, places: np.ndarray, batch: int, step: int) -> Tensor:
    return torch.from_numpy(one[places[step * batch : (step + 1) * batch]].astype(np.int64))


def _over_and_over(read: Callable[[int], Any], steps: int) -> Take:
    """The batches of one epoch, again and again."""
    numbers = count()
    return lambda: read(next(numbers) % steps)


# ------------------------------------------------------------------------------------------------------------ both


def timed(readers: dict[str, Take], repeats: int, seconds: float, ahead: int, size: int) -> dict[str, list[float]]:
    """Samples a second of each reader in each repeat; `ahead` batches, which it may have made before, are not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats):
        for name, take in readers.items():
            for _ in range(ahead):
                take()
            done, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                take()
                done += 1
            speeds[name].append(done * size / (time.perf_counter() - started))
    return speeds


def report(speeds: dict[str, list[float]], base: list[float], against: str) -> None:
    for name, found in speeds.items():
        ratio = statistics.median(mine / other for mine, other in zip(found, base, strict=True))
        print(f"  {name:<34} {statistics.median(found):>14,.0f}   {ratio:5.2f} of {against}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["images", "tokens", "both"], nargs="?", default="both")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each reader in each repeat")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what != "tokens":
        images(asked.pictures, asked.repeats, asked.seconds)
    if asked.what != "images":
        tokens(asked.repeats, asked.seconds)


if __name__ == "__main__":
    main()
