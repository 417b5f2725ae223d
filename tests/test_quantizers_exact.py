"""Each rule against its definition and, where it implements the same one, against vector-quantize-pytorch."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from components import registry
from components.interfaces import Codebook, Initialization, Quantizer
from components.quantizers._bits import to_codes, to_signs
from components.quantizers._codebook import entropy_loss
from components.quantizers.additive import Additive
from components.quantizers.bsq import BSQ
from components.quantizers.codebooks.bridge import Bridge
from components.quantizers.dimension_wise import DimensionWise, normal_bins
from components.quantizers.gradients.rotation import rotate
from components.quantizers.grouped_lfq import GroupedLFQ
from components.quantizers.rvq import RVQ
from components.quantizers.vq import VQ
from components.registry import ComponentError

peers = pytest.importorskip("vector_quantize_pytorch")
DIM = 6


def build(dim: int = DIM, **config: object) -> Quantizer:
    torch.manual_seed(0)
    return registry.build(Quantizer, config, dim)


def latents(batch: int = 4, n: int = 9, dim: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, dim, generator=torch.Generator().manual_seed(seed))


class TestAgainstVectorQuantizePytorch:
    def test_moving_averages_take_the_same_steps(self) -> None:
        peer = peers.VectorQuantize(
            dim=DIM, codebook_size=16, decay=0.9, commitment_weight=0.25, eps=1e-5, rotation_trick=False
        ).train()
        mine = build(
            type="vq", codebook_size=16, revival=None,
            codebook={"type": "moving_average", "decay": 0.9, "initialization": {"type": "normal"}},
        ).train()  # fmt: skip
        assert isinstance(mine, VQ)
        start = torch.randn(16, DIM)
        mine.codebook.codes.copy_(start)
        mine.codebook.sums.copy_(start)
        peer._codebook.embed.copy_(start[None])
        peer._codebook.embed_avg.copy_(start[None])
        peer._codebook.cluster_size.fill_(1.0)
        for step in range(5):
            given = latents(seed=step).requires_grad_()
            same = given.detach().clone().requires_grad_()
            found, (vectors, codes, loss) = mine(given), peer(same)
            assert torch.equal(found.codes[..., 0], codes)
            torch.testing.assert_close(found.latents, vectors, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.losses["commitment"], loss.sum(), atol=1e-5, rtol=1e-5)
            (found.latents.square().sum() + found.losses["commitment"]).backward()
            (vectors.square().sum() + loss.sum()).backward()
            torch.testing.assert_close(given.grad, same.grad, atol=1e-4, rtol=1e-4)
            mine.after_step(step)
            torch.testing.assert_close(mine.codebook.codes, peer._codebook.embed[0], atol=1e-4, rtol=1e-4)

    def test_fsq(self) -> None:
        peer, mine = peers.FSQ(levels=[8, 5, 5, 5], dim=DIM), build(type="fsq", levels=[8, 5, 5, 5])
        peer.project_in.load_state_dict(mine.down.state_dict())
        peer.project_out.load_state_dict(mine.up.state_dict())
        vectors, codes = peer(latents() * 3)
        found = mine(latents() * 3)
        assert torch.equal(found.codes[..., 0], codes.long())
        torch.testing.assert_close(found.latents, vectors, atol=1e-5, rtol=1e-5)

    def test_the_rotation_trick(self) -> None:
        from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

        given, target = torch.randn(50, DIM), torch.randn(50, DIM)
        weight = torch.randn(50, DIM)
        found, expected = given.clone().requires_grad_(), given.clone().requires_grad_()
        (rotate(found, target) * weight).sum().backward()
        (rotate_to(expected, target) * weight).sum().backward()
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-4, rtol=1e-4)


def test_rotation_takes_the_latent_to_its_code_and_keeps_angles() -> None:
    given, target = torch.randn(50, DIM, dtype=torch.float64), torch.randn(50, DIM, dtype=torch.float64)
    torch.testing.assert_close(rotate(given, target), target)
    given.requires_grad_()
    upstream = target / target.norm(dim=1, keepdim=True)  # a gradient along the code comes back along the latent
    (rotate(given, target) * upstream).sum().backward()
    cosine = nn.functional.cosine_similarity(given.grad, given.detach())
    torch.testing.assert_close(cosine, torch.ones(50, dtype=torch.float64))


class TestIndexBackpropagation:
    def test_every_code_gets_a_gradient_and_the_value_is_the_row(self) -> None:
        ibq = build(
            type="vq",
            codebook_size=16,
            codebook={"type": "learned", "weight": 0},
            gradient={"type": "index_backpropagation"},
            regularizers=[],
            revival=None,
        )
        plain = build(type="vq", codebook_size=16, codebook={"type": "learned"}, regularizers=[], revival=None)
        for quantizer, all_of_them in ((ibq, True), (plain, False)):
            given = latents(1, 3)
            result = quantizer(given)
            (result.latents * torch.randn(1, 3, DIM)).sum().backward() if all_of_them else result.losses[
                "codebook"
            ].backward()
            moved = quantizer.codebook.codes.grad.abs().sum(1) > 0
            assert bool(moved.all()) == all_of_them
            assert int(moved.sum()) == (16 if all_of_them else result.codes.unique().numel())

    def test_the_gradient_is_that_of_the_softmax(self) -> None:
        table, given = torch.randn(8, DIM), torch.randn(5, DIM, requires_grad=True)
        from components.quantizers.assignments.euclidean import Euclidean
        from components.quantizers.gradients.index_backpropagation import IndexBackpropagation

        weight = torch.randn(5, DIM)
        _, vectors = IndexBackpropagation()(given, table, Euclidean(), True)
        (vectors * weight).sum().backward()
        other = given.detach().clone().requires_grad_()
        (((-torch.cdist(other, table).square()).softmax(1) @ table) * weight).sum().backward()
        torch.testing.assert_close(given.grad, other.grad, atol=1e-4, rtol=1e-3)


def test_gumbel_draws_codes_as_often_as_the_softmax_says() -> None:
    from scipy.stats import chi2

    quantizer = build(
        1,
        type="vq",
        codebook_size=4,
        gradient={"type": "gumbel"},
        codebook={"type": "learned", "weight": 0},
        regularizers=[],
        revival=None,
    ).train()
    with torch.no_grad():
        quantizer.codebook.codes.copy_(torch.tensor([[0.0], [0.5], [1.0], [1.5]]))
    expected = 20_000 * (-(torch.tensor([0.0, 0.5, 1.0, 1.5]) - 0.4).square()).softmax(0)
    counts = torch.bincount(quantizer(torch.full((1, 20_000, 1), 0.4)).codes.flatten(), minlength=4)
    assert float(((counts - expected) ** 2 / expected).sum()) < chi2.ppf(0.999, 3)


class TestRVQ:
    def trained(self) -> RVQ:
        quantizer = build(type="rvq", stages=3, codebook_size=16)
        assert isinstance(quantizer, RVQ)
        for step in range(20):
            quantizer.train()(latents(32, seed=step))
            quantizer.after_step(step)
        return quantizer.eval()

    def test_each_stage_takes_the_nearest_code_to_what_is_left(self) -> None:
        quantizer, given = self.trained(), latents(seed=99)
        codes, residual = quantizer(given).codes, given
        for stage, part in enumerate(quantizer.parts):
            table = part.codebook.table()
            expected = torch.cdist(residual.flatten(0, 1), table).argmin(1).view(4, 9)
            assert torch.equal(codes[..., stage], expected)
            residual = residual - table[codes[..., stage]]

    def test_more_stages_are_nearer(self) -> None:
        quantizer, given = self.trained(), latents(64, seed=99)
        codes = quantizer(given).codes
        errors = [float((quantizer.decode_first(codes[..., :n]) - given).square().mean()) for n in (1, 2, 3)]
        assert errors[0] > errors[1] > errors[2]

    def test_the_gradient_is_the_identity(self) -> None:
        given, weight = latents().requires_grad_(), latents(seed=5)
        (self.trained()(given).latents * weight).sum().backward()
        torch.testing.assert_close(given.grad, weight)

    def test_dropped_stages_leave_a_coarser_latent(self) -> None:
        quantizer = build(type="rvq", stages=3, codebook_size=16, stage_dropout=1.0).train()
        seen = set()
        torch.manual_seed(0)
        for _ in range(30):
            result = quantizer(latents())
            seen |= {n for n in (1, 2, 3) if torch.equal(result.latents, quantizer.decode_first(result.codes[..., :n]))}
        assert seen == {1, 2, 3}


def test_the_error_of_a_product_is_the_sum_of_its_pieces_minima() -> None:
    quantizer = build(type="product", groups=2, codebook_size=8)
    given = latents()
    found = (quantizer(given).latents - given).square().sum()
    expected = sum(
        torch.cdist(piece.flatten(0, 1), part.codebook.table()).square().min(1).values.sum()
        for piece, part in zip(given.chunk(2, -1), quantizer.parts, strict=True)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    with pytest.raises(ComponentError, match="must divide the width of a latent"):
        build(type="product", groups=4)


class TestAdditive:
    def trained(self, **changes: object) -> Additive:
        quantizer = build(**{"type": "additive", "codebooks": 2, "codebook_size": 16, "decay": 0.5, **changes})
        assert isinstance(quantizer, Additive)
        for step in range(15):
            quantizer.train()(latents(32, seed=step))
            quantizer.after_step(step)
        return quantizer.eval()

    def test_with_a_beam_of_all_it_is_exhaustive(self) -> None:
        quantizer, given = self.trained(beam=16), latents(seed=99).flatten(0, 1)
        pairs = torch.cartesian_prod(torch.arange(16), torch.arange(16))
        best = torch.cdist(given, quantizer.decode(pairs)).argmin(1)
        assert torch.equal(quantizer.search(given), pairs[best])

    @pytest.mark.parametrize("beam", [1, 2, 8])
    def test_it_is_never_worse_than_greedy_choice(self, beam: int) -> None:
        quantizer, given = self.trained(codebooks=3, beam=beam), latents(64, seed=99).flatten(0, 1)
        error = lambda codes: (quantizer.decode(codes) - given).square().sum(-1)  # noqa: E731
        joint, greedy = error(quantizer.search(given)), error(quantizer.greedy(given))
        assert (joint <= greedy).all()
        assert beam == 1 or (joint < greedy - 1e-6).any()

    def test_the_table_is_that_of_least_squares(self) -> None:
        """One step from nothing, with hardly any ridge: the residual of the normal equations vanishes."""
        quantizer = build(type="additive", codebooks=2, codebook_size=4, decay=1e-6, ridge=1e-6).train()
        given = latents(64)
        codes = quantizer(given).codes.flatten(0, 1)
        quantizer.after_step(0)
        chosen = nn.functional.one_hot(codes + 4 * torch.arange(2), 8).sum(1).double()
        flat = given.flatten(0, 1).double()
        best = chosen @ torch.linalg.lstsq(chosen, flat, driver="gelsd").solution
        found = quantizer.decode(codes).double()
        assert float((found - flat).square().sum()) == pytest.approx(float((best - flat).square().sum()), rel=1e-3)

    def test_at_equal_bits_it_is_nearer_than_residual_codes(self) -> None:
        """Three seeds of data, as the survey's claim has it."""
        for seed in (100, 200, 300):
            errors = {}
            for name, config in {
                "additive": {"type": "additive", "codebooks": 2, "codebook_size": 16, "decay": 0.9},
                "residual": {
                    "type": "rvq",
                    "stages": 2,
                    "codebook_size": 16,
                    "codebook": {"type": "moving_average", "decay": 0.9},
                },
            }.items():
                quantizer = build(**config)
                for step in range(60):
                    quantizer.train()(latents(32, seed=seed + step))
                    quantizer.after_step(step)
                given = latents(200, seed=seed + 99)
                errors[name] = float((quantizer.eval()(given).latents - given).square().mean())
            assert errors["additive"] <= errors["residual"]


