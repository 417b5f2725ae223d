"""What every transform keeps, and what each one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components import registry
from components.data.transforms.horizontal_flip import HorizontalFlip
from components.data.transforms.random_affine import RandomAffine
from components.interfaces import Transform

every = pytest.mark.parametrize("name", registry.names(Transform))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 12, 12, generator=generator(9)) * 2 - 1


@every
@pytest.mark.parametrize(("n", "channels"), [(16, 3), (5, 1), (1, 1), (0, 3)])
def test_shape_range_and_type_stay(name, n, channels):
    given = images(n, channels)
    kept = given.clone()
    changed = registry.build(Transform, {"type": name})(given, generator())
    assert changed.shape == given.shape
    assert changed.dtype == given.dtype
    assert torch.equal(given, kept)
    assert (changed.abs() <= 1 + 1e-5).all()


@every
def test_the_same_generator_gives_the_same_change(name):
    transform = registry.build(Transform, {"type": name})
    assert torch.equal(transform(images(), generator(3)), transform(images(), generator(3)))
    assert not torch.equal(transform(images(), generator(3)), transform(images(), generator(4)))


def test_half_of_the_pictures_are_mirrored():
    given = images(2000)
    changed = HorizontalFlip()(given, generator())
    mirrored = (changed == given.flip(-1)).flatten(1).all(1)
    untouched = (changed == given).flatten(1).all(1)
    assert (mirrored ^ untouched).all()
    assert 900 < int(mirrored.sum()) < 1100


def test_no_change_asked_for_is_none():
    still = RandomAffine(degrees=0, scale=0, shift=0)
    assert torch.allclose(still(images(), generator()), images(), atol=1e-5)


def test_a_shift_moves_by_at_most_its_share_and_fills_with_black():
    given = -torch.ones(200, 1, 20, 20)
    given[:, :, 10, 10] = 1.0
    moved = RandomAffine(degrees=0, scale=0, shift=0.2)(given, generator())
    weight = (moved + 1)[:, 0]
    rows = (weight.sum(2) * torch.arange(20)).sum(1) / weight.sum((1, 2))
    distance = rows - 10
    assert distance.abs().max() <= 0.2 * 20 + 0.01
    assert distance.abs().max() > 3
    white = RandomAffine(degrees=0, scale=0, shift=0.3)(torch.ones(50, 1, 8, 8), generator())
    assert white.min() == -1
