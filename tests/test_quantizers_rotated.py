"""The rotation of product quantization: orthogonal, the best there is for its codes, and worth it where channels go together."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from components import registry
from components.interfaces import Quantizer
from components.quantizers.product import Product
from components.quantizers.rotated_product import RotatedProduct, procrustes

DIM = 6


def build(name: str, dim: int = DIM, **config: object) -> Quantizer:
    torch.manual_seed(0)
    return registry.build(Quantizer, {"type": name, "groups": 2, "codebook_size": 16, **config}, dim)


def correlated(n: int, seed: int = 0) -> Tensor:
    """[1, n, DIM]: the first half of the channels is nearly the second"""
    rng = torch.Generator().manual_seed(seed)
    half = torch.randn(1, n, DIM // 2, generator=rng)
    return torch.cat([half, half + 0.1 * torch.randn(1, n, DIM // 2, generator=rng)], -1)


def trained(quantizer: Quantizer, steps: int = 60, latents: Tensor | None = None) -> Quantizer:
    quantizer.train()
    for step in range(steps):
        quantizer.before_step(step)
        quantizer(correlated(256, step) if latents is None else latents)
        quantizer.after_step(step)
    return quantizer.eval()


def error(quantizer: Quantizer, latents: Tensor) -> float:
    with torch.no_grad():
        return float((quantizer(latents).latents - latents).square().mean())


@pytest.fixture(scope="module")
def rotated() -> RotatedProduct:
    quantizer = trained(build("rotated_product"))
    assert isinstance(quantizer, RotatedProduct)
    return quantizer


def test_the_rotation_is_orthogonal_and_has_turned(rotated: RotatedProduct) -> None:
    unit = torch.eye(DIM)
    assert (rotated.rotation @ rotated.rotation.T - unit).abs().max() < 1e-5
    assert (rotated.rotation - unit).abs().max() > 0.1


def test_the_error_is_the_sum_of_the_pieces_least_errors_after_rotation(rotated: RotatedProduct) -> None:
    given = correlated(200, 99)
    with torch.no_grad():
        result = rotated(given)
        pieces = (given[0] @ rotated.rotation).chunk(2, -1)
        tables = [part.codebook.table() for part in rotated.parts]
        least = [torch.cdist(p.double(), t.double()).square().min(1) for p, t in zip(pieces, tables, strict=True)]
    found = (result.latents - given)[0].double().square().sum(-1)
    torch.testing.assert_close(found, least[0].values + least[1].values, atol=1e-5, rtol=1e-4)
    assert torch.equal(result.codes[0], torch.stack([part.indices for part in least], -1))


def test_no_pair_of_codes_is_nearer(rotated: RotatedProduct) -> None:
    """All 256 cells, decoded."""
    cells = torch.tensor(list(itertools.product(range(16), range(16))))[None]
    given = correlated(100, 98)
    with torch.no_grad():
        every = torch.cdist(given[0], rotated.decode(cells)[0]).square().min(1).values
        found = (rotated(given).latents - given)[0].square().sum(-1)
    torch.testing.assert_close(found, every, atol=1e-4, rtol=1e-3)


def test_procrustes_finds_the_rotation_that_was_there() -> None:
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(DIM, DIM)).Q
    given = torch.randn(50, DIM)
    torch.testing.assert_close(procrustes(given.T @ (given @ turn), torch.eye(DIM)), turn, atol=1e-5, rtol=1e-5)


def test_procrustes_beats_any_other_rotation() -> None:
    torch.manual_seed(1)
    given, wanted = torch.randn(50, DIM), torch.randn(50, DIM)
    best = (given @ procrustes(given.T @ wanted, torch.eye(DIM)) - wanted).square().sum()
    for _ in range(200):
        other = torch.linalg.qr(torch.randn(DIM, DIM)).Q
        assert (given @ other - wanted).square().sum() > best


def test_directions_without_data_stay() -> None:
    """Latents live in the first two channels and are where they should be: nothing moves, the other channels neither."""
    torch.manual_seed(0)
    now, given = torch.linalg.qr(torch.randn(DIM, DIM)).Q, torch.zeros(50, DIM)
    given[:, :2] = torch.randn(50, 2)
    torch.testing.assert_close(procrustes(given.T @ (given @ now), now), now, atol=1e-5, rtol=1e-5)


def test_one_fit_lowers_the_error_of_the_codes_it_saw() -> None:
    given = correlated(256)
    quantizer = build("rotated_product", rotation_decay=0.0, revival=None)
    assert isinstance(quantizer, RotatedProduct)
    quantizer.train()
    quantizer.before_step(0)
    with torch.no_grad():
        codes = quantizer(given).codes
        words = torch.cat(
            [part.decode(code) for part, code in zip(quantizer.parts, codes.split(1, -1), strict=True)], -1
        )
        before = (given @ quantizer.rotation - words).square().sum()
        quantizer.after_step(0)
        assert (given @ quantizer.rotation - words).square().sum() < before


def test_the_gradient_of_straight_through_is_the_identity(rotated: RotatedProduct) -> None:
    given, weight = correlated(20).requires_grad_(), torch.randn(1, 20, DIM)
    (rotated(given).latents * weight).sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad, weight, atol=1e-5, rtol=1e-5)


def test_at_first_it_is_product() -> None:
    given = correlated(40)
    plain, rotated = build("product").eval(), build("rotated_product").eval()
    assert torch.equal(plain(given).codes, rotated(given).codes)
    assert torch.equal(plain(given).latents, rotated(given).latents)


def test_a_step_that_is_left_out_turns_nothing() -> None:
    quantizer = build("rotated_product").train()
    assert isinstance(quantizer, RotatedProduct)
    quantizer(correlated(64) * 100)
    quantizer.before_step(1)
    quantizer.after_step(1)
    assert torch.equal(quantizer.rotation, torch.eye(DIM))


def patches() -> Tensor:
    """The four quarters of scikit-learn's digits, [1797, 4, 16], of mean 0 and variance 1 over all"""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).float()
    pieces = images.unfold(1, 4, 4).unfold(2, 4, 4).reshape(len(images), 4, 16)
    return (pieces - pieces.mean()) / pieces.std()


@pytest.mark.parametrize("seed", range(3))
def test_on_digits_its_error_is_at_most_that_of_product(seed: int) -> None:
    """Equal bits, equal steps, pictures that training did not see."""
    data, errors = patches(), {}
    for kind in (Product, RotatedProduct):
        torch.manual_seed(seed)
        quantizer = kind(16, groups=4, codebook_size=16).train()
        for step in range(200):
            quantizer.before_step(step)
            quantizer(data[torch.randint(1347, (64,))])
            quantizer.after_step(step)
        errors[kind] = error(quantizer.eval(), data[1347:])
    assert errors[RotatedProduct] <= errors[Product]