class TestSigns:
    @pytest.mark.parametrize("bits", [1, 3, 10])
    def test_codes_and_signs_are_a_bijection(self, bits: int) -> None:
        codes = torch.arange(2**bits)
        assert torch.equal(to_codes(to_signs(codes, bits)), codes)

    def test_lfq_is_the_nearest_of_all_sign_vectors(self) -> None:
        quantizer = build(type="lfq", bits=4)
        channels = quantizer.down(latents())
        every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
        nearest = every[torch.cdist(channels.flatten(0, 1), every).argmin(1)].view(4, 9, 4)
        assert torch.equal(to_signs(quantizer(latents()).codes[..., 0], 4), nearest)

    def test_the_entropy_of_a_full_code_is_the_sum_over_its_groups(self) -> None:
        """Per latent exactly; of the mean, the groups' sum is an upper bound."""
        channels = torch.randn(20, 3, 3) * 0.3  # [latents, groups, bits]
        every = to_signs(torch.arange(8), 3)
        each = (2 * channels @ every.T).log_softmax(-1)  # [latents, groups, 8]
        by_group = -(each.exp() * each).sum(-1).sum(-1)
        full = torch.stack([to_signs(torch.tensor(c), 9) for c in range(512)])
        log_p = (2 * channels.flatten(1) @ full.T).log_softmax(-1)
        torch.testing.assert_close(-(log_p.exp() * log_p).sum(-1), by_group, atol=1e-5, rtol=1e-5)
        entropy = lambda p: float(-(p * p.clamp(min=1e-12).log()).sum())  # noqa: E731
        assert entropy(log_p.exp().mean(0)) <= sum(entropy(each[:, g].exp().mean(0)) for g in range(3)) + 1e-5

    def test_one_group_is_lfq_and_the_loss_is_its_definition(self) -> None:
        one = build(type="grouped_lfq", groups=1, bits=4)
        lfq = build(type="lfq", bits=4)
        lfq.load_state_dict(one.state_dict())
        assert torch.equal(one(latents()).codes, lfq(latents()).codes)
        assert isinstance(one, GroupedLFQ)
        channels = one.down(latents()).flatten(0, 1)
        every = torch.stack([to_signs(torch.tensor(c), 4) for c in range(16)])
        logits = -torch.cdist(channels, every).square() / 0.01
        expected = 0.1 * entropy_loss(logits)
        torch.testing.assert_close(one(latents()).losses["entropy"], expected, atol=1e-4, rtol=1e-4)

    def test_memory_of_the_entropy_grows_with_the_bits_of_a_group_only(self) -> None:
        sizes = {}
        for groups, bits in ((2, 4), (8, 4), (2, 8)):
            kept: list[int] = []
            quantizer = build(type="grouped_lfq", groups=groups, bits=bits)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, kept=kept: kept.append(t.shape[-1]) or t, lambda t: t
            ):
                quantizer(latents())
            sizes[groups, bits] = max(kept)
        assert sizes[8, 4] <= 32
        assert sizes[2, 8] == 256


