"""Published VQ tokenizers, encode and decode: Tessera's parts against the Transformers classes with the same weights.

    python -m benchmarks.converters [--rounds 5] [--size 64] [--batch 4] [--models Janus Chameleon Emu3 GLM-Image]

Random weights, float32; the two take turns in one process, medians. Chameleon's and GLM-Image's classes have no
decoder: only encode. GLM-Image's vision transformer has the published width and 4 of the 40 layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from components.converters import emu3, glm_image, vqgan
from components.interfaces import Tokenizer

Step = Callable[[Tensor], Tensor]


@dataclass
class Pair:
    ours: Tokenizer
    encode: Step  # theirs, images [B, C, S, S] -> tokens [B, L]
    decode: Step | None  # theirs, tokens [B, L] -> images


def janus(size: int) -> Pair:
    from transformers import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    config = JanusVQVAEConfig(base_channels=64, num_embeddings=8192, in_channels=3, num_patches=size // 16, embed_dim=8)
    theirs = JanusVQVAE(config).eval()
    ours = vqgan.from_tensors(*vqgan.janus_section(config), theirs.state_dict())
    return Pair(ours, lambda images: theirs.encode(images).image_tokens.view(len(images), -1), theirs.decode)


def chameleon(size: int) -> Pair:
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    config = ChameleonVQVAEConfig(base_channels=64, num_embeddings=8192, in_channels=3, resolution=size, embed_dim=256)
    theirs = ChameleonVQVAE(config).eval()
    ours = vqgan.from_tensors(*vqgan.chameleon_section(config), theirs.state_dict())
    return Pair(ours, lambda images: theirs.encode(images).image_tokens.view(len(images), -1), None)


def emu(size: int) -> Pair:
    from transformers import Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    config = Emu3VQVAEConfig(base_channels=64, codebook_size=8192, hidden_size=256)
    theirs = Emu3VQVAE(config).eval()
    ours = emu3.from_tensors(*emu3.emu3_section(config, size), theirs.state_dict())
    side = size // 8

    def encode(images: Tensor) -> Tensor:
        codes = theirs.encode(images, torch.tensor([[size, size]] * len(images))).image_tokens
        return torch.stack(list(codes)).flatten(1)

    return Pair(ours, encode, lambda tokens: theirs.decode(tokens.view(-1, side, side)))


def glm(size: int) -> Pair:
    from transformers import GlmImageVisionConfig, GlmImageVQVAEConfig
    from transformers.models.glm_image.modeling_glm_image import GlmImageConfig, GlmImageVisionModel, GlmImageVQVAE

    vision, vq_config = GlmImageVisionConfig(depth=4, patch_size=16), GlmImageVQVAEConfig()
    config = GlmImageConfig(vision_config=vision, vq_config=vq_config)
    visual, vq = GlmImageVisionModel(vision).eval(), GlmImageVQVAE(vq_config).eval()
    tensors = {f"visual.{n}": t for n, t in visual.state_dict().items()}
    tensors |= {f"vqmodel.{n}": t for n, t in vq.state_dict().items()}
    ours = glm_image.from_tensors(*glm_image.glm_image_section(config, size), tensors)
    patch = 16
    side = size // patch
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (glm_image.MEAN, glm_image.DEVIATION))

    def encode(images: Tensor) -> Tensor:
        normal = ((images + 1) / 2 - mean) / deviation
        patches = normal.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 1, 3, 5)
        grids = torch.tensor([[1, side, side]] * len(images))
        features = visual(patches.reshape(len(images) * side * side, -1), grids).pooler_output
        features = features.view(len(images), side, side, -1).permute(0, 3, 1, 2)
        return torch.stack([vq.encode(one[None]).image_tokens for one in features])  # one by one, as their model does

    return Pair(ours, encode, None)


MODELS: dict[str, Callable[[int], Pair]] = {"Janus": janus, "Chameleon": chameleon, "Emu3": emu, "GLM-Image": glm}


def timed(step: Step, given: Tensor) -> float:
    started = time.perf_counter()
    step(given)
    return time.perf_counter() - started


def compare(name: str, what: str, ours: Step, theirs: Step, given: Tensor, rounds: int) -> None:
    times = [(timed(ours, given), timed(theirs, given)) for _ in range(rounds + 1)][1:]
    a, b = (1000 * statistics.median(t[i] for t in times) for i in range(2))
    print(f"{name:10} {what}  transformers {b:8.1f} ms  tessera {a:8.1f} ms  ratio {b / a:.2f}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    chosen = parser.parse_args()
    images = torch.rand(chosen.batch, 3, chosen.size, chosen.size) * 2 - 1
    print(f"images {list(images.shape)}, {torch.get_num_threads()} threads")
    for name in chosen.models:
        pair = MODELS[name](chosen.size)
        tokens = pair.ours.encode(images)
        if not torch.equal(tokens, pair.encode(images)):
            raise SystemExit(f"{name}: the two do not give the same tokens")
        compare(name, "encode", pair.ours.encode, pair.encode, images, chosen.rounds)
        if pair.decode is not None:
            compare(name, "decode", pair.ours.decode, pair.decode, tokens, chosen.rounds)


if __name__ == "__main__":
    main()
