"""Codebooks that train on two processes, each with half of every batch: the same on both, and those of one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components import registry
from components.interfaces import Quantizer, Silent, Trainable
from components.quantizers.additive import Additive
from components.training.config import Train
from components.training.trainer import train

DIM, STEPS = 6, 12
Config = Mapping[str, Any]
NORMAL = {"initialization": {"type": "normal"}}
AVERAGE, LEARNED = {"type": "moving_average", **NORMAL}, {"type": "learned", **NORMAL}
BRIDGE = {"type": "bridge", "patch": 2, "width": 8, "heads": 2}
VQ: Config = {"type": "vq", "codebook_size": 16}
RVQ: Config = {"type": "rvq", "codebook_size": 16, "stages": 2}
PRODUCT: Config = {"type": "product", "codebook_size": 16, "groups": 2}
ROTATED: Config = {"type": "rotated_product", "codebook_size": 16, "groups": 2, "rotation_decay": 0.9}
ADDITIVE: Config = {"type": "additive", "codebook_size": 8, "codebooks": 2, "decay": 0.9}

#: nothing is drawn while they train, so that two processes must do what one does
ALIKE: dict[str, Config] = {
    "moving_average": VQ | {"codebook": AVERAGE, "revival": None},
    "moving_average of directions": VQ | {"codebook": AVERAGE, "assignment": {"type": "cosine"}, "revival": None},
    "learned": VQ | {"codebook": LEARNED, "revival": None},
    "linear_map": VQ | {"codebook": {"type": "linear_map"}, "revival": None},
    "bridge": VQ | {"codebook": BRIDGE, "revival": None},
    "rvq": RVQ | {"codebook": AVERAGE, "revival": None},
    "product": PRODUCT | {"codebook": AVERAGE, "revival": None},
    "rotated_product": ROTATED | {"codebook": AVERAGE, "revival": None},
    # What one table gains in every code and the other loses changes no sum; only the ridge holds it, and with the usual one
    # it makes 1e-4 of what rounding is.
    "additive": ADDITIVE | {"ridge": 1.0},
}
#: codes start from latents and take the place of latents: which ones depends on how many processes draw them
DRAWN: dict[str, Config] = {
    "moving_average from latents": VQ,
    "moving_average from k-means": VQ | {"codebook": {"type": "moving_average", "initialization": {"type": "kmeans"}}},
    "learned from latents": VQ | {"codebook": {"type": "learned", "initialization": {"type": "first_batch"}}},
    "rvq from latents": RVQ,
    "product from latents": PRODUCT,
    "rotated_product from latents": ROTATED,
    "additive from latents": ADDITIVE,
}


class Coder(Trainable):
    """A layer, a quantizer, a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.down, self.up = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        config = (ALIKE | DRAWN)[name]
        if "revival" not in config and config["type"] != "additive":
            config = {**config, "revival": {"type": "replace_unused", "below": 0.9}}  # many, in every step
        self.quantizer = registry.build(Quantizer, config, DIM)
        if name in ALIKE and isinstance(self.quantizer, Additive):
            self.quantizer.filled.fill_(True)  # its random table stays

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        result = self.quantizer(self.down(batch["x"]))
        error = F.mse_loss(self.up(result.latents), batch["x"])
        return {"loss": error + sum(result.losses.values()), "error": error}

    def before_step(self, step: int) -> None:
        self.quantizer.before_step(step)

    def after_step(self, step: int) -> None:
        self.quantizer.after_step(step)


class Latents:
    """The second half of a batch is from elsewhere than the first."""

    def batch(self, step: int) -> dict[str, Tensor]:
        x = torch.randn(16, 9, DIM, generator=torch.Generator().manual_seed(step))
        x[8:, :, 0] += 3
        return {"x": x}


def run(name: str, folder: Path) -> dict[str, Tensor]:
    coder = Coder(name)
    settings = Train(steps=STEPS, batch_size=16, lr=1e-3, checkpoint_every=STEPS, log_every=STEPS, ema=None)
    train(coder, Latents(), settings, checkpoints=folder / name, monitor=Silent(), seed=3)
    return coder.state_dict()


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({name: run(name, folder) for name in ALIKE | DRAWN}, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_worker, (folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE | DRAWN)
def test_both_processes_have_the_same(two: list[dict[str, dict[str, Tensor]]], name: str) -> None:
    first, second = (rank[name] for rank in two)
    start = Coder(name).state_dict()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    counts = [key for key in first if key.endswith("counts")]
    assert counts
    assert all(not torch.equal(first[key], start[key]) for key in counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_train_what_one_does(two: list[dict[str, dict[str, Tensor]]], name: str, tmp_path: Path) -> None:
    for key, tensor in run(name, tmp_path).items():
        torch.testing.assert_close(two[0][name][key], tensor, atol=1e-4, rtol=1e-4, msg=key)
