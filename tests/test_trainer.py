"""The one training loop: bit-exact continuation, checkpoints that survive damage, guards, data-parallel agreement."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from components.interfaces import Silent, Trainable
from components.training import checkpoints as storage
from components.training.config import Train
from components.training.schedule import learning_rate
from components.training.trainer import TrainingDiverged, train


class Net(Trainable):
    """A small regression with everything that may break a continuation: dropout, a frozen part, a buffer, a hook."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(6, 16).requires_grad_(False)
        self.norm, self.drop, self.out = nn.LayerNorm(16), nn.Dropout(dropout), nn.Linear(16, 1)
        self.register_buffer("noise", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.drop(self.norm(self.frozen(batch["x"]).tanh()))
        error = (self.out(hidden)[:, 0] - batch["y"]).square().mean()
        return {"loss": error + 0 * self.noise, "error": error}

    def after_step(self, step: int) -> None:
        self.noise.add_(torch.rand(()))


class Numbers:
    def __init__(self, size: int = 8, bad: range = range(0)) -> None:
        self.size, self.bad = size, bad

    def batch(self, step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(self.size, 6, generator=rng)
        return {"x": x, "y": x.sum(-1) * (math.nan if step in self.bad else 1)}


class Interrupted(Numbers):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def batch(self, step: int) -> dict[str, Tensor]:
        if step == self.at:
            raise KeyboardInterrupt
        return super().batch(step)


class Rows(Silent):
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.seen: list[tuple[int, int]] = []

    def log(self, step, metrics):
        self.rows[step] = {k: v for k, v in metrics.items() if k not in ("samples_per_second", "memory_gb")}

    def progress(self, done, total, note=""):
        self.seen.append((done, total))


def config(**changes) -> Train:
    return Train(
        **{"steps": 30, "batch_size": 8, "lr": 1e-2, "checkpoint_every": 7, "log_every": 5, "ema": 0.9, **changes}
    )


def run(folder: Path, settings: Train, batches=None, net: Net | None = None):
    net, rows = net or Net(), Rows()
    metrics = train(net, batches or Numbers(), settings, checkpoints=folder, monitor=rows, seed=3)
    return net, metrics, rows


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[n]) for n, x in a.state_dict().items())


@pytest.mark.slow
def test_it_learns_and_reports(tmp_path):
    net, metrics, rows = run(tmp_path, config(steps=300, ema=None, lr=3e-2), net=Net(dropout=0.0))
    assert metrics["loss"] < 0.5 * rows.rows[5]["loss"]
    assert list(rows.rows) == list(range(5, 301, 5))
    assert {"loss", "error", "lr", "grad_norm", "steps_skipped"} <= set(rows.rows[300])
    assert rows.seen[0] == (0, 300)
    assert rows.seen[-1] == (300, 300)
    assert not net.training
    assert torch.equal(net.frozen.weight, Net().frozen.weight)


@pytest.mark.parametrize("ema", [0.9, None])
def test_an_interrupted_training_continues_to_the_same_bits(tmp_path, ema):
    whole, metrics, rows = run(tmp_path / "whole", config(ema=ema))
    at = random.randrange(8, 30)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config(ema=ema), Interrupted(at))
    torch.manual_seed(random.randrange(1000))  # what the process did in between must not matter
    continued, again, later = run(tmp_path / "cut", config(ema=ema))
    assert later.seen[0][0] == at // 7 * 7, at
    assert same(whole, continued), at
    assert metrics == again, at
    assert all(rows.rows[step] == row for step, row in later.rows.items()), at


def test_averaged_weights_are_what_remains(tmp_path):
    plain, _, _ = run(tmp_path / "a", config(ema=None))
    averaged, _, _ = run(tmp_path / "b", config(ema=0.9))
    saved = storage.newest(tmp_path / "b", 30)
    assert torch.equal(saved.tensors["method.out.weight"], plain.out.weight)  # averaging does not disturb training
    assert torch.equal(saved.tensors["average.out.weight"], averaged.out.weight)
    assert torch.equal(averaged.noise, plain.noise)  # buffers (codebooks) stay as training left them
    assert torch.equal(saved.tensors["method.noise"], plain.noise)
    assert "average.noise" not in saved.tensors
    assert not torch.equal(plain.out.weight, averaged.out.weight)


