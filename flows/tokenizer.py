"""The discrete tokenizer."""

from __future__ import annotations

from prefect import flow

from flows.context import StageContext
from flows.data import TrainingImages
from flows.networks import load_networks
from flows.pipeline import label, walk
from flows.request import Request


def body(ctx: StageContext) -> dict[str, float]:
    """Trains the recipe's tokenizer; writes it, held-out reconstructions to look at, and how good they are."""
    import torch

    from components import artifact, registry
    from components.data import shards
    from components.data.batches import to_float
    from components.interfaces import Tokenizer, Transform
    from components.tokenizers._tokens import Counts
    from components.training import distributed
    from components.training.config import Train
    from components.training.trainer import train
    from flows import initial, pictures

    section = ctx.section("tokenizer")
    chosen = initial.component(section)
    image = shards.image_format(ctx.files("dataset"))
    torch.manual_seed(ctx.seed)
    tokenizer = registry.build(Tokenizer, chosen, image)
    initial.start(ctx, tokenizer, section, Tokenizer)
    tokenizer.use(load_networks(ctx, "tokenizer"))
    config = Train(**section["train"])
    transforms = [registry.build(Transform, transform) for transform in section["transforms"]]
    with TrainingImages.of_mixture(ctx).batches(config, ctx.seed, transforms) as batches:
        last = train(
            tokenizer, batches, config, checkpoints=ctx.checkpoints, monitor=ctx, seed=ctx.seed, placement=ctx.placement
        )
    artifact.save(ctx.output, Tokenizer, chosen, (image,), tokenizer)
    held_out = to_float(shards.load_split(ctx.files("dataset"), "held_out", most=2000).images)
    device = distributed.device()
    tokens = torch.cat([tokenizer.encode(part.to(device)) for part in held_out.split(256)])
    drawn = torch.cat([tokenizer.decode(part).cpu() for part in tokens.split(256)])
    ctx.figure("reconstructions", pictures.pairs(held_out[:20], drawn[:20]))
    counts = Counts(tokenizer.spec)
    counts.see(tokens)
    share, perplexity = counts.usage()
    error = (drawn - held_out).square().flatten(1).mean(1) / 4  # pixels in [0, 1]
    return {
        "psnr": float(-10 * error.clamp(min=1e-10).log10().mean()),
        "usage": share,
        "perplexity": perplexity,
        **{name: last[name] for name in ("loss",) if name in last},
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
    }


@flow(name="tokenizer", flow_run_name=label)
def tokenizer(request: Request) -> dict[str, dict[str, float]]:
    """Train the tokenizer of a recipe, and make what it needs."""
    return walk(request, until="tokenizer")
