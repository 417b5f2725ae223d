"""Stage `posttraining`: the pretrained generator, improved by a reward on its own samples."""

from __future__ import annotations

import json

from prefect import flow

from flows.context import StageContext
from flows.networks import derived_seed, load_networks
from flows.pipeline import label, walk
from flows.request import Request


def body(ctx: StageContext) -> dict[str, float]:
    import torch

    from components import artifact, registry
    from components.interfaces import Generator, PostTraining, Tokenizer
    from components.training.config import Train
    from components.training.trainer import train

    section = dict(ctx.section("posttraining"))
    config = Train.model_validate(section.pop("train"))
    seed = derived_seed(ctx.seed, "posttraining")
    generator = artifact.load(ctx.input("generator"), Generator)
    tokenizer = artifact.load(ctx.input("tokenizer"), Tokenizer)
    tokens = json.loads(ctx.files("tokens").path("tokens.json").read_text())
    asked = [tokens["classes"].index(name) for name in tokens["target_classes"]] or [generator.classes]

    torch.manual_seed(seed)
    method = registry.build(PostTraining, section, generator, tokenizer, load_networks(ctx, "posttraining"))
    batches = method.batches(asked, config.batch_size, seed)
    metrics = train(
        method, batches, config, checkpoints=ctx.checkpoints, monitor=ctx, seed=seed, placement=ctx.placement
    )

    spec = json.loads((ctx.input("generator") / "config.json").read_text())["spec"]
    wired = (generator.spec, generator.classes)
    artifact.save(ctx.output, Generator, spec, wired, method.generator.eval())
    return metrics


@flow(name="posttraining", flow_run_name=label)
def posttraining(request: Request) -> dict[str, dict[str, float]]:
    """Improve the generator of a recipe by its reward, and make what it needs."""
    return walk(request, until="posttraining")
