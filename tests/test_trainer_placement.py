"""How a training is computed changes nothing but speed: pieces, processes, shards, recomputed activations, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import Net, Numbers, Rows, config, same
from torch import Tensor, nn
from torch.func import functional_call

from components.interfaces import Silent, Trainable
from components.training import distributed
from components.training.placement import Placement, blocks
from components.training.trainer import EmptyBatch, ShardedRollouts, train


class Stack(Trainable):
    """Blocks with dropout and a counter of what each step saw, as codebooks have one."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lift = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 16)) for _ in range(3)
        )
        self.out = nn.Linear(16, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.pending = 0.0

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.lift(batch["x"])
        for block in self.blocks:
            hidden = hidden + block(hidden)
        self.pending += float(batch["x"].detach().sum())
        return {"loss": (self.out(hidden)[:, 0] - batch["y"]).square().mean()}

    def before_step(self, step: int) -> None:
        self.pending = 0.0

    def after_step(self, step: int) -> None:
        self.seen += distributed.all_sum(torch.tensor(self.pending))


def run(folder: Path, placement: Placement, net: Trainable | None = None, **changes: object) -> tuple[Trainable, Rows]:
    net, rows = net or Stack(), Rows()
    settings = config(**{"steps": 12, "checkpoint_every": 5, **changes})
    train(net, Numbers(8), settings, checkpoints=folder, monitor=rows, seed=3, placement=placement)
    return net, rows


def close(a: nn.Module, b: nn.Module, tolerance: float = 1e-5) -> None:
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("micro", [1, 2, 3, 8, 100])
def test_a_batch_in_pieces_is_the_batch(tmp_path: Path, micro: int) -> None:
    whole, rows = run(tmp_path / "whole", Placement())
    pieces, again = run(tmp_path / "pieces", Placement(micro_batch=micro))
    close(whole, pieces)
    assert again.rows[10]["loss"] == pytest.approx(rows.rows[10]["loss"], abs=1e-5)
    if micro >= 8:  # then there is one piece
        assert same(whole, pieces)


def test_recomputed_activations_change_no_bit(tmp_path: Path) -> None:
    kept, _ = run(tmp_path / "kept", Placement(), Stack(dropout=0.3))
    again, _ = run(tmp_path / "again", Placement(recompute=True), Stack(dropout=0.3))
    assert same(kept, again)
    assert all("forward" not in block.__dict__ for block in blocks(again))


def test_recomputation_keeps_less(tmp_path: Path) -> None:
    """Counted: what autograd saves for the backward pass."""
    kept: dict[bool, int] = {}
    for recompute in (False, True):
        saved: list[int] = []
        net = Stack()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            run(tmp_path / str(recompute), Placement(recompute=recompute), net, steps=1)
        kept[recompute] = sum(saved)
    assert kept[True] < 0.8 * kept[False]


@pytest.mark.slow
def test_compiled_it_trains_the_same(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", Placement(), steps=4)
    compiled, _ = run(tmp_path / "compiled", Placement(compiled=True), steps=4)
    close(plain, compiled)


def test_no_sample_a_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch must be at least 1, got 0"):
        Placement(micro_batch=0)


def test_a_checkpoint_of_something_else_is_refused_by_tensor(tmp_path: Path) -> None:
    run(tmp_path, Placement())
    with pytest.raises(
        ValueError, match=r"checkpoint is of another Net: tensor 'blocks.0.0.bias' expected nothing, found \(16,\)"
    ):
        run(tmp_path, Placement(), Net(), steps=20)


def test_rollouts_from_sharded_weights_are_refused(tmp_path: Path) -> None:
    class Rollouts(Numbers):
        on_policy = True

    with pytest.raises(ShardedRollouts, match="TESSERA_SHARDING=replicated"):
        train(
            Stack(),
            Rollouts(8),
            config(steps=1),
            checkpoints=tmp_path,
            monitor=Silent(),
            seed=0,
            placement=Placement(sharding="sharded"),
        )


@pytest.mark.parametrize("micro", [None, 2])
def test_a_batch_without_samples_is_refused(tmp_path: Path, micro: int | None) -> None:
    class Empty:
        def batch(self, step: int) -> dict[str, Tensor]:
            return {name: tensor[: 8 if step < 3 else 0] for name, tensor in Numbers(8).batch(step).items()}

    with pytest.raises(EmptyBatch, match="batch of step 3 has no samples"):
        train(
            Stack(),
            Empty(),
            config(steps=5),
            checkpoints=tmp_path,
            monitor=Silent(),
            seed=0,
            placement=Placement(micro_batch=micro),
        )


@pytest.mark.slow
def test_a_damaged_part_is_passed_over(tmp_path: Path) -> None:
    """Of two processes' newest checkpoint, one file is torn: both go on from the one before, to the same end."""
    alone, _ = run(tmp_path / "alone", Placement(), schedule="constant", checkpoint_every=4)
    placement = Placement(sharding="sharded")
    torch.multiprocessing.spawn(_worker, (2, tmp_path, placement, 8, 4), nprocs=2)
    torn = tmp_path / "checkpoints" / "step-000000008" / "state-1.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    torch.multiprocessing.spawn(_worker, (2, tmp_path, placement, 12, 4), nprocs=2)
    state = torch.load(tmp_path / "rank1.pt")["state"]
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-5)


class Duel(Trainable):
    """A generator that shifts noise and a discriminator of two layers; every term as an adversary needs it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.generator = nn.Linear(6, 6)
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 1))

    def parameter_groups(self) -> list[dict]:
        mine = {"params": list(self.generator.parameters())}
        other = {"params": list(self.discriminator.parameters()), "player": "discriminator", "lr_scale": 0.5}
        return [mine, other]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        fake = self.generator(batch["x"])
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        adversarial = -functional_call(self.discriminator, frozen, (fake,)).mean()
        real, drawn = self.discriminator(batch["x"] + 1), self.discriminator(fake.detach())
        discriminator = (1 - real).relu().mean() + (1 + drawn).relu().mean()
        return {"loss": adversarial + discriminator, "adversarial": adversarial, "discriminator": discriminator}


class TestPlayers:
    def test_one_backward_gives_each_player_the_gradient_of_its_own_term(self) -> None:
        batch = Numbers(8).batch(0)
        once, apart = Duel(), Duel()
        once(batch)["loss"].backward()
        for term, mine, other in (
            ("adversarial", apart.generator, apart.discriminator),
            ("discriminator", apart.discriminator, apart.generator),
        ):
            other.requires_grad_(False)
            fake = apart.generator(batch["x"])
            if term == "adversarial":
                loss = -apart.discriminator(fake).mean()
            else:
                real, drawn = apart.discriminator(batch["x"] + 1), apart.discriminator(fake.detach())
                loss = (1 - real).relu().mean() + (1 + drawn).relu().mean()
            loss.backward()
            other.requires_grad_(True)
            assert all(p.grad is not None for p in mine.parameters())
        for (name, p), q in zip(once.named_parameters(), apart.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), name

    def test_it_is_two_optimizers(self, tmp_path: Path) -> None:
        """As with an AdamW of its own for each, clipped on its own, its learning rate its own."""
        trained = Duel()
        settings = config(steps=10, ema=None, schedule="constant", warmup=0, weight_decay=0.1, clip=0.05)
        train(trained, Numbers(8), settings, checkpoints=tmp_path, monitor=Silent(), seed=0)
        by_hand = Duel()
        parts = [(by_hand.generator, 1.0), (by_hand.discriminator, 0.5)]
        optimizers = [
            torch.optim.AdamW(part.parameters(), settings.lr * scale, settings.betas, weight_decay=0.1)
            for part, scale in parts
        ]
        for step in range(10):
            for optimizer in optimizers:
                optimizer.zero_grad()
            by_hand(Numbers(8).batch(step))["loss"].backward()
            for (part, _), optimizer in zip(parts, optimizers, strict=True):
                nn.utils.clip_grad_norm_(part.parameters(), 0.05)
                optimizer.step()
        close(trained, by_hand, 1e-6)

    def test_each_player_s_gradient_is_logged(self, tmp_path: Path) -> None:
        _, rows = run(tmp_path, Placement(), Duel())
        assert {"grad_norm", "grad_norm.discriminator"} <= set(rows.rows[5])


def _worker(rank: int, world: int, folder: Path, placement: Placement, steps: int, every: int = 5) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-{steps}", rank=rank, world_size=world
    )
    net, rows = run(folder / "checkpoints", placement, steps=steps, schedule="constant", checkpoint_every=every)
    torch.save({"state": net.state_dict(), "rows": rows.rows}, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    "placement",
    [
        Placement(sharding="sharded"),
        Placement(sharding="sharded", micro_batch=2, recompute=True),
        Placement(micro_batch=1),
    ],
    ids=["sharded", "sharded in pieces", "replicated in pieces"],
)
def test_two_processes_go_on_from_one_and_one_from_two(tmp_path: Path, placement: Placement) -> None:
    """4 steps by one process, 4 by two, 4 by one: as 12 by one."""
    alone, _ = run(tmp_path / "alone", Placement(), schedule="constant")
    run(tmp_path / "checkpoints", Placement(), steps=4, schedule="constant")
    torch.multiprocessing.spawn(_worker, (2, tmp_path, placement, 8), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for name, tensor in ranks[0]["state"].items():
        assert torch.equal(tensor, ranks[1]["state"][name]), name
        assert type(tensor) is Tensor
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    parts = sorted(newest.glob("*.safetensors"))
    if placement.sharding == "sharded":  # each has its half, and nothing has all
        sizes = [load_file(part)["method.blocks.0.0.weight"].shape[0] for part in parts]
        assert sizes == [alone.blocks[0][0].weight.shape[0] // 2] * 2
        assert 0.4 < parts[1].stat().st_size / parts[0].stat().st_size < 1
    else:
        assert [part.name for part in parts] == ["state-0.safetensors"]
    mended, _ = run(tmp_path / "checkpoints", Placement(), schedule="constant")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(mended.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)
