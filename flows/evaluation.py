"""Stage `evaluation`: how well tokenizer and generator do, on held-out images that no training saw.

1. Reconstruction: the held-out images through the tokenizer.
2. `sampled`: the final generator as the recipe's `sampling` draws it, the classes of the held-out images evenly; these
   metrics have plain names.
3. With post-training, both generators without guidance at temperature 1: `before.*` and `after.*`, and what
   reinforcement changed as `rl.*`. Guidance would hide it, and the same random numbers serve both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from components import yamlio
from flows.context import StageContext
from flows.networks import derived_seed, load_networks
from flows.pipeline import label, walk
from flows.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from components.interfaces import (
        EvaluationBatch,
        Generator,
        Metric,
        Networks,
        Sampler,
        Tokenizer,
    )
    from components.registry import Spec

COLUMNS = 10  # samples of a class in the figures
_MEASURED = 50_000  # held-out pictures that are looked at


def body(ctx: StageContext) -> dict[str, float]:
    from components import artifact, registry
    from components.interfaces import Generator, Sampler, Tokenizer
    from components.sampling.ancestral import Ancestral
    from flows import pictures

    bench = Bench(ctx)
    tokenizer = artifact.load(ctx.input("tokenizer"), Tokenizer).to(bench.device)
    metrics, reconstructions = bench.reconstruction(tokenizer)
    ctx.figure("reconstructions", pictures.pairs(bench.heldout[: 2 * COLUMNS], reconstructions[: 2 * COLUMNS], COLUMNS))
    ctx.progress(1, 4, "reconstructions")

    stages = [name for name in ("generator", "posttraining") if ctx.has(name)]
    generators = {name: artifact.load(ctx.input(name), Generator).to(bench.device) for name in stages}
    if stages:
        final = generators[stages[-1]]
        sampling = registry.build(Sampler, ctx.section("sampling") or {"type": "ancestral"})
        sampled, images = bench.samples(tokenizer, final, sampling)
        ctx.figure("samples", pictures.rows(bench.by_class(images, final)))
        ctx.progress(2, 4, "samples")
        metrics |= sampled
    if ctx.has("posttraining"):
        plain = Ancestral(temperature=1.0, guidance=1.0)
        before, images_before = bench.samples(tokenizer, generators["generator"], plain)
        ctx.progress(3, 4, "samples before post-training")
        after, images_after = bench.samples(tokenizer, final, plain)
        both = (bench.by_class(images, final) for images in (images_before, images_after))
        ctx.figure("before_after", pictures.beside(*both))
        ctx.table("reinforcement", [{"metric": k, "before": before[k], "after": after[k]} for k in before])
        metrics |= {f"before.{k}": v for k, v in before.items()} | {f"after.{k}": v for k, v in after.items()}
        metrics |= reinforcement(before, after)

    ctx.table("metrics", _rows(bench.specs, metrics))
    temporary = ctx.output / ".metrics.json"
    temporary.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, ctx.output / "metrics.json")
    return metrics


class Bench:
    """What every model of a run is measured with: the recipe's metrics, their networks, and the held-out images."""

    def __init__(self, ctx: StageContext) -> None:
        import torch

        from components import registry
        from components.data.batches import to_float
        from components.data.shards import describe, load_split
        from components.interfaces import Metric

        section = ctx.section("evaluation")
        self.size, self.count, self.seed = int(section["batch_size"]), int(section["samples"]), ctx.seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.networks = {name: network.to(self.device) for name, network in load_networks(ctx, "evaluation").items()}
        self.specs = [registry.resolve(Metric, value) for value in section["metrics"]]
        split = load_split(ctx.files("dataset"), "held_out", most=_MEASURED)
        self.heldout = to_float(split.images).to(self.device)
        self.labels = torch.as_tensor(split.labels, device=self.device)
        self.classes = len(describe(ctx.files("dataset"))["target_classes"])  # they come first

    def reconstruction(self, tokenizer: Tokenizer) -> tuple[dict[str, float], Tensor]:
        """Metrics of the held-out images through the tokenizer, and what came out, [n, C, H, W]."""
        import torch

        from components.interfaces import EvaluationBatch

        with torch.no_grad():
            tokens = torch.cat([tokenizer.encode(self.heldout[p]) for p in self._parts(len(self.heldout))])
            images = torch.cat([tokenizer.decode(tokens[p]).clamp(-1, 1) for p in self._parts(len(tokens))])
        pairs = [
            EvaluationBatch(
                heldout=self.heldout[p],
                heldout_labels=self.labels[p],
                reconstructions=images[p],
                tokens=tokens[p],
                numbers=torch.arange(len(images))[p],
            )
            for p in self._parts(len(images))
        ]
        return measure(self.specs, self.networks, tokenizer, None, pairs), images

    def samples(self, tokenizer: Tokenizer, generator: Generator, sampler: Sampler) -> tuple[dict[str, float], Tensor]:
        """Metrics of drawn images, the target's classes evenly, and the images, [n, C, H, W]; the same random numbers for
        every generator."""
        import torch

        from components.interfaces import EvaluationBatch

        from_seed = torch.Generator(self.device).manual_seed(derived_seed(self.seed, "evaluation"))
        wanted = self._wanted(generator)
        images = torch.cat([
            tokenizer.decode(sampler.sample(generator, wanted[p], from_seed)).detach().clamp(-1, 1)
            for p in self._parts(self.count)
        ])  # fmt: skip
        real = [
            EvaluationBatch(
                heldout=self.heldout[p], heldout_labels=self.labels[p], numbers=torch.arange(len(self.heldout))[p]
            )
            for p in self._parts(len(self.heldout))
        ]
        drawn = [
            EvaluationBatch(
                samples=images[p],
                sample_labels=wanted[p] if self.classes else None,
                numbers=torch.arange(self.count)[p],
            )
            for p in self._parts(self.count)
        ]
        return measure(self.specs, self.networks, tokenizer, generator, [*real, *drawn]), images

    def by_class(self, images: Tensor, generator: Generator) -> list[Tensor]:
        """The first samples of each class, for one row a class."""
        wanted = self._wanted(generator)
        return [images[wanted == label][:COLUMNS] for label in wanted.unique()]

    def _wanted(self, generator: Generator) -> Tensor:
        """Labels [n]: the target's classes in turn; the null class where there are none."""
        import torch

        positions = torch.arange(self.count, device=self.device)
        return positions % self.classes if self.classes else torch.full_like(positions, generator.classes)

    def _parts(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.size) for start in range(0, count, self.size))