class TestBSQ:
    def test_the_error_is_bounded(self) -> None:
        for bits in (2, 9, 18):
            u = nn.functional.normalize(torch.randn(500, bits), dim=-1)
            quantized = torch.where(u > 0, 1.0, -1.0) * bits**-0.5
            assert (u - quantized).square().sum(-1).max() <= 2 - 2 / math.sqrt(bits) + 1e-5

    def test_the_factorized_entropy_is_that_of_all_codes(self) -> None:
        quantizer = build(type="bsq", bits=6, per_code=3, temperature=0.3)
        assert isinstance(quantizer, BSQ)
        u = nn.functional.normalize(torch.randn(1, 40, 6), dim=-1)
        every = torch.stack([to_signs(torch.tensor(c), 6) for c in range(64)]) * 6**-0.5
        log_p = (-torch.cdist(u[0], every).square() / 0.3).log_softmax(-1)
        each = -(log_p.exp() * log_p).sum(-1).mean()
        bits = torch.stack([(log_p.exp() * (every[:, b] > 0)).sum(-1).mean() for b in range(6)])
        mean = -(bits * bits.log() + (1 - bits) * (1 - bits).log()).sum()
        torch.testing.assert_close(quantizer.entropy(u), each - mean, atol=1e-4, rtol=1e-4)

    def test_bits_that_do_not_fill_codes_are_refused(self) -> None:
        with pytest.raises(ComponentError, match="must divide bits"):
            build(type="bsq", bits=10, per_code=4)


