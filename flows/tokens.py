"""The data set as token arrays: what the generator trains on."""

from __future__ import annotations

import json
from dataclasses import asdict

from prefect import flow

from flows.context import StageContext
from flows.pipeline import label, walk
from flows.request import Request

_BATCH = 512


def body(ctx: StageContext) -> dict[str, float]:
    """Encodes every split with the run's tokenizer; writes token and label arrays and tokens.json."""
    import numpy as np
    import torch

    from components import artifact
    from components.data import shards
    from components.data.batches import to_float
    from components.interfaces import Tokenizer
    from components.quantizers._codebook import usage
    from components.training import distributed

    about = shards.describe(ctx.input("dataset"))
    device = distributed.device()
    tokenizer = artifact.load(ctx.input("tokenizer"), Tokenizer).to(device)
    spec = tokenizer.spec
    kind = np.min_scalar_type(spec.vocabulary - 1)
    total = sum(split["rows"] for split in about["splits"].values())
    metrics: dict[str, float] = {"vocabulary": spec.vocabulary, "length": spec.length}
    done = 0
    for name in about["splits"]:
        split = shards.load_split(ctx.input("dataset"), name)
        parts = []
        for start in range(0, len(split.images), _BATCH):
            parts.append(tokenizer.encode(to_float(split.images[start : start + _BATCH]).to(device)).cpu().numpy())
            done += len(parts[-1])
            ctx.progress(done, total, name)
        tokens = np.concatenate(parts)
        np.save(ctx.output / f"{name}.tokens.npy", tokens.astype(kind))
        np.save(ctx.output / f"{name}.labels.npy", split.labels)
        share, perplexity = usage(torch.bincount(torch.from_numpy(tokens).flatten(), minlength=spec.vocabulary))
        metrics |= {f"{name}.rows": len(tokens), f"{name}.usage": share, f"{name}.perplexity": perplexity}
    summary = {"spec": asdict(spec), "classes": about["classes"], "target_classes": about["target_classes"]}
    (ctx.output / "tokens.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return metrics


@flow(name="tokens", flow_run_name=label)
def tokens(request: Request) -> dict[str, dict[str, float]]:
    """Encode the data set of a recipe with its tokenizer."""
    return walk(request, until="tokens")
