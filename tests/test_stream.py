"""Streams: every row once an epoch, any step at any time and the same for ever, exact proportions, bounded memory."""

from __future__ import annotations

import gc
import io
import itertools
import json
import multiprocessing
import pickle
import subprocess
import sys
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from components.data import shards
from components.data.batches import ImageBatches, to_float
from components.data.files import Folder
from components.data.image_stream import ImageStream
from components.data.image_stream import rows_of as shard_rows
from components.data.order import Proportions, Shuffle, parts_by_weight
from components.data.packing import PackedTokens
from components.data.prefetch import Prefetch
from components.data.shards import DataError
from components.data.stream import Mixed, StreamBatches
from components.data.token_stream import TokenStream, mapped
from components.data.token_stream import rows_of as token_rows
from components.data.transforms.random_affine import RandomAffine
from components.data.windows import KEPT, Windows
from components.data.writing import Job, Layout, Whole, write_part
from components.interfaces import ImageFormat, Part, Sample, Silent, Source, Trainable
from components.training.config import Train
from components.training.trainer import train

UNHURRIED = settings(deadline=None, max_examples=60)
COUNTS = st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any)


def same(a, b) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def rows_of(runs) -> list[tuple[int, int]]:
    return [(int(s), int(r)) for run in runs for s, r in zip(run.shards, run.rows, strict=True)]


# ----------------------------------------------------------------------------------------------------------- order


@UNHURRIED
@given(COUNTS, st.integers(1, 12), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(counts, window, seed):
    order = Shuffle(counts, seed, window=window)
    everything = sorted((shard, row) for shard, count in enumerate(counts) for row in range(count))
    for epoch in range(3):
        assert sorted(rows_of(order.where(epoch * order.length, (epoch + 1) * order.length))) == everything


@UNHURRIED
@given(COUNTS, st.integers(1, 12), st.integers(0, 40), st.integers(0, 25))
def test_a_position_is_the_same_row_however_it_is_asked_for(counts, window, start, count):
    sequential = rows_of(Shuffle(counts, 5, window=window).where(0, start + count))
    assert rows_of(Shuffle(counts, 5, window=window).where(start, start + count)) == sequential[start:]
    fresh = Shuffle(counts, 5, window=window)
    assert [rows_of(fresh.where(p, p + 1))[0] for p in reversed(range(start + count))] == sequential[::-1]


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 30)), min_size=1).filter(lambda s: any(r for r, _ in s)))
def test_a_window_holds_what_it_may_or_one_shard(shards_):
    rows, sizes = zip(*shards_, strict=True)
    order = Shuffle(rows, 0, window=40, sizes=sizes)
    windows = order.windows(1)
    assert all(len(window) == 1 or sum(sizes[shard] for shard in window) <= 40 for window in windows)
    assert sorted(itertools.chain(*windows)) == [shard for shard, count in enumerate(rows) if count]
    # as few as the order of the shards allows: no window could take the first shard of the next one
    first_fits = [sum(sizes[s] for s in a) + min(sizes[s] for s in b) <= 40 for a, b in itertools.pairwise(windows)]
    assert len(windows) <= 1 + len(first_fits)


def test_rows_of_a_window_are_shuffled_together_and_places_count_through_it():
    order = Shuffle([50, 50, 50, 50], 0, window=100)
    for run in order.where(0, 200):
        halves = [set(run.shards[i : i + 25].tolist()) for i in range(0, 100, 25)]
        assert all(len(half) == 2 for half in halves)
        members = order.windows(0)[run.window].tolist()
        assert [members.index(s) * 50 + r for s, r in zip(run.shards, run.rows, strict=True)] == run.places.tolist()


def test_epochs_and_seeds_differ():
    first, second = (Shuffle([20, 20], 0, window=40).where(e * 40, e * 40 + 40) for e in (0, 1))
    other = Shuffle([20, 20], 1, window=40).where(0, 40)
    assert len({tuple(rows_of(runs)) for runs in (first, second, other)}) == 3


