"""Stage `networks`: classifiers that rewards and metrics refer to (`@judge`), trained on the run's own data.

A network that judges must not be the one that was optimized against. Each network has its own seed, derived from the
recipe's seed and its name, for initialization, data order and augmentation, and the recipe gives each its own width; no
network sees the held-out images. They share the training images, so an error that comes from these is common to both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import flow

from flows.context import StageContext, StageFailed
from flows.data import TrainingImages
from flows.pipeline import label, walk
from flows.request import Request
from flows.runs import references

if TYPE_CHECKING:
    import numpy as np

    from components.interfaces import FeatureExtractor, Files, Monitor

_JUDGED = 50_000  # held-out pictures that measure a network


def derived_seed(seed: int, name: str) -> int:
    """An independent seed for a named part of a run, in [0, 2^31)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def body(ctx: StageContext) -> dict[str, float]:
    import torch

    from components import artifact, registry
    from components.data.shards import load_split
    from components.interfaces import FeatureExtractor
    from components.training.config import Train
    from components.training.trainer import train
    from flows import initial

    dataset = ctx.files("dataset")
    images, classes = labeled_images(dataset)
    heldout = load_split(dataset, "held_out", most=_JUDGED)

    sections: dict[str, dict[str, Any]] = ctx.section("networks")
    total = sum(section["train"]["steps"] for section in sections.values())
    metrics: dict[str, float] = {}
    done = 0
    for name, section in sections.items():
        seed = derived_seed(ctx.seed, f"networks.{name}")
        spec = registry.resolve(FeatureExtractor, initial.component(section))
        config = Train.model_validate(section["train"])
        torch.manual_seed(seed)
        network = spec.build(images.image, classes)
        initial.start(ctx, network, section, FeatureExtractor)
        part = _Part(ctx, name, done, total)
        with images.batches(config, seed, network.transforms) as batches:
            last = train(
                network,
                batches,
                config,
                checkpoints=ctx.checkpoints / name,
                monitor=part,
                seed=seed,
                placement=ctx.placement,
            )
        network.eval()
        artifact.save(ctx.output / name, FeatureExtractor, spec.dump(), (images.image, classes), network)
        metrics |= {f"{name}.{key}": value for key, value in last.items()}
        metrics[f"{name}.heldout_accuracy"] = accuracy(network, heldout.images, heldout.labels)
        done += config.steps
    return metrics


def labeled_images(dataset: Files) -> tuple[TrainingImages, int]:
    """The pictures of the train and target splits that carry a class of the target, each alike, and the number of these
    classes, which come first among the data set's; all classes where there is no target.

    Raises StageFailed when no image has a label."""
    import numpy as np

    from components.data.shards import describe, load_labels

    classes = len(describe(dataset)["target_classes"])
    weights = np.concatenate([load_labels(dataset, split) < classes for split in ("train", "target")]).astype(float)
    if not weights.any():
        raise StageFailed("networks are trained on labels, and no image has one; add labels, or set `networks: {}`")
    return TrainingImages(dataset, weights), classes


def accuracy(network: FeatureExtractor, images: np.ndarray, labels: np.ndarray, batch_size: int = 512) -> float:
    """The share of labeled images that the network gets right."""
    import torch

    from components.data.batches import to_float

    right = total = 0
    device = next(network.parameters()).device
    for start in range(0, len(images), batch_size):
        truth = torch.as_tensor(labels[start : start + batch_size], device=device)
        with torch.no_grad():
            logits = network.logits(to_float(images[start : start + batch_size]).to(device))
        known = truth < logits.shape[1]
        right += int((logits.argmax(-1) == truth)[known].sum())
        total += int(known.sum())
    return right / max(total, 1)


def load_networks(ctx: StageContext, section: str) -> dict[str, FeatureExtractor]:
    """The run's trained networks that this section refers to as `@name`, frozen."""
    from components import artifact
    from components.interfaces import FeatureExtractor

    networks = {}
    for name in sorted(references(ctx.section(section))):
        networks[name] = artifact.load(ctx.input("networks") / name, FeatureExtractor)
        networks[name].requires_grad_(False)
    return networks


@dataclass(frozen=True)
class _Part:
    """Several trainings in one stage: their steps follow one another in progress and step metrics."""

    monitor: Monitor
    name: str
    before: int
    total: int

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.monitor.progress(self.before + done, self.total, f"{self.name} {note}".strip())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        named = {f"{self.name}.{key}": value for key, value in metrics.items()}
        self.monitor.log(self.before + step, {**named, **({"loss": metrics["loss"]} if "loss" in metrics else {})})


@flow(name="networks", flow_run_name=label)
def networks(request: Request) -> dict[str, dict[str, float]]:
    """Train the further networks of a recipe."""
    return walk(request, until="networks")
