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
from typing import TYPE_CHECKING, Any

from prefect import flow

from flows.context import StageContext
from flows.networks import derived_seed, load_networks
from flows.pipeline import label, walk
from flows.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from components.interfaces import EvaluationBatch, Metric, Networks, Tokenizer, TokenSpec
    from components.registry import Spec

COLUMNS = 10  # samples of a class in the figures


def body(ctx: StageContext) -> dict[str, float]:
    import torch

    from components import artifact, registry
    from components.data.batches import to_float
    from components.data.shards import load_split
    from components.interfaces import EvaluationBatch, Metric, Tokenizer
    from flows import pictures

    section = ctx.section("evaluation")
    size = int(section["batch_size"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = artifact.load(ctx.input("tokenizer"), Tokenizer).to(device)
    networks = {name: network.to(device) for name, network in load_networks(ctx).items()}
    specs = [registry.resolve(Metric, value) for value in section["metrics"]]

    split = load_split(ctx.input("dataset"), "held_out")
    heldout, labels = to_float(split.images).to(device), torch.as_tensor(split.labels, device=device)
    reconstructions, tokens = _reconstruct(tokenizer, heldout, size)
    pairs = [
        EvaluationBatch(
            heldout=heldout[p], heldout_labels=labels[p], reconstructions=reconstructions[p], tokens=tokens[p]
        )
        for p in _parts(len(heldout), size)
    ]
    ctx.progress(1, 4, "reconstructions")
    metrics = measure(specs, networks, tokenizer.spec, pairs)
    ctx.figure("reconstructions", pictures.pairs(heldout[: 2 * COLUMNS], reconstructions[: 2 * COLUMNS], COLUMNS))
    if ctx.has("generator"):
        metrics |= _samples(ctx, specs, networks, tokenizer, heldout, labels)

    ctx.table("metrics", _rows(specs, metrics))
    temporary = ctx.output / ".metrics.json"
    temporary.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, ctx.output / "metrics.json")
    return metrics


def measure(
    specs: Iterable[Spec[Metric]], networks: Networks, spec: TokenSpec, batches: Iterable[EvaluationBatch]
) -> dict[str, float]:
    """Fresh metrics over the batches; a metric that found nothing to measure in them gives nothing."""
    metrics = [choice.build(networks, spec) for choice in specs]
    for batch in batches:
        for metric in metrics:
            metric.update(batch)
    return {name: value for metric in metrics for name, value in metric.compute().items()}


def _samples(
    ctx: StageContext,
    specs: list[Spec[Metric]],
    networks: Networks,
    tokenizer: Tokenizer,
    heldout: Tensor,
    labels: Tensor,
) -> dict[str, float]:
    """Everything that is measured on drawn samples."""
    import torch

    from components import artifact, registry
    from components.data.shards import describe
    from components.interfaces import EvaluationBatch, Generator, Sampler
    from components.sampling.ancestral import Ancestral
    from flows import pictures

    section = ctx.section("evaluation")
    size, count = int(section["batch_size"]), int(section["samples"])
    stages = ["generator"] + (["posttraining"] if ctx.has("posttraining") else [])
    generators = {s: artifact.load(ctx.input(s), Generator).to(heldout.device) for s in stages}
    final = generators[stages[-1]]
    classes = len(describe(ctx.input("dataset"))["target_classes"])  # they come first
    labeled = classes > 0
    asked = (
        torch.arange(classes, device=heldout.device)
        if labeled
        else torch.tensor([final.classes], device=heldout.device)
    )
    wanted = asked[torch.arange(count, device=heldout.device) % len(asked)]

    def drawn(generator: Generator, sampler: Sampler) -> tuple[dict[str, float], Tensor]:
        rng = torch.Generator(heldout.device).manual_seed(derived_seed(ctx.seed, "evaluation"))
        images = torch.cat([
            tokenizer.decode(sampler.sample(generator, wanted[p], rng)).detach().clamp(-1, 1)
            for p in _parts(count, size)
        ])  # fmt: skip
        real = [EvaluationBatch(heldout=heldout[p], heldout_labels=labels[p]) for p in _parts(len(heldout), size)]
        fake = [
            EvaluationBatch(samples=images[p], sample_labels=wanted[p] if labeled else None)
            for p in _parts(count, size)
        ]
        return measure(specs, networks, tokenizer.spec, [*real, *fake]), images

    def rows(images: Tensor) -> list[Tensor]:
        """One row for each class."""
        return [images[wanted == label][:COLUMNS] for label in asked]

    plain = Ancestral(temperature=1.0, guidance=1.0)
    metrics, images = drawn(final, registry.build(Sampler, ctx.section("sampling") or {"type": "ancestral"}))
    ctx.figure("samples", pictures.rows(rows(images)))
    ctx.progress(2, 4, "samples")
    if not ctx.has("posttraining"):
        return metrics
    before, images_before = drawn(generators["generator"], plain)
    ctx.progress(3, 4, "samples before post-training")
    after, images_after = drawn(generators["posttraining"], plain)
    ctx.figure("before_after", pictures.beside(rows(images_before), rows(images_after)))
    change = reinforcement(before, after)
    ctx.table("reinforcement", [{"metric": k, "before": before[k], "after": after[k]} for k in before])
    metrics |= {f"before.{k}": v for k, v in before.items()} | {f"after.{k}": v for k, v in after.items()}
    return metrics | change


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


def _reconstruct(tokenizer: Tokenizer, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """images [n, C, H, W] -> reconstructions [n, C, H, W], tokens [n, L]"""
    import torch

    with torch.no_grad():
        tokens = torch.cat([tokenizer.encode(images[p]) for p in _parts(len(images), size)])
        return torch.cat([tokenizer.decode(tokens[p]).clamp(-1, 1) for p in _parts(len(tokens), size)]), tokens


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


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