def test_the_order_is_the_one_of_every_earlier_version():
    """A run that began with another version of the code or of NumPy must go on with the same data."""
    order = Shuffle([3, 2, 4, 1], 7, window=5)
    first = [(2, 3), (2, 2), (2, 1), (2, 0), (3, 0), (0, 2), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert rows_of(order.where(0, 12)) == [*first, (0, 2), (0, 1)]
    parts, _ = Proportions([0.5, 0.3, 0.2], 7, block=10).where(8, 22)
    assert parts.tolist() == [0, 1, 0, 1, 2, 0, 1, 1, 0, 0, 2, 0, 0, 0]


def test_shards_without_rows():
    with pytest.raises(ValueError, match="nothing to read"):
        Shuffle([0, 0], 0, window=5)


# ----------------------------------------------------------------------------------------------------- proportions

WEIGHTS = st.lists(st.floats(0, 1).filter(lambda w: w == 0 or w > 1e-6), min_size=1, max_size=6).filter(any)


@UNHURRIED
@given(WEIGHTS, st.integers(6, 50))
def test_quotas_are_the_largest_remainders(weights, block):
    share = np.array(weights) / sum(weights)
    quotas = Proportions(weights, 0, block=block).quotas
    assert quotas.sum() == block
    assert ((quotas > 0) == (share > 0)).all()
    if (share * block >= 1)[share > 0].all():  # no part had to be given its one place
        assert (np.abs(quotas - share * block) < 1).all()
        missing = share * block - quotas  # the rounded up miss nothing, and had the largest remainders
        up, down = missing[missing < 0], missing[missing >= 0]
        assert not len(up) or not len(down) or up.min() + 1 >= down.max() - 1e-9


@UNHURRIED
@given(WEIGHTS, st.integers(6, 20), st.integers(0, 70), st.integers(0, 70))
def test_counts_are_exact_over_blocks_and_places_follow_each_other(weights, block, start, count):
    order = Proportions(weights, 3, block=block)
    assert (order.counts(4 * block) == 4 * order.quotas).all()
    parts, places = order.where(start, start + count)
    everything, _ = order.where(0, start + count)
    assert (parts == everything[start:]).all()
    for part in range(len(weights)):
        before = int((everything[:start] == part).sum())
        assert order.counts(start)[part] == before
        assert places[parts == part].tolist() == list(range(before, before + int((parts == part).sum())))
    for position in range(3 * block):
        assert (np.abs(order.counts(position) - order.quotas * (position / block)) <= order.quotas).all()


def test_a_part_with_little_weight_is_not_lost():
    assert Proportions([1 - 1e-9, 1e-9, 0], 0, block=8).quotas.tolist() == [7, 1, 0]


@pytest.mark.parametrize(
    ("weights", "message"), [([0, 0], "not all zero"), ([1, -1], "not negative"), ([1] * 5, "4 places")]
)
def test_weights_that_make_no_proportions(weights, message):
    with pytest.raises(ValueError, match=message):
        Proportions(weights, 0, block=4)


# --------------------------------------------------------------------------------------------------------- windows


class Loaded:
    pass


def test_windows_in_use_are_all_that_is_in_memory_and_each_shard_is_loaded_once_an_epoch():
    order = Shuffle([10] * 24, 0, window=40)
    alive: weakref.WeakSet[Loaded] = weakref.WeakSet()
    loads: Counter[int] = Counter()

    def load(shard: int) -> Loaded:
        loads[shard] += 1
        made = Loaded()
        alive.add(made)
        return made

    windows, most = Windows(order, load), 0
    for run in order.where(0, 3 * order.length):
        for _ in range(3):
            found = windows.of(run.epoch, run.window)
            assert set(found) == set(run.shards.tolist())
        most = max(most, len(windows.held()), len(alive))
    assert most == KEPT * 4
    assert set(loads) == set(range(24)) and max(loads.values()) <= 4  # three epochs, and one read ahead


def test_the_next_window_is_loaded_ahead():
    order, loads = Shuffle([1] * 6, 0, window=2), []
    windows = Windows(order, loads.append)
    windows.of(0, 0)
    deadline = time.monotonic() + 10
    while len(loads) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(loads) == sorted(itertools.chain(*order.windows(0)[:2]))


@pytest.mark.timeout(60)
def test_a_forked_process_that_reads_by_itself_does_not_wait_for_threads_of_its_parent(data):
    class Own:
        def __init__(self) -> None:
            self.plain = StreamBatches(images(data, window=1), 6, 0)

        def batch(self, step):
            return self.plain.batch(step)

    own = Own()
    expected = [own.batch(step) for step in range(9)]  # its threads are running now
    with Prefetch(own, workers=1) as batches:
        assert all(same(batches.batch(step), expected[step]) for step in range(9))


def test_what_failed_ahead_of_its_use_is_tried_again():
    order = Shuffle([1, 1], 0, window=1)
    failing = {int(order.windows(0)[1][0])}

    def load(shard: int) -> int:
        if shard in failing:
            raise OSError("the store does not answer")
        return shard

    windows = Windows(order, load)
    windows.of(0, 0)
    with pytest.raises(OSError, match="does not answer"):
        windows.of(0, 1)
    failing.clear()
    assert list(windows.of(0, 1)) == order.windows(0)[1].tolist()


# -------------------------------------------------------------------------------------------------------- pictures

SIZE, PICTURES = 8, 60


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


class Numbered(Source):
    """Pictures that are labelled with their number, ten a part."""

    def __init__(self, *, pictures: int = PICTURES) -> None:
        self.pictures = pictures

    def parts(self):
        return [Part((), n, n + 10) for n in range(0, self.pictures, 10)]

    def read(self, part):
        for number in range(part.start, part.stop):
            buffer = io.BytesIO()
            Image.fromarray(pixels(number)).save(buffer, "PNG")
            yield Sample(f"{number}", buffer.getvalue(), label=f"{number:04d}")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Folder:
    sink, layout = Folder(tmp_path_factory.mktemp("data")), Layout(("image",), 0.1, False)
    spec = {"type": "tests.test_stream:Numbered"}
    whole = Whole([write_part(Job(n, "source", spec, p), layout, sink) for n, p in enumerate(Numbered().parts())])
    sink.put("dataset.json", json.dumps(whole.summary(layout, ImageFormat(SIZE, 1))).encode())
    return sink


def images(data: Folder, **more) -> ImageStream:
    return ImageStream(data, shards.describe(data), **{"seed": 0, "window": 4000, **more})


def test_every_picture_comes_once_an_epoch_as_it_is(data):
    stream, split = images(data), shards.load_split(data, "train")
    assert stream.length == len(split.labels) and len(stream.order.windows(0)) >= 3
    for epoch in range(2):
        taken = stream.take(epoch * stream.length, (epoch + 1) * stream.length)
        order = taken["labels"].argsort()
        assert np.array_equal(taken["labels"][order], np.sort(split.labels))
        assert np.array_equal(taken["images"][order].numpy(), split.images[split.labels.argsort()])


def test_a_batch_is_a_function_of_seed_and_step_alone(data):
    def make(seed=0):
        return StreamBatches(images(data, seed=seed), 7, seed, [RandomAffine()])

    first = make()
    expected = {step: first.batch(step) for step in range(30)}  # nearly four epochs
    torch.manual_seed(99)
    assert all(same(make().batch(step), expected[step]) for step in (29, 3, 0))
    again = make()
    assert all(same(again.batch(step), expected[step]) for step in (11, 29, 12, 0, 28))
    assert same(pickle.loads(pickle.dumps(again)).batch(17), expected[17])
    assert not same(make(1).batch(0), expected[0])
    batch = expected[0]["images"]
    assert batch.shape == (7, 1, SIZE, SIZE) and batch.dtype == torch.float32 and batch.abs().max() <= 1


def test_images_become_the_floats_that_they_are_in_memory(data):
    stream = images(data)
    batch = StreamBatches(stream, 5, 0).batch(2)
    assert torch.equal(batch["images"], to_float(stream.take(10, 15)["images"]))
    assert batch["labels"].dtype == torch.int64


@pytest.mark.parametrize("world", [2, 3])
def test_each_rank_makes_its_own_part_of_the_same_batch(data, world):
    whole = StreamBatches(images(data), 12, 0, [RandomAffine()])
    for rank in range(world):
        part = StreamBatches(images(data), 12, 0, [RandomAffine()], rank=rank, world=world)
        for step in (0, 5):
            mine = slice(rank * 12 // world, (rank + 1) * 12 // world)
            assert len(part.read(step).pictures) == 12 // world
            assert same(
                {k: v[mine] for k, v in part.batch(step).items()}, {k: v[mine] for k, v in whole.batch(step).items()}
            )
    with pytest.raises(ValueError, match="can't be split evenly"):
        StreamBatches(images(data), 10, 0, rank=0, world=4)


def test_memory_is_bounded_by_the_windows(data):
    stream = images(data, window=1400)
    sizes = stream.order.sizes
    batches, most = StreamBatches(stream, 4, 0), 0
    for step in range(3 * stream.length // 4):
        batches.batch(step)
        most = max(most, int(sizes[stream.windows.held()].sum()))
    assert 0 < most <= KEPT * 1400 < sizes.sum()


def test_a_stream_over_some_rows_only(data):
    names = shards.shard_names(data, "train")
    rows = {names[0]: np.array([1, 3]), names[2]: np.array([0])}
    stream = images(data, rows=rows)
    expected = [
        label
        for name, own in rows.items()
        for label in (row["label"] for i, row in enumerate(shards.rows(_only(data, name), "train")) if i in own)
    ]
    classes = shards.describe(data)["classes"]
    assert stream.length == 3
    assert sorted(classes[i] for i in stream.take(0, 3)["labels"]) == sorted(expected)
    held = {shard: len(stream.windows.load(shard).labels) for shard in range(2)}
    assert held == {0: 2, 1: 1}


class _only:
    def __init__(self, data: Folder, name: str) -> None:
        self.data, self.name = data, name

    def names(self):
        return [self.name]

    def path(self, name):
        return self.data.path(name)


class Spoilt(Folder):
    """A shard in which one picture is none."""

    def path(self, name):
        path = super().path(name)
        if name != "train/part-00001-000.parquet":
            return path
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        rows[4]["image"]["bytes"] = b"no picture"
        spoilt = self.root.parent / "spoilt.parquet"
        spoilt.write_bytes(shards.encoded(rows, shards.schema(("image",))))
        return spoilt


def test_a_picture_that_cannot_be_decoded_is_named(data):
    stream = images(Spoilt(data.root))
    with pytest.raises(DataError, match=r"row 4 of train/part-00001-000\.parquet cannot be decoded"):
        stream.take(0, stream.length)
    some = images(Spoilt(data.root), rows={"train/part-00001-000.parquet": np.array([2, 4])})
    with pytest.raises(DataError, match=r"row 4 of train/part-00001-000\.parquet cannot be decoded"):
        some.take(0, 2)


def test_data_without_pictures(data):
    with pytest.raises(DataError, match="expected a data set of pictures, got one of text"):
        ImageStream(data, {"image": None, "modalities": ["text"]}, seed=0)


# ---------------------------------------------------------------------------------------------------------- tokens


def token_files(folder: Path, counts=(0, 7, 0, 5, 11), length: int = 3) -> Folder:
    (folder / "train").mkdir()
    number = itertools.count()
    for shard, count in enumerate(counts):
        rows = np.array([[next(number)] * length for _ in range(count)], dtype=np.uint16).reshape(count, length)
        np.save(folder / f"train/part-{shard:05d}-000.tokens.npy", rows)
        np.save(folder / f"train/part-{shard:05d}-000.labels.npy", rows[:, 0].astype(np.int64) % 4)
    return Folder(folder)


@pytest.mark.parametrize("window", [1, 24, 60, 10_000])  # of bytes: pieces of a row, of four rows, files, everything
def test_every_row_of_tokens_comes_once_an_epoch_with_its_label(tmp_path, window):
    files = token_files(tmp_path)
    stream = TokenStream(files, seed=0, window=window)
    for epoch in range(3):
        taken = stream.take(epoch * 23, epoch * 23 + 23)
        assert sorted(taken["tokens"][:, 0].tolist()) == list(range(23))
        assert (taken["tokens"] == taken["tokens"][:, :1]).all()
        assert torch.equal(taken["labels"], taken["tokens"][:, 0] % 4)
        assert taken["tokens"].dtype == taken["labels"].dtype == torch.int64


@pytest.mark.parametrize("window", [1, 24, 60, 10_000])
def test_of_tokens_only_the_wanted_rows_come_each_once_an_epoch(tmp_path, window):
    files = token_files(tmp_path)  # numbered through all files: 0-6, 7-11, 12-22
    counted = token_rows(files, "train")
    assert list(counted.values()) == [0, 7, 0, 5, 11]
    weights = np.array([number % 3 for number in range(23)], dtype=np.float64)
    for weight, (share, rows) in zip((1, 2), parts_by_weight(counted, weights), strict=True):
        stream = TokenStream(files, seed=0, window=window, rows=rows)
        expected = [number for number in range(23) if number % 3 == weight]
        assert stream.length == len(expected)
        assert share == weight * len(expected)
        for epoch in range(3):
            taken = stream.take(epoch * len(expected), (epoch + 1) * len(expected))
            assert sorted(taken["tokens"][:, 0].tolist()) == expected
            assert torch.equal(taken["labels"], taken["tokens"][:, 0] % 4)


def test_batches_of_tokens_depend_on_the_step_alone(tmp_path):
    files = token_files(tmp_path)
    first = StreamBatches(TokenStream(files, seed=0, window=60), 5, 0)
    expected = [first.batch(step) for step in range(12)]
    again = StreamBatches(TokenStream(files, seed=0, window=60), 5, 0)
    assert all(same(again.batch(step), expected[step]) for step in (11, 0, 7, 3))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.dtype(">i8"), np.bool_])
def test_arrays_of_any_integers_are_mapped_as_numpy_loads_them(tmp_path, kind):
    for array in (np.arange(12).astype(kind).reshape(4, 3), np.arange(5).astype(kind), np.empty((0, 3), kind)):
        np.save(tmp_path / "x.npy", array)
        found = mapped(tmp_path / "x.npy", 1, 3)
        assert found.dtype == array.dtype and np.array_equal(found, array[1:3])


@pytest.mark.parametrize("content", [b"", b"no array", np.array([None, "object"])])
def test_a_file_that_is_no_array_of_numbers(tmp_path, content):
    path = tmp_path / "x.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(DataError, match="is not an array of numbers"):
        mapped(path)


def test_token_files_are_not_opened_before_their_turn(tmp_path):
    token_files(tmp_path, counts=(4,) * 10)
    opened = []

    class Counting(Folder):
        def path(self, name):
            opened.append(name)
            return super().path(name)

    stream = TokenStream(Counting(tmp_path), seed=0, window=24)
    stream.take(0, 2)
    assert len({name for name in opened if name.endswith(".tokens.npy")}) <= 3


def test_no_tokens(tmp_path):
    with pytest.raises(DataError, match=r"no train/\*\.labels\.npy"):
        TokenStream(Folder(tmp_path), seed=0)
    with pytest.raises(DataError, match=r"no train/\*\.lengths\.npy"):
        PackedTokens(Folder(tmp_path), size=4, seed=0)


# --------------------------------------------------------------------------------------------------------- packing


def documents(folder: Path, shards_: list[list[int]]) -> dict[int, list[int]]:
    """Writes documents of these lengths; each token tells its document and its place: document * 100 + place."""
    (folder / "train").mkdir(exist_ok=True)
    found, number = {}, itertools.count(1)
    for shard, lengths in enumerate(shards_):
        own = [[d * 100 + place for place in range(n)] for n in lengths if (d := next(number))]
        found |= {tokens[0] // 100: tokens for tokens in own if tokens}
        np.save(folder / f"train/part-{shard}.tokens.npy", np.array([*itertools.chain(*own)], dtype=np.uint16))
        np.save(folder / f"train/part-{shard}.lengths.npy", np.array(lengths, dtype=np.int64))
    return found


LENGTHS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=4).filter(
    lambda s: any(itertools.chain(*s))
)


@UNHURRIED
@given(LENGTHS, st.integers(1, 12), st.integers(1, 30))
def test_packing_loses_no_token_and_keeps_boundaries(tmp_path_factory, lengths, size, window):
    folder = tmp_path_factory.mktemp("documents")
    expected = documents(folder, lengths)
    stream = PackedTokens(Folder(folder), size=size, seed=0, window=window, pad=65535)
    total = sum(map(sum, lengths))
    assert stream.tokens == total and stream.length == -(-total // size)
    for epoch in range(2):
        taken = stream.take(epoch * stream.length, (epoch + 1) * stream.length)
        tokens, segments = taken["tokens"].numpy(), taken["segments"].numpy()
        assert np.array_equal(segments > 0, tokens != 65535)
        assert (segments == 0).mean() == pytest.approx(stream.padding)
        assert not (segments[:-1] == 0).any()  # only the last sequence is padded
        flat, parts = tokens[segments > 0], segments[segments > 0]
        pieces: dict[int, list[int]] = {}
        for token in flat.tolist():
            pieces.setdefault(token // 100, []).append(token)
        assert pieces == expected  # each document whole, its tokens in order, and nothing else
        assert [next(group) for _, group in itertools.groupby(flat // 100)] == list(dict.fromkeys(flat // 100))
        for row, own in zip(tokens, segments, strict=True):  # one number a document, from 1 on
            inside = row[own > 0] // 100
            assert own[own > 0].tolist() == [list(dict.fromkeys(inside)).index(d) + 1 for d in inside]
        assert parts.size == total


@UNHURRIED
@given(LENGTHS, st.integers(1, 12), st.integers(0, 30), st.integers(1, 12))
def test_any_packed_sequence_can_be_had_at_any_time(tmp_path_factory, lengths, size, start, count):
    folder = tmp_path_factory.mktemp("documents")
    documents(folder, lengths)
    sequential = PackedTokens(Folder(folder), size=size, seed=1, window=9).take(0, start + count)
    at_once = PackedTokens(Folder(folder), size=size, seed=1, window=9).take(start, start + count)
    assert same(at_once, {name: tensor[start:] for name, tensor in sequential.items()})


def test_documents_come_in_another_order_each_epoch(tmp_path):
    documents(tmp_path, [[3] * 10, [3] * 10])
    stream = PackedTokens(Folder(tmp_path), size=6, seed=0)
    assert not torch.equal(stream.take(0, 10)["tokens"], stream.take(10, 20)["tokens"])
    assert stream.padding == 0
    assert same(pickle.loads(pickle.dumps(stream)).take(3, 5), stream.take(3, 5))


def test_lengths_that_do_not_fit_their_tokens(tmp_path):
    documents(tmp_path, [[3, 4]])
    np.save(tmp_path / "train/part-0.lengths.npy", np.array([3, 5]))
    with pytest.raises(DataError, match=r"part-0\.tokens\.npy has the shape \(7,\), but its lengths sum up to 8"):
        PackedTokens(Folder(tmp_path), size=4, seed=0).take(0, 1)


# ---------------------------------------------------------------------------------------------------------- mixed


def test_a_mixture_gives_exact_shares_and_every_part_goes_on_by_itself(data):
    names = shards.shard_names(data, "train")
    counts = {name: sum(1 for _ in shards.rows(_only(data, name), "train")) for name in names}
    parts = [images(data, rows={name: np.arange(counts[name]) for name in own}) for own in (names[:2], names[2:5])]
    mixed = Mixed(parts, [0.7, 0.3], seed=0, block=20)
    taken = StreamBatches(mixed, 10, 0)
    first = {int(i) for i in parts[0].take(0, parts[0].length)["labels"]}
    found = torch.cat([taken.batch(step)["labels"] for step in range(12)]).tolist()
    for block in range(6):
        assert sum(label in first for label in found[block * 20 : block * 20 + 20]) == 14
    for part, own in zip(parts, (True, False), strict=True):
        mine = [label for label in found if (label in first) is own]
        assert mine == part.take(0, len(mine))["labels"].tolist()
    again = StreamBatches(Mixed(parts, [0.7, 0.3], seed=0, block=20), 10, 0, [RandomAffine()])
    assert same(again.batch(11), StreamBatches(mixed, 10, 0, [RandomAffine()]).batch(11))


def test_rows_of_equal_weight_are_parts_that_are_drawn_as_often_as_it_says(data):
    split = shards.load_split(data, "train")
    weights = np.random.default_rng(0).choice([0.0, 0.5, 0.125], len(split.labels))
    weights /= weights.sum()
    parts = parts_by_weight(shard_rows(data, "train"), weights)
    assert sum(share for share, _ in parts) == pytest.approx(1)
    streams = [images(data, rows=rows) for _, rows in parts]
    for (share, _), stream, weight in zip(parts, streams, np.unique(weights)[1:], strict=True):
        mine = split.labels[weights == weight]
        assert sorted(stream.take(0, stream.length)["labels"].tolist()) == sorted(mine)
        assert share == pytest.approx(weight * len(mine))
    drawn = Counter(Mixed(streams, [share for share, _ in parts], 0, block=1000).take(0, 4000)["labels"].tolist())
    expected = dict(zip(split.labels.tolist(), 4000 * weights, strict=True))
    assert all(abs(drawn[label] - count) <= 5 for label, count in expected.items())  # a part's epochs are not over
    with pytest.raises(ValueError, match="a weight for each of the"):
        parts_by_weight(shard_rows(data, "train"), weights[1:])


def test_parts_of_a_mixture_must_be_alike(data, tmp_path):
    with pytest.raises(ValueError, match="one weight for each of 1 parts, got 2"):
        Mixed([images(data)], [0.5, 0.5], 0)
    mixed = Mixed([images(data), TokenStream(token_files(tmp_path), seed=0)], [0.5, 0.5], 0, block=4)
    with pytest.raises(ValueError, match="parts of a mixture differ"):
        mixed.take(0, 4)


# -------------------------------------------------------------------------------------------------------- prefetch

MORE_THAN_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@MORE_THAN_CORES
@pytest.mark.parametrize(("depth", "workers"), [(1, 1), (4, 2), (7, 3)])
def test_prefetched_batches_are_the_same_whatever_is_ahead(data, depth, workers):
    plain = StreamBatches(images(data), 6, 0, [RandomAffine()])
    with Prefetch(StreamBatches(images(data), 6, 0, [RandomAffine()]), depth=depth, workers=workers) as batches:
        for step in (0, 1, 2, 3, 20, 21, 22, 5, 5, 6):  # resumed later, gone back, asked for twice
            assert same(batches.batch(step), plain.batch(step))


def test_bytes_that_were_not_transformed_are_made_float_here(data):
    plain = StreamBatches(images(data), 6, 0)
    with Prefetch(StreamBatches(images(data), 6, 0), depth=3, workers=1) as batches:
        assert all(same(batches.batch(step), plain.batch(step)) for step in range(12))


def test_batches_in_memory_can_be_prefetched_too():
    pictures = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    plain = ImageBatches(pictures, np.arange(20), None, 4, 0, [RandomAffine()])
    with Prefetch(plain, workers=2) as batches:
        assert all(same(batches.batch(step), plain.batch(step)) for step in range(6))


@MORE_THAN_CORES
def test_what_is_stored_is_read_once_whatever_the_number_of_workers(data):
    stream = images(data, window=1400)
    loads: Counter[int] = Counter()
    load = stream.windows.load
    stream.windows.load = lambda shard: (loads.update([shard]), load(shard))[1]
    with Prefetch(StreamBatches(stream, 6, 0), depth=6, workers=3) as batches:
        for step in range(stream.length // 6):
            batches.batch(step)
        assert int(stream.order.sizes[stream.windows.held()].sum()) <= KEPT * 1400
    assert max(loads.values()) <= 2  # an epoch, and what is read ahead of the next one


def test_numbers_of_the_trainer_are_left_alone(data):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with Prefetch(StreamBatches(images(data), 6, 0, [RandomAffine()])) as batches:
        batches.batch(0)
        assert torch.equal(torch.rand(4), expected)


class TwoArguments(RuntimeError):
    """An error that pickle cannot make again."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


class Failing:
    def batch(self, step):
        if step == 3:
            raise DataError("row 7 of train/x.parquet cannot be decoded")
        if step == 5:
            raise TwoArguments("a hole", "the data")
        return {"x": torch.tensor([step])}


def test_an_error_comes_with_its_step(data):
    with Prefetch(Failing(), depth=6, workers=2) as batches:
        for step in range(3):
            assert batches.batch(step)["x"] == step
        with pytest.raises(DataError) as raised:
            batches.batch(3)
        assert str(raised.value) == "row 7 of train/x.parquet cannot be decoded"
        assert "in batch" in raised.value.__notes__[0]
        assert batches.batch(4)["x"] == 4
        with pytest.raises(RuntimeError, match="a hole in the data"):
            batches.batch(5)
        assert batches.batch(6)["x"] == 6


def test_an_error_of_reading_comes_with_its_step_and_can_be_tried_again(data):
    stream = images(data, window=1)  # one shard a window
    second = stream.order.windows(0)[1].tolist()
    broken, load = [True], stream.windows.load

    def fails(shard):
        if broken[0] and shard in second:
            raise TwoArguments("no answer", "the store")
        return load(shard)

    stream.windows.load = fails
    step = len(stream.order.order(0, 0)[0])  # the first of the second window
    plain = StreamBatches(images(data, window=1), 1, 0)
    with Prefetch(StreamBatches(stream, 1, 0), depth=4, workers=2) as batches:
        for before in range(step):
            assert same(batches.batch(before), plain.batch(before))
        with pytest.raises(TwoArguments, match="no answer in the store"):
            batches.batch(step)
        broken[0] = False
        assert same(batches.batch(step), plain.batch(step))


class Deadly:
    def batch(self, step):
        if step == 2:
            import os

            os._exit(9)
        return {"x": torch.tensor([step])}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_and_no_endless_wait():
    with Prefetch(Deadly(), depth=1, workers=1) as batches:
        assert [batches.batch(step)["x"].item() for step in range(2)] == [0, 1]
        with pytest.raises(RuntimeError, match="exited unexpectedly"):
            batches.batch(2)


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children()}


def test_processes_end_with_it(data):
    before = children()
    batches = Prefetch(StreamBatches(images(data), 6, 0), workers=2)
    batches.batch(0)
    assert len(children() - before) == 2
    batches.close()
    assert children() == before
    batches.batch(1)
    started = [child for child in multiprocessing.active_children() if child.pid not in before]
    del batches  # what is being made is finished first
    deadline = time.monotonic() + 20
    while children() != before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert [child.exitcode for child in started] == [0, 0]


@pytest.mark.slow
def test_a_program_that_forgets_to_close_it_ends_nevertheless():
    code = (
        "import torch\nfrom components.data.prefetch import Prefetch\n"
        "class B:\n    def batch(self, step):\n        return {'x': torch.tensor([step])}\n"
        "batches = Prefetch(B())\nprint(batches.batch(4)['x'].item())\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


class Mean(Trainable):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.drop = nn.Linear(SIZE * SIZE, 1), nn.Dropout(0.3)

    def forward(self, batch):
        return {"loss": (self.layer(self.drop(batch["images"].flatten(1))).squeeze(1) - 1).square().mean()}


def test_training_is_the_same_to_the_last_bit_when_prefetched_and_when_resumed(data, tmp_path):
    def trained(steps: int, folder: str, prefetched: bool) -> torch.Tensor:
        method = Mean()
        batches = StreamBatches(images(data), 6, 0, [RandomAffine()])
        ahead = Prefetch(batches, depth=3, workers=2) if prefetched else None
        config = Train(steps=steps, batch_size=6, lr=1e-2, log_every=4, checkpoint_every=5)
        train(method, ahead or batches, config, checkpoints=tmp_path / folder, monitor=Silent(), seed=0)
        if ahead:
            ahead.close()
        return method.layer.weight.detach().clone()

    plain = trained(12, "plain", False)
    assert torch.equal(trained(12, "ahead", True), plain)
    trained(5, "resumed", True)
    assert torch.equal(trained(12, "resumed", False), trained(12, "one", False))
