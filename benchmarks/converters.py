"""Published VQ tokenizers, encode and decode: Tessera's parts against the Transformers classes with the same weights.

    python -m benchmarks.converters [--rounds 5] [--size 64] [--batch 4]

Random weights, float32; the two take turns in one process, medians. Chameleon's class has no decoder: only encode.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from components.converters import vqgan


def models(size: int) -> list[tuple[str, Any, Any, bool]]:
    from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
    from transformers.models.janus.modeling_janus import JanusVQVAE

    common = {"base_channels": 64, "num_embeddings": 8192, "in_channels": 3}
    janus = JanusVQVAEConfig(**common, num_patches=size // 16, embed_dim=8)
    chameleon = ChameleonVQVAEConfig(**common, resolution=size, embed_dim=256)
    found = []
    for name, theirs, section, draws in (
        ("Janus", JanusVQVAE(janus).eval(), vqgan.janus_section(janus), True),
        ("Chameleon", ChameleonVQVAE(chameleon).eval(), vqgan.chameleon_section(chameleon), False),
    ):
        found.append((name, vqgan.from_tensors(*section, theirs.state_dict()), theirs, draws))
    return found


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    chosen = parser.parse_args()
    images = torch.rand(chosen.batch, 3, chosen.size, chosen.size) * 2 - 1
    print(f"images {list(images.shape)}, {torch.get_num_threads()} threads")
    for name, ours, theirs, draws in models(chosen.size):
        tokens = ours.encode(images)
        ours_too = theirs.encode(images).image_tokens.view(chosen.batch, -1)
        if not torch.equal(tokens, ours_too):
            raise SystemExit(f"{name}: the two do not give the same tokens")

        def other(theirs: Any = theirs) -> Tensor:
            return theirs.encode(images).image_tokens

        cases: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("encode", lambda ours=ours: ours.encode(images), other)  # type: ignore[misc]
        ]
        if draws:
            cases.append(
                ("decode", lambda ours=ours, t=tokens: ours.decode(t), lambda theirs=theirs, t=tokens: theirs.decode(t))  # type: ignore[misc]
            )
        for what, mine, peer in cases:
            times = [(timed(mine), timed(peer)) for _ in range(chosen.rounds + 1)][1:]
            a, b = (1000 * statistics.median(t[i] for t in times) for i in range(2))
            print(f"{name:10} {what}  transformers {b:8.1f} ms  tessera {a:8.1f} ms  ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
