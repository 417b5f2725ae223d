"""Conditioners: every kind of condition has its vectors, its nothing, and its own dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components import registry
from components.conditioners.caption import Caption
from components.interfaces import Conditioner

CLASSES, WIDTH = 5, 16
SMALL = {
    "caption": {"length": 6, "encoder": {"type": "transformer", "depth": 1, "width": 16, "heads": 2}},
    "image": {"size": 8, "patch": 4},
}
every = pytest.mark.parametrize("name", registry.names(Conditioner))


def build(name: str) -> Conditioner:
    torch.manual_seed(0)
    conditioner = registry.build(Conditioner, {"type": name, **SMALL.get(name, {})}, CLASSES)
    conditioner.attach(WIDTH)
    conditioner.initialize()
    return conditioner


def conditions(name: str, n: int = 6) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    if name == "class_label":
        return torch.arange(n) % CLASSES
    if name == "caption":
        return torch.randint(1, 256, (n, 6), generator=rng)
    return torch.rand(n, 1, 8, 8, generator=rng) * 2 - 1


@every
@pytest.mark.parametrize("n", [0, 1, 6])
def test_vectors(name: str, n: int) -> None:
    conditioner, asked = build(name), conditions(name, n)
    conditioner.check(asked)
    vectors = conditioner(asked)
    assert vectors.shape == (n, conditioner.length, WIDTH)
    assert vectors.isfinite().all()


@every
def test_it_matters_what_is_asked_for(name: str) -> None:
    conditioner, asked = build(name), conditions(name, 4)
    vectors = conditioner(asked).flatten(1)
    assert torch.cdist(vectors, vectors)[~torch.eye(4, dtype=torch.bool)].min() > 1e-3


@every
def test_nothing_is_the_same_whatever_was_asked_for(name: str) -> None:
    conditioner, asked = build(name), conditions(name)
    nothing = conditioner.null(asked)
    conditioner.check(nothing)
    vectors = conditioner(nothing)
    torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors))
    assert (vectors[0] - conditioner(asked)[0]).abs().max() > 1e-3


@every
def test_dropout_replaces_whole_conditions_as_often_as_said(name: str) -> None:
    conditioner = build(name)
    asked = conditions(name, 1).expand(4000, *[-1] * (conditions(name).ndim - 1))
    torch.manual_seed(0)
    dropped = conditioner.dropped(asked, 0.1)
    gone = dropped.nan_to_num(7).flatten(1 if dropped.ndim > 1 else 0).view(4000, -1)
    untouched = (gone == asked.reshape(4000, -1)).all(1)
    assert (~untouched).float().mean() == pytest.approx(0.1, abs=0.02)  # four standard deviations
    nothing = conditioner.null(asked).nan_to_num(7).view(4000, -1)
    assert torch.equal(gone[~untouched], nothing[~untouched])


@every
def test_gradients_reach_every_parameter(name: str) -> None:
    conditioner, asked = build(name), conditions(name)
    (conditioner(asked).square().sum() + conditioner(conditioner.null(asked)).square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in conditioner.parameters())


@every
def test_what_is_no_condition_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(name).check(torch.zeros(2, 3, 3))


def test_captions_are_bytes() -> None:
    caption = build("caption")
    assert isinstance(caption, Caption)
    rows = caption.of(["abc", "", "ß is two bytes"])
    assert rows[0].tolist() == [97, 98, 99, 0, 0, 0]
    assert rows[1].tolist() == [0] * 6
    assert bytes(rows[2].tolist()) == "ß is two".encode()[:6]
    with pytest.raises(ValueError, match="bytes must be"):
        caption.check(torch.full((1, 6), 256))
