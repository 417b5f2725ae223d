"""The first steps of the trainings of our recipes, held against recorded losses: a guard against silent change.

A change that is meant to change them records them anew, `python -m tests.test_loss_traces`, and the difference in
`tests/data/loss-traces.json` shows what it did. The tolerance is for other processors' orders of sums; a wrong sign, a
loss weighed twice, another initialization are far outside it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from components import registry, yamlio
from components.data.batches import ImageBatches, TokenBatches
from components.interfaces import (
    Batches,
    FeatureExtractor,
    Generator,
    ImageFormat,
    PostTraining,
    Silent,
    Tokenizer,
    Trainable,
)
from components.training.config import Train
from components.training.trainer import train

ROOT = Path(__file__).parent.parent
RECORDED = Path(__file__).parent / "data" / "loss-traces.json"
IMAGE, CLASSES, STEPS, SEED = ImageFormat(16, 1), 10, 24, 0
Built = tuple[Trainable, Batches, dict[str, object]]


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 1, 16, 16] and labels"""
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = (found.images * 255 / 16).round().astype(np.uint8).repeat(2, 1).repeat(2, 2)[:, None]
    return pictures, found.target.astype(np.int64)


def tiles() -> ImageBatches:
    """A photograph in 64 pieces of 64 pixels, 16 at a time."""
    from skimage.data import astronaut

    whole = np.asarray(astronaut())  # [512, 512, 3]
    pieces = whole.reshape(8, 64, 8, 64, 3).transpose(0, 2, 4, 1, 3).reshape(64, 3, 64, 64)
    return ImageBatches(np.ascontiguousarray(pieces), np.zeros(64, np.int64), None, 16, SEED, ())


def section(recipe: str, *path: str) -> tuple[dict[str, object], dict[str, object]]:
    """(a component's configuration, its training) as it stands in a recipe"""
    found = yamlio.load(ROOT / "recipes" / f"{recipe}.yaml")
    for name in path:
        found = found[name]
    own = {key: value for key, value in found.items() if key not in ("train", "transforms")}
    return own, found["train"]


def pictures(settings: Mapping[str, object]) -> ImageBatches:
    images, labels = digits()
    return ImageBatches(images, labels, np.full(len(images), 1 / len(images)), settings["batch_size"], SEED, ())


def tokenizer(recipe: str) -> Built:
    own, settings = section(recipe, "tokenizer")
    return registry.build(Tokenizer, own, IMAGE), pictures(settings), settings


def network(recipe: str) -> Built:
    own, settings = section(recipe, "networks", "judge")
    own.pop("transforms", None)
    return registry.build(FeatureExtractor, own, IMAGE, CLASSES), pictures(settings), settings


def tokens(recipe: str) -> tuple[Tokenizer, np.ndarray]:
    made = trained(lambda: tokenizer(recipe))[0]
    assert isinstance(made, Tokenizer)
    images = torch.from_numpy(digits()[0]).float() / 127.5 - 1
    with torch.no_grad():
        return made, made.encode(images).numpy()


def generator(recipe: str) -> Built:
    own, settings = section(recipe, "generator")
    made, codes = tokens(recipe)
    torch.manual_seed(SEED)
    weights = np.full(len(codes), 1 / len(codes))
    model = registry.build(Generator, own, made.spec, CLASSES)
    return model, TokenBatches(codes, digits()[1], weights, settings["batch_size"], SEED), settings


def posttraining(recipe: str) -> Built:
    own, settings = section(recipe, "posttraining")
    settings = settings | {"batch_size": 64}
    made, _ = tokens(recipe)
    policy = trained(lambda: generator(recipe))[0]
    judge = trained(lambda: network(recipe))[0]
    torch.manual_seed(SEED)
    method = registry.build(PostTraining, own, policy, made, {"reward": judge})
    return method, method.batches(range(CLASSES), 64, SEED), settings


def own_pictures() -> Built:
    own, settings = section("tokenizer", "tokenizer")
    return registry.build(Tokenizer, own, ImageFormat(64, 3)), tiles(), settings


TRAININGS: dict[str, Callable[[], Built]] = {
    "quickstart tokenizer": lambda: tokenizer("quickstart"),
    "quickstart judge": lambda: network("quickstart"),
    "quickstart generator": lambda: generator("quickstart"),
    "quickstart posttraining": lambda: posttraining("quickstart"),
    "tokenizer": own_pictures,
}


#: of 1,024 codes and 16 pictures a step many are about equally near: from the third value on rounding decides
COMPARED = {"tokenizer": 2}


class Rows(Silent):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.losses.append(metrics["loss"])


def trained(build: Callable[[], Built]) -> tuple[Trainable, list[float]]:
    """After the first steps of a training, as it is set up in its recipe but for its length."""
    torch.manual_seed(SEED)
    method, batches, settings = build()
    config = Train.model_validate(settings | {"log_every": 4, "steps": STEPS, "schedule": "constant"})
    rows = Rows()
    with tempfile.TemporaryDirectory() as folder:
        train(method, batches, config, checkpoints=Path(folder), monitor=rows, seed=SEED)
    return method, rows.losses


def losses(name: str) -> list[float]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return trained(TRAININGS[name])[1][: COMPARED.get(name)]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TRAININGS)
def test_the_losses_are_those_recorded(name: str) -> None:
    recorded = json.loads(RECORDED.read_text())[name]
    assert losses(name) == pytest.approx(recorded, rel=2e-3, abs=2e-4)


def test_the_guard_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commitment of twice the weight, which nobody would see in the curve."""
    from components.quantizers.regularizers.commitment import Commitment

    call = Commitment.__call__
    monkeypatch.setattr(Commitment, "__call__", lambda *given: 2 * call(*given))
    recorded = json.loads(RECORDED.read_text())
    name = "quickstart tokenizer"
    assert losses(name) != pytest.approx(recorded[name], rel=2e-3, abs=2e-4)


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({name: losses(name) for name in TRAININGS}, indent=1) + "\n")
    print(f"wrote {RECORDED}")