def measure(
    specs: Iterable[Spec[Metric]],
    networks: Networks,
    tokenizer: Tokenizer,
    generator: Generator | None,
    batches: Iterable[EvaluationBatch],
) -> dict[str, float]:
    """Fresh metrics over the batches; a metric that found nothing to measure in them gives nothing."""
    metrics = [choice.build(networks, tokenizer.spec) for choice in specs]
    for metric in metrics:
        metric.use(tokenizer, generator)
    for batch in batches:
        for metric in metrics:
            metric.update(batch)
    return {name: value for metric in metrics for name, value in metric.compute().items()}


def measure_bundle(bundle: Path, run: Path) -> dict[str, float]:
    """The plain metrics of a registered model on the held-out data of `run`, by that run's metrics and judges.

    Raises ServingError for a model of pictures of another size or other classes."""
    from components import registry
    from components.data.shards import describe
    from components.interfaces import Sampler
    from flows import serving

    recipe = yamlio.load(run / "recipe.yaml")
    ctx = StageContext(run=run, stage="evaluation", recipe=recipe, output=run / "work", work=run / "work")
    bench, model = Bench(ctx), serving.load_folder(bundle)
    channels, size = bench.heldout.shape[1], bench.heldout.shape[-1]
    about = describe(ctx.files("dataset"))
    if (model.image.channels, model.image.size) != (channels, size) or model.target_classes != about["target_classes"]:
        raise serving.ServingError(
            f"{bundle.name} cannot be measured on the data of run '{run.name}': its pictures are {model.image.size} pixels "
            f"wide with {model.image.channels} channels and {len(model.target_classes)} classes, the data's are {size} with "
            f"{channels} and {bench.classes}"
        )
    tokenizer = model.tokenizer.to(bench.device)
    metrics, _ = bench.reconstruction(tokenizer)
    if model.generator is not None:
        sampler = registry.build(Sampler, model.sampling)
        metrics |= bench.samples(tokenizer, model.generator.to(bench.device), sampler)[0]
    return metrics


def reinforcement(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What post-training changed, as far as the recipe measures it.

    `rl.error_removed` is the share of the class error that is gone, 0 where there was none; `rl.diversity_ratio` is
    diversity after over before."""
    change: dict[str, float] = {}
    if "class_accuracy" in before:
        error_before, error_after = 1 - before["class_accuracy"], 1 - after["class_accuracy"]
        change["rl.class_error_before"], change["rl.class_error_after"] = error_before, error_after
        change["rl.error_removed"] = 1 - error_after / error_before if error_before > 0 else 0.0
    if before.get("diversity"):
        change["rl.diversity_ratio"] = after["diversity"] / before["diversity"]
    return change


def _rows(specs: list[Spec[Metric]], metrics: dict[str, float]) -> list[dict[str, Any]]:
    """The table of the report: main values only (classes and intervals stand in metrics.json)."""
    from components import registry
    from components.interfaces import Metric

    better = {choice.type: registry.lookup(Metric, choice.type).better for choice in specs}
    rows = []
    for name, value in metrics.items():
        kind = next((t for t in better if name == t or name.startswith(f"{t}_")), "")
        if kind:
            interval = [metrics.get(f"{name}.{end}") for end in ("low", "high")]
            rows.append(
                {"metric": name, "value": value, "low": interval[0], "high": interval[1], "better": better[kind]}
            )
    return rows


@flow(name="evaluation", flow_run_name=label)
def evaluation(request: Request) -> dict[str, dict[str, float]]:
    """Measure the models of a recipe on held-out data, and make what it needs."""
    return walk(request, until="evaluation")
