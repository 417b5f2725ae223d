"""The generator, pretrained on the tokens."""

from __future__ import annotations

import json
import math

from prefect import flow

from flows.context import StageContext
from flows.data import load_tokens, token_batches
from flows.pipeline import label, walk
from flows.request import Request

_JUDGED = 100_000  # samples of a split whose likelihood is measured


def body(ctx: StageContext) -> dict[str, float]:
    """Trains the recipe's generator; writes it, and how well it predicts tokens it has not seen."""
    import numpy as np
    import torch

    from components import artifact, registry
    from components.interfaces import Generator, TokenSpec
    from components.training.config import Train
    from components.training.trainer import train

    section = ctx.section("generator")
    files = ctx.files("tokens")
    about = json.loads(files.path("tokens.json").read_text())
    grid = about["spec"]["grid"]
    spec = TokenSpec(**{**about["spec"], "grid": tuple(grid) if grid else None})
    chosen = {name: value for name, value in section.items() if name != "train"}
    classes = len(about["classes"])
    torch.manual_seed(ctx.seed)
    generator = registry.build(Generator, chosen, spec, classes)
    config = Train(**section["train"])
    batches = token_batches(ctx, config)
    last = train(generator, batches, config, checkpoints=ctx.checkpoints, monitor=ctx, seed=ctx.seed)
    artifact.save(ctx.output, Generator, chosen, (spec, classes), generator)
    metrics = {
        "loss": last["loss"],
        "parameters": sum(p.numel() for p in generator.parameters()),
    }
    device = next(generator.parameters()).device  # where the training left it
    for split in ("target", "held_out"):
        drawn, asked_for = load_tokens(files, split, most=_JUDGED)
        if len(drawn):
            tokens = torch.from_numpy(drawn.astype(np.int64)).to(device)
            labels = torch.from_numpy(asked_for).to(device)
            with torch.inference_mode():
                parts = zip(tokens.split(512), labels.split(512), strict=True)
                nats = [-generator.log_probs(part, asked).mean(1) for part, asked in parts]
            metrics[f"{split}.bits_per_token"] = float(torch.cat(nats).mean()) / math.log(2)
    return metrics


@flow(name="generator", flow_run_name=label)
def generator(request: Request) -> dict[str, dict[str, float]]:
    """Pretrain the generator of a recipe, and make what it needs."""
    return walk(request, until="generator")