class TestDimensionWise:
    @pytest.mark.parametrize("bits", [1, 3, 6])
    def test_values_are_conditional_means(self, bits: int) -> None:
        from scipy import integrate, stats

        edges, values = normal_bins(bits)
        for low, high, value in zip(edges[:-1], edges[1:], values, strict=True):
            mass = stats.norm.cdf(high) - stats.norm.cdf(low)
            mean = integrate.quad(lambda x: x * stats.norm.pdf(x), float(low), float(high), epsabs=1e-12)[0] / mass
            assert float(value) == pytest.approx(mean, abs=1e-6)

    @pytest.mark.parametrize(("bits", "entropy"), [(3, 2.991), (4, 3.996), (5, 4.998), (6, 5.999)])
    def test_codes_of_normal_numbers_are_about_equally_frequent(self, bits: int, entropy: float) -> None:
        from scipy import stats

        values = normal_bins(bits)[1]
        edges = torch.cat([torch.tensor([-torch.inf]), (values[1:] + values[:-1]) / 2, torch.tensor([torch.inf])])
        shares = torch.from_numpy(stats.norm.cdf(edges.numpy())).diff()
        assert float(-(shares * shares.log2()).sum()) == pytest.approx(entropy, abs=1e-3)

    def test_more_bits_are_nearer_and_the_code_is_the_nearest_value(self) -> None:
        given, errors = latents(64, 16), []
        for bits in (2, 3, 4, 5, 6):
            quantizer = build(type="dimension_wise", bits=bits)
            assert isinstance(quantizer, DimensionWise)
            quantizer.fit(given)
            result = quantizer(given)
            errors.append(float((result.latents - given).square().mean()))
            scaled = (6 * (given - quantizer.low) / (quantizer.high - quantizer.low) - 3).clamp(-3, 3)
            nearest = (scaled[..., None] - quantizer.values).abs().argmin(-1)
            assert (result.codes != nearest).float().mean() < 1e-3  # ties of rounding
        assert errors == sorted(errors, reverse=True)

    def test_bins_need_latents(self) -> None:
        with pytest.raises(ValueError, match="two finite latents"):
            build(type="dimension_wise").fit(torch.full((3, DIM), torch.nan))


