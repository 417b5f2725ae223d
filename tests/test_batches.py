"""Batches are a pure function of (seed, step), in the proportions of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.data.batches import ImageBatches, TokenBatches, to_float, to_uint8
from components.data.transforms.horizontal_flip import HorizontalFlip
from components.data.transforms.random_affine import RandomAffine

N = 50
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
LABELS = np.arange(N, dtype=np.int64)
TOKENS = np.random.default_rng(1).integers(0, 200, (N, 6), dtype=np.uint8)


def make(kind: str, seed: int = 0, weights=None, size: int = 20):
    if kind == "images":
        return ImageBatches(IMAGES, LABELS, weights, size, seed, [HorizontalFlip(), RandomAffine()])
    return TokenBatches(TOKENS, LABELS, weights, size, seed)


def same(a, b) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_a_batch_depends_on_seed_and_step_alone(kind):
    first, second = make(kind), make(kind)
    expected = {step: first.batch(step) for step in (0, 1, 5, 1000)}
    torch.manual_seed(99)
    np.random.seed(99)
    assert all(same(second.batch(step), expected[step]) for step in (1000, 5, 0, 1))
    assert not same(expected[0], expected[1])
    assert not same(make(kind, seed=1).batch(0), expected[0])


def test_shapes_and_types():
    batch = make("images").batch(3)
    assert batch["images"].shape == (20, 1, 8, 8)
    assert batch["images"].dtype == torch.float32
    assert batch["images"].abs().max() <= 1
    batch = make("tokens").batch(3)
    assert batch["tokens"].dtype == batch["labels"].dtype == torch.int64
    assert np.array_equal(batch["tokens"].numpy(), TOKENS[batch["labels"].numpy()])


@pytest.mark.parametrize("size", [1, 7, 64])
def test_proportions_follow_the_weights(size):
    weights = np.random.default_rng(2).random(N) ** 4
    weights[:10] = 0
    batches = make("tokens", weights=weights, size=size)
    counts = np.zeros(N)
    steps = 4000 // size
    for step in range(steps):
        counts += np.bincount(batches.batch(step)["labels"].numpy(), minlength=N)
    share = weights / weights.sum()
    assert counts[:10].sum() == 0
    assert np.abs(counts / counts.sum() - share).max() < 0.03


def test_each_batch_has_each_group_within_one_draw():
    """Half of the weight on the first ten rows: half of every batch, not just on average."""
    weights = np.where(np.arange(N) < 10, 0.05, 0.5 / 40)
    batches = make("tokens", weights=weights, size=33)
    found = [int((batches.batch(step)["labels"] < 10).sum()) for step in range(100)]
    assert set(found) <= {16, 17}


def test_an_even_batch_as_large_as_the_data_has_every_row():
    assert set(make("tokens", size=N).batch(0)["labels"].tolist()) == set(range(N))


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="the split is empty"):
        TokenBatches(TOKENS[:0], LABELS[:0], None, 4, 0)
    with pytest.raises(ValueError, match="weights"):
        make("tokens", weights=np.zeros(N))


def test_bytes_survive_the_way_to_floats_and_back():
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    floats = to_float(values)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert np.array_equal(to_uint8(floats), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
