"""What every quantizer keeps: codes and latents agree to the last bit, whatever batch, precision or mishap."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from components import artifact, registry
from components.interfaces import (
    Assignment,
    Codebook,
    GradientEstimator,
    Initialization,
    Quantizer,
    Regularizer,
)
from components.quantizers._codebook import nearest, straight_through, usage
from components.quantizers.fsq import FSQ
from components.quantizers.vq import VQ

DIM = 6
#: a small configuration of each; one that is not here is tested with its defaults
SMALL = {
    "vq": {"codebook_size": 16},
    "rvq": {"codebook_size": 16, "stages": 3},
    "additive": {"codebook_size": 8, "codebooks": 2},
    "product": {"codebook_size": 16, "groups": 2},
    "rotated_product": {"codebook_size": 16, "groups": 2},
    "fsq": {"levels": [5, 4, 3]},
    "lfq": {"bits": 4},
    "bsq": {"bits": 6, "per_code": 3},
    "grouped_lfq": {"bits": 3, "groups": 2},
    "dimension_wise": {"bits": 3},
}
#: each quantizer, and vq with each of its parts
CASES = {name: {"type": name, **SMALL.get(name, {})} for name in registry.names(Quantizer)}
for _kind, _key in ((Codebook, "codebook"), (Assignment, "assignment"), (GradientEstimator, "gradient")):
    for _part in registry.names(_kind):
        _small = {"patch": 2, "width": 8, "heads": 2} if _part == "bridge" else {}
        _without = {"revival": None} if _part in ("bridge", "linear_map") else {}
        CASES[f"vq-{_part}"] = {**CASES["vq"], _key: {"type": _part, **_small}, **_without}
for _part in registry.names(Regularizer):
    CASES[f"vq-{_part}"] = {**CASES["vq"], "regularizers": [{"type": _part}]}
for _part in registry.names(Initialization):
    CASES[f"vq-{_part}"] = {**CASES["vq"], "codebook": {"type": "learned", "initialization": {"type": _part}}}
CASES["ibq"] = CASES["vq"] | {
    "codebook": {"type": "learned"},
    "gradient": {"type": "index_backpropagation"},
    "regularizers": [{"type": "commitment"}, {"type": "entropy"}],
}
every = pytest.mark.parametrize("name", CASES)


def build(name: str) -> Quantizer:
    torch.manual_seed(0)
    return registry.build(Quantizer, CASES[name], DIM)


def latents(batch: int = 4, n: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, DIM, generator=torch.Generator().manual_seed(seed))


def trained(name: str, steps: int = 5) -> Quantizer:
    quantizer = build(name).train()
    for step in range(steps):
        quantizer.before_step(step)
        quantizer(latents(16, seed=step))
        quantizer.after_step(step)
    return quantizer


def state(quantizer: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}


@every
@pytest.mark.parametrize(("batch", "n"), [(4, 9), (1, 1), (3, 7), (0, 9)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_shapes_and_ranges(name, batch, n, mode):
    quantizer = trained(name).train(mode == "train")
    result = quantizer(latents(batch, n))
    assert result.latents.shape == (batch, n, DIM)
    assert result.codes.shape == (batch, n, len(quantizer.codebook_sizes))
    assert result.codes.dtype == torch.int64
    for group, size in enumerate(quantizer.codebook_sizes):
        assert ((result.codes[..., group] >= 0) & (result.codes[..., group] < size)).all()
    assert all(loss.ndim == 0 and loss.isfinite() for loss in result.losses.values())
    quantizer.after_step(0)
    assert all(tensor.isfinite().all() for tensor in quantizer.state_dict().values())


@every
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_decode_gives_the_latents_of_forward(name, mode):
    quantizer = trained(name).train(mode == "train")
    result = quantizer(latents(seed=77))
    assert torch.equal(quantizer.decode(result.codes), result.latents)


@every
def test_the_gradient_reaches_the_latents(name):
    quantizer = trained(name)
    values = latents().requires_grad_()
    result = quantizer(values)
    (result.latents.square().sum() + sum(result.losses.values())).backward()
    assert values.grad.isfinite().all()
    assert values.grad.abs().sum() > 0


@every
def test_autocast_changes_nothing(name):
    quantizer = trained(name).eval()
    values = latents(64, 16) * 10
    plain = quantizer(values)
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(values)
        decoded = quantizer.decode(half.codes)
    assert torch.equal(plain.codes, half.codes)
    assert torch.equal(plain.latents, half.latents)
    assert torch.equal(plain.latents, decoded)


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_batch_does_not_poison(name, value):
    quantizer = trained(name)
    before = state(quantizer)
    bad = latents()
    bad[1, 2, 3] = value
    quantizer(bad)
    assert all(torch.equal(tensor, before[key]) for key, tensor in quantizer.state_dict().items())
    quantizer.after_step(0)  # even if the step was not left out
    assert all(tensor.isfinite().all() for tensor in quantizer.state_dict().values())
    quantizer(latents(seed=5))
    quantizer.after_step(1)
    result = quantizer.eval()(latents())
    assert result.latents.isfinite().all()


@every
def test_evaluation_changes_nothing(name):
    quantizer = trained(name).eval()
    before = state(quantizer)
    first = quantizer(latents())
    quantizer.after_step(0)
    assert torch.equal(quantizer(latents()).codes, first.codes)
    assert all(torch.equal(tensor, before[key]) for key, tensor in quantizer.state_dict().items())


@every
def test_saved_and_loaded(name, tmp_path):
    quantizer = trained(name).eval()
    artifact.save(tmp_path, Quantizer, CASES[name], (DIM,), quantizer)
    loaded = artifact.load(tmp_path, Quantizer)
    result = loaded(latents(seed=3))
    assert torch.equal(result.codes, quantizer(latents(seed=3)).codes)
    assert torch.equal(result.latents, quantizer(latents(seed=3)).latents)


@every
def test_the_same_seed_gives_the_same_codebook(name):
    def made() -> dict[str, Tensor]:
        torch.manual_seed(4)
        return state(trained(name))

    first, second = made(), made()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_straight_through_is_exact_and_has_the_gradient_of_the_identity():
    values = (latents() * 1e3).requires_grad_()
    quantized = latents(seed=1) * 1e-3
    result = straight_through(values, quantized)
    weight = latents(seed=2)
    (result * weight).sum().backward()
    assert torch.equal(result, quantized)
    assert torch.equal(values.grad, weight)


@pytest.mark.parametrize("rows", [0, 1, 37])
def test_nearest_is_what_brute_force_finds(rows, monkeypatch):
    monkeypatch.setattr("components.quantizers._codebook._CELLS", 100)  # in several pieces
    flat, codebook = torch.randn(rows, 5).double(), torch.randn(23, 5).double()
    expected = torch.tensor([min(range(23), key=lambda k: float((x - codebook[k]).square().sum())) for x in flat])
    assert torch.equal(nearest(flat, codebook), expected.long())


def test_usage():
    share, perplexity = usage(torch.tensor([2, 2, 0, 0]))
    assert (share, round(perplexity, 6)) == (0.5, 2.0)


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [3], [4, 4], [7, 6, 3], [256, 3]])
def test_fsq_codes_are_a_bijection(levels):
    torch.manual_seed(0)
    quantizer = FSQ(DIM, levels=levels)
    codes = torch.arange(math.prod(levels)).view(1, -1, 1)
    decoded = codes // quantizer.basis % quantizer.counts - quantizer.counts // 2  # a channel's rounded values
    assert len({tuple(row) for row in decoded[0].tolist()}) == math.prod(levels)
    assert torch.equal(((decoded + quantizer.counts // 2) * quantizer.basis).sum(-1, keepdim=True), codes)


@pytest.mark.parametrize("levels", [3, 4, 5, 8, 256])
def test_fsq_reaches_every_level_and_no_other(levels):
    quantizer = FSQ(1, levels=[levels])
    nn.init.ones_(quantizer.down.weight)
    nn.init.zeros_(quantizer.down.bias)
    codes = quantizer(torch.linspace(-12, 12, 20_001)[None, :, None]).codes.flatten()
    assert torch.equal(codes.unique(), torch.arange(levels))
    assert (codes.diff() >= 0).all()


def test_fsq_refuses_two_levels():
    with pytest.raises(registry.ComponentError, match="greater than or equal to 3"):
        registry.resolve(Quantizer, {"type": "fsq", "levels": [2, 5]})


def test_vq_fills_its_codebook_from_the_first_good_batch():
    quantizer = VQ(DIM, codebook_size=16).train()
    quantizer(torch.full((2, 9, DIM), math.nan))
    assert not quantizer.codebook.filled
    first = latents()
    result = quantizer(first)
    rows = {tuple(row) for row in first.flatten(0, 1).tolist()}
    assert quantizer.codebook.filled
    assert all(tuple(code) in rows for code in quantizer.codebook.codes.tolist())
    assert torch.equal(quantizer.decode(result.codes), result.latents)


def test_codes_that_follow_move_to_the_mean_of_their_latents():
    average = registry.resolve(Codebook, {"type": "moving_average", "decay": 0.5})
    quantizer = VQ(1, codebook_size=2, codebook=average, revival=None).train()
    quantizer.codebook.codes.copy_(torch.tensor([[-1.0], [1.0]]))
    quantizer.codebook.sums.copy_(quantizer.codebook.codes)
    quantizer.codebook.filled.fill_(True)
    for step in range(40):
        quantizer(torch.tensor([[[-3.0], [-2.0], [4.0], [5.0]]]))
        quantizer.after_step(step)
    assert torch.allclose(quantizer.codebook.codes, torch.tensor([[-2.5], [4.5]]), atol=1e-3)


def test_vq_revives_codes_that_nothing_uses():
    quantizer = VQ(DIM, codebook_size=16).train()
    quantizer(latents())
    quantizer.after_step(0)
    quantizer.codebook.codes[:8] = 1e4  # nothing comes near
    quantizer.codebook.sums[:8] = 1e4
    quantizer.use.counts[:8] = 0.0
    assert quantizer.statistics()["dead_codes"] == 8
    quantizer(latents())
    quantizer.after_step(1)
    assert quantizer.codebook.codes.abs().max() < 10
    # eight at most without revival; which of them a new batch uses is chance (12 to 16 of 16 in 200 seeds)
    assert quantizer.eval()(latents(64)).codes.unique().numel() >= 12


@every
def test_a_step_that_is_left_out_leaves_no_trace(name):
    """The trainer then calls no `after_step`; the next step must not count its batch."""
    once, twice = trained(name), trained(name)
    twice.before_step(6)
    twice(latents(seed=50) * 100)
    for quantizer in (once, twice):
        torch.manual_seed(0)
        quantizer.before_step(7)
        quantizer(latents(seed=51))
        quantizer.after_step(7)
    assert all(torch.equal(tensor, twice.state_dict()[key]) for key, tensor in once.state_dict().items())


@every
def test_a_batch_in_parts_counts_as_the_batch(name):
    """Accumulation: several forwards between before_step and after_step."""
    whole, parts = trained(name), trained(name)
    for quantizer, pieces in ((whole, [latents(16, seed=60)]), (parts, latents(16, seed=60).split(4))):
        torch.manual_seed(0)
        quantizer.before_step(9)
        for piece in pieces:
            quantizer(piece)
        quantizer.after_step(9)
    for key, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, parts.state_dict()[key], atol=1e-5, rtol=1e-5)


@every
def test_statistics_count_what_was_used(name):
    quantizer = trained(name, 3)
    found = quantizer.statistics()
    assert 0 < found["usage"] <= 1
    assert 1 <= found["perplexity"] <= max(quantizer.codebook_sizes) + 1e-6
    assert 0 <= found["dead_codes"] <= sum(quantizer.codebook_sizes)
    fixed = torch.zeros(4, 9, DIM)
    for step in range(1200):  # one latent only, for ever: one code of each codebook is left
        quantizer.before_step(step)
        with torch.no_grad():
            quantizer(fixed[:1, :1])
        quantizer.after_step(step)
    if name not in ("vq-gumbel",) and not any(part.revival for part in quantizer.modules() if isinstance(part, VQ)):
        assert quantizer.statistics()["perplexity"] == pytest.approx(1, abs=0.01)