class TestBridge:
    BRIDGE: ClassVar = {"type": "bridge", "patch": 4, "width": 16, "heads": 2}
    CHOICE: ClassVar = {"type": "vq", "codebook_size": 64, "codebook": BRIDGE, "revival": None}

    def step(self, quantizer: Quantizer, seed: int) -> None:
        optimizer = torch.optim.SGD(quantizer.parameters(), 0.5)
        optimizer.zero_grad()
        sum(quantizer.train()(latents(2, 4, seed=seed)).losses.values()).backward()
        optimizer.step()

    def test_at_first_all_codes_are_equal_and_then_all_move(self) -> None:
        quantizer = build(**self.CHOICE)
        table = quantizer.codebook.table().detach()
        assert torch.equal(table, table[:1].expand_as(table))
        for seed in range(10):
            self.step(quantizer, seed)
        before = quantizer.codebook.table().detach()
        chosen = quantizer.eval()(latents(2, 4, seed=10)).codes.unique().numel()
        self.step(quantizer, 10)
        moved = ((quantizer.codebook.table().detach() - before).abs().amax(1) > 0).sum()
        assert int(moved) > chosen

    def test_plain_vq_moves_only_what_was_chosen(self) -> None:
        quantizer = build(type="vq", codebook_size=64, codebook={"type": "learned"}, revival=None)
        before = quantizer.codebook.codes.detach().clone()
        chosen = quantizer.eval()(latents(2, 4, seed=5)).codes.unique().numel()
        self.step(quantizer, 5)
        assert int(((quantizer.codebook.codes.detach() - before).abs().amax(1) > 0).sum()) == chosen

    def test_the_plain_table_gives_the_same_codes_and_latents(self) -> None:
        quantizer = build(**self.CHOICE)
        for seed in range(5):
            self.step(quantizer, seed)
        quantizer.eval()
        assert isinstance(quantizer.codebook, Bridge)
        plain = build(type="vq", codebook_size=64, codebook={"type": "learned"}, revival=None).eval()
        with torch.no_grad():
            plain.codebook.codes.copy_(quantizer.codebook.plain())
        found, expected = plain(latents(seed=9)), quantizer(latents(seed=9))
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.latents, expected.latents)

    def test_a_size_that_is_no_square_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(ComponentError, match="64 and 81 are the nearest"):
            build(**{**self.CHOICE, "codebook_size": 70})


def test_a_linear_map_moves_all_codes_and_trains_no_code() -> None:
    quantizer = build(type="vq", codebook_size=32, codebook={"type": "linear_map"}, revival=None)
    raw, before = quantizer.codebook.raw.clone(), quantizer.codebook.table().detach()
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.5)
    sum(quantizer.train()(latents(1, 2)).losses.values()).backward()
    optimizer.step()
    assert torch.equal(quantizer.codebook.raw, raw)
    assert (quantizer.codebook.table() - before).abs().amax(1).min() > 0


def test_kmeans_is_that_of_scikit_learn_from_the_same_start() -> None:
    from sklearn.cluster import KMeans

    flat = torch.cat([torch.randn(40, 3) + center for center in (-4.0, 0.0, 4.0)])
    torch.manual_seed(3)
    found = registry.build(Initialization, {"type": "kmeans", "rounds": 50})(3, 3, flat)
    torch.manual_seed(3)
    start = flat[torch.randint(len(flat), (3,))]
    expected = KMeans(3, init=start.numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=50).fit(flat.numpy())
    torch.testing.assert_close(found, torch.from_numpy(expected.cluster_centers_), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", registry.names(Codebook))
def test_revival_of_what_cannot_be_revived_says_so(name: str) -> None:
    small = {"patch": 2, "width": 8, "heads": 2} if name == "bridge" else {}
    codebook = registry.build(Codebook, {"type": name, **small}, 16, 4)
    which = torch.arange(16) < 3
    if name in ("bridge", "linear_map"):
        with pytest.raises(ValueError, match=r"leave out quantizer\.revival"):
            codebook.replace(which, torch.ones(3, 4), torch.tensor(2.0))
    else:
        codebook.replace(which, torch.full((3, 4), 7.0), torch.tensor(2.0))
        assert torch.equal(codebook.table()[:3], torch.full((3, 4), 7.0))
