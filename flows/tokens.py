"""The data set as token arrays: what the generator trains on. One pair of arrays a shard, straight into the store.

What was written is checked against the suite `tokens`; tokens that cannot be right stop here."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from prefect import flow

from flows.context import StageContext
from flows.pipeline import label, walk
from flows.request import Request

if TYPE_CHECKING:
    import numpy as np

    from components.interfaces import Files, ImageFormat

_BATCH = 512


def body(ctx: StageContext) -> dict[str, float]:
    """Encodes every shard of the data set with the run's tokenizer; writes <split>/part-*.tokens.npy [n, L] in the smallest
    unsigned integer type, <split>/part-*.labels.npy [n] int64, and tokens.json."""
    import numpy as np
    import torch

    from components import artifact
    from components.data import shards
    from components.data.batches import to_float
    from components.interfaces import Tokenizer
    from components.tokenizers._tokens import Counts
    from components.training import distributed
    from flows.validation import TOKENS, judged, load_suite, token_frame
    from infra import validation
    from infra.storage import write_json_atomic

    files = ctx.files("dataset")
    about = shards.describe(files)
    image = shards.image_format(files)
    device = distributed.device()
    tokenizer = artifact.load(ctx.input("tokenizer"), Tokenizer).to(device)
    spec = tokenizer.spec
    kind = np.min_scalar_type(spec.vocabulary - 1)
    total = sum(split["rows"] for split in about["splits"].values())
    metrics: dict[str, float] = {"vocabulary": spec.vocabulary, "length": spec.length}
    done = 0
    for split in about["splits"]:
        counts, rows = Counts(spec), 0
        for name, images, labels in decoded(files, split, about["classes"], image):
            parts = []
            for start in range(0, len(images), _BATCH):
                parts.append(tokenizer.encode(to_float(images[start : start + _BATCH]).to(device)).cpu())
                done += len(parts[-1])
                ctx.progress(done, total, split)
            tokens = torch.cat(parts)
            counts.see(tokens)
            rows += len(tokens)
            base = name.removesuffix(".parquet")
            ctx.keep([_put(ctx, f"{base}.tokens.npy", tokens.numpy().astype(kind))])
            ctx.keep([_put(ctx, f"{base}.labels.npy", labels)])
        share, perplexity = counts.usage()
        metrics |= {f"{split}.rows": rows, f"{split}.usage": share, f"{split}.perplexity": perplexity}
    summary = {"spec": asdict(spec), "classes": about["classes"], "target_classes": about["target_classes"]}
    (ctx.output / "tokens.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    ctx.progress(total, total, "validating")
    findings = validation.validate(token_frame(ctx.written()), load_suite(TOKENS))
    checked = [finding.row() for finding in findings]
    write_json_atomic(ctx.output / "validation.json", checked)
    ctx.table("validation", checked)
    return metrics | {
        "expectations": len(findings),
        "warnings": judged(findings, "what the tokenizer made of the data"),
    }


def decoded(
    files: Files, split: str, classes: list[str], image: ImageFormat
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, images uint8 [n, C, size, size], labels int64 [n]) of each shard of a split."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import pyarrow.parquet as pq

    from components.data import shards
    from components.data.images import decode

    number = {name: i for i, name in enumerate(classes)}
    with ThreadPoolExecutor() as pool:
        for name in shards.shard_names(files, split):
            rows = pq.read_table(files.path(name), columns=["image", "label"]).to_pylist()
            pictures = list(pool.map(lambda row: decode(row["image"]["bytes"], image), rows, chunksize=64))
            labels = np.array([number.get(row["label"], len(number)) for row in rows], dtype=np.int64)
            yield name, np.stack(pictures), labels


def _put(ctx: StageContext, name: str, array: np.ndarray):  # -> Stored
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array)
    return ctx.sink.put(name, buffer.getvalue())


@flow(name="tokens", flow_run_name=label)
def tokens(request: Request) -> dict[str, dict[str, float]]:
    """Encode the data set of a recipe with its tokenizer."""
    return walk(request, until="tokens")
