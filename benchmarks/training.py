"""A training step of a decoder: ours against Hugging Face's Llama of the same shape and a hand-written loop.

    python -m benchmarks.training [--rounds 9] [--compiled] [--profile]

10.8M parameters (8 layers of width 320, vocabulary 1,024), batches of 8 x 256 tokens, float32; a step is forward, backward,
clipping at 1 and AdamW (fused). `tessera` is the trainer's own step on `next_token`, with everything that goes with it (finite
check, named losses, queries and keys normalized); `tessera compiled` the same with `compiled` placement; `llama` is
LlamaForCausalLM in a plain loop; `by hand` a minimal decoder of the same shape (no normalized queries and keys) in the style
of nanoGPT. All take turns in one process; medians. `--profile` prints where the time of a step goes, by torch's profiler, and
how fast its matrix products are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components import registry
from components.backbones import _rope
from components.interfaces import Autoregressive, Silent, TokenSpec
from components.training.config import Train
from components.training.placement import Placement
from components.training.state import State
from components.training.trainer import _Loop

VOCABULARY, LENGTH, WIDTH, DEPTH, HEADS, BATCH, CLASSES = 1024, 256, 320, 8, 5, 8, 10
HIDDEN = 896


class Given:
    """The same batch each time."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=rng)

    def batch(self, step: int) -> dict[str, Tensor]:
        return {"tokens": self.tokens, "labels": torch.zeros(BATCH, dtype=torch.int64)}


def ours(placement: Placement) -> Callable[[], None]:
    backbone = {"type": "transformer", "depth": DEPTH, "width": WIDTH, "heads": HEADS}
    config = {"type": "next_token", "backbone": backbone, "head": {"type": "categorical"}}
    model = registry.build(Autoregressive, config, TokenSpec((VOCABULARY,), LENGTH, "sequence"), CLASSES).train()
    train = Train(steps=1_000_000, batch_size=BATCH, lr=1e-4, clip=1.0)
    loop = _Loop(State(model, train, placement), Given(), train, Path(tempfile.mkdtemp()), Silent(), 0, placement)
    return loop._step


def plain(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def llama() -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH, tie_word_embeddings=False,
    )  # fmt: skip
    model, tokens = LlamaForCausalLM(config).train(), Given().tokens
    return plain(model, lambda: model(input_ids=tokens, labels=tokens).loss)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up, self.down = nn.Linear(WIDTH, 2 * HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3 * HEADS, -1).transpose(1, 2).chunk(3, 1)
        mixed = F.scaled_dot_product_attention(_rope.rotate(q, cos, sin), _rope.rotate(k, cos, sin), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(VOCABULARY, WIDTH), nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.table = _rope.table(torch.arange(LENGTH)[:, None], WIDTH // HEADS, 10_000.0)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, *self.table)
        logits = self.head(self.norm(x[:, :-1]))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def by_hand() -> Callable[[], None]:
    model, tokens = ByHand().train(), Given().tokens
    return plain(model, lambda: model(tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    steps = {"tessera": ours(Placement()), "llama": llama(), "by hand": by_hand()}
    if chosen.compiled:
        steps["tessera compiled"] = ours(Placement(compiled=True))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(chosen.rounds + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    print(f"{BATCH} x {LENGTH} tokens, {torch.get_num_threads()} threads")
    medians = {name: statistics.median(spans[2:]) for name, spans in times.items()}
    for name, median in medians.items():
        ratios = "  ".join(f"{medians[peer] / median:5.2f} x {peer}" for peer in ("llama", "by hand") if peer != name)
        print(f"{name:17} {1000 * median:7.0f} ms  {BATCH * LENGTH / median:7.0f} tokens/s  {ratios}")
    if chosen.profile:
        for name, step in steps.items():
            print(f"{name:17} {profiled(step)}")


def profiled(step: Callable[[], None], times: int = 5) -> str:
    """The shares of matrix products, of attention and of the optimizer in the time of the operators, and the products' speed."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as found:
        for _ in range(times):
            step()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)

    def spent(*names: str) -> float:
        return sum(event.self_cpu_time_total for event in events if any(name in event.key for name in names))

    products = ("aten::mm", "aten::addmm", "aten::bmm", "mkl_linear", "linear_pointwise")
    flops = sum(event.flops for event in events if event.key in products)
    return (
        f"{100 * spent(*products) / total:.0f} % matrix products ({flops / spent(*products) / 1000:.0f} GFLOP/s), "
        f"{100 * spent('scaled_dot_product') / total:.0f} % attention, {100 * spent('adamw') / total:.0f} % AdamW, "
        f"{1e-3 * total / times:.0f} ms of operators a step"
    )


if __name__ == "__main__":
    main()