def test_a_finished_training_returns_at_once(tmp_path):
    first, metrics, _ = run(tmp_path, config())
    second, again, rows = run(tmp_path, config(), Interrupted(30))
    assert same(first, second)
    assert metrics == again
    assert not rows.rows


def test_more_steps_continue_and_fewer_start_anew(tmp_path):
    run(tmp_path, config(steps=30))
    _, _, rows = run(tmp_path, config(steps=40))
    assert list(rows.rows) == [35, 40]
    _, _, rows = run(tmp_path, config(steps=20))  # what is there was made for another learning rate
    assert list(rows.rows) == [5, 10, 15, 20]


@pytest.mark.parametrize("damage", ["cut", "flip", "number", "missing", "json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    whole, metrics, _ = run(tmp_path, config())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000028", "step-000000030"]
    newest = tmp_path / "step-000000030"
    tensors, about = newest / "state-0.safetensors", newest / "state.json"
    data = bytearray(tensors.read_bytes())
    if damage == "cut":
        tensors.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-3] ^= 1
        tensors.write_bytes(data)
    elif damage == "number":
        about.write_text(about.read_text().replace('"step": 30', '"step": 29'))
    elif damage == "json":
        about.write_text("[1]")
    else:
        tensors.unlink()
    again, later, rows = run(tmp_path, config())
    assert list(rows.rows) == [30]
    assert same(whole, again)
    assert metrics == later
    assert storage.newest(tmp_path, 30).step == 30


def test_a_step_that_is_not_finite_is_left_out(tmp_path):
    net, metrics, _ = run(tmp_path, config(), Numbers(bad=range(10, 13)))
    assert metrics["steps_skipped"] == 3
    assert math.isfinite(metrics["loss"])
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())


def test_several_steps_in_a_row_end_the_training_with_a_diagnosis(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"Net: .* up to step 14 of 30.*out\.weight.*train\.lr"):
        run(tmp_path, config(), Numbers(bad=range(10, 99)))


def test_nothing_to_train_is_an_error(tmp_path):
    net = Net()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that can be trained"):
        run(tmp_path, config(), net=net)


def test_bf16_trains_and_keeps_weights_in_fp32(tmp_path):
    net, metrics, _ = run(tmp_path, config(precision="bf16"))
    assert math.isfinite(metrics["loss"])
    assert {t.dtype for t in net.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_learning_rate(schedule):
    final = 0.0 if schedule == "constant" else 0.1
    settings = config(steps=100, warmup=9, schedule=schedule, final_lr=final)
    rates = [learning_rate(settings, step) / settings.lr for step in range(100)]
    assert rates[:9] == pytest.approx([0.1 * n for n in range(1, 10)])
    assert rates[9] == 1
    assert rates[-1] == pytest.approx(1 if schedule == "constant" else 0.1)
    assert all(b <= a for a, b in itertools.pairwise(rates[9:]))
    if schedule == "wsd":
        assert rates[79] == 1 > rates[80]


@pytest.mark.parametrize(
    "wrong", [{"steps": -1}, {"lr": -1}, {"ema": 1.0}, {"learning_rate": 1}, {"precision": "fp16"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        config(**wrong)


def _worker(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    net, metrics, rows = run(folder / "checkpoints", config(), net=Net(dropout=0.0))
    torch.save({"state": net.state_dict(), "metrics": metrics, "rows": rows.rows}, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    single, metrics, rows = run(tmp_path / "single", config(), net=Net(dropout=0.0))
    torch.multiprocessing.spawn(_worker, (2, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for name, tensor in single.state_dict().items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name]), name
        torch.testing.assert_close(ranks[0]["state"][name], tensor, atol=1e-5, rtol=1e-5)
    assert ranks[0]["metrics"] == pytest.approx(metrics, abs=1e-5)
    assert not ranks[1]["rows"]
    assert ranks[0]["rows"][30]["loss"] == pytest.approx(rows.rows[30]["loss"], abs=1e-5)
