"""The generator, pretrained on the tokens."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from prefect import flow

from flows.context import StageContext
from flows.data import load_tokens, token_batches
from flows.pipeline import label, walk
from flows.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from components.interfaces import Generator

_JUDGED = 100_000  # samples of a split whose likelihood is measured


def body(ctx: StageContext) -> dict[str, float]:
    """Trains the recipe's generator; writes it, and how well it predicts tokens it has not seen."""
    import numpy as np
    import torch

    from components import artifact, registry
    from components.interfaces import Generator, TokenSpec
    from components.training.config import Train
    from components.training.trainer import train
    from flows import initial

    section = ctx.section("generator")
    files = ctx.files("tokens")
    about = json.loads(files.path("tokens.json").read_text())
    spec = TokenSpec.of(about["spec"])
    chosen = initial.component(section)
    classes = len(about["classes"])
    torch.manual_seed(ctx.seed)
    generator = registry.build(Generator, chosen, spec, classes)
    initial.start(ctx, generator, section, Generator)
    config = Train(**section["train"])
    batches = token_batches(ctx, config)
    last = train(
        generator, batches, config, checkpoints=ctx.checkpoints, monitor=ctx, seed=ctx.seed, placement=ctx.placement
    )
    artifact.save(ctx.output, Generator, chosen, (spec, classes), generator)
    metrics = {
        **{name: last[name] for name in ("loss",) if name in last},
        "parameters": sum(p.numel() for p in generator.parameters()),
    }
    for split in ("target", "held_out"):
        drawn, asked_for = load_tokens(files, split, most=_JUDGED)
        if len(drawn):
            tokens, labels = torch.from_numpy(drawn.astype(np.int64)), torch.from_numpy(asked_for)
            name, value = judged(generator, tokens, labels)
            metrics[f"{split}.{name}"] = value
    return metrics


def judged(generator: Generator, tokens: Tensor, labels: Tensor) -> tuple[str, float]:
    """What tokens [n, L] it has not seen cost: exactly, in bits a token, where the generator has a likelihood; otherwise
    its training loss, with the same random numbers each time."""
    import torch

    from components.interfaces import Autoregressive

    device = next(generator.parameters()).device  # where the training left it
    parts = [(t.to(device), asked.to(device)) for t, asked in zip(tokens.split(512), labels.split(512), strict=True)]
    with torch.inference_mode():
        if isinstance(generator, Autoregressive):
            nats = torch.cat([-generator.log_probs(*part).mean(1) for part in parts])
            return "bits_per_token", float(nats.mean()) / math.log(2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            key = generator.conditioner.key
            losses = [float(generator({"tokens": t, key: asked})["loss"]) * len(t) for t, asked in parts]
        return "loss", sum(losses) / len(tokens)


@flow(name="generator", flow_run_name=label)
def generator(request: Request) -> dict[str, dict[str, float]]:
    """Pretrain the generator of a recipe, and make what it needs."""
    return walk(request, until="generator")
