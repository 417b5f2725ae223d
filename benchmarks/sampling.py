"""Sampling: tokens a second against `transformers.generate`, and how the time a token grows.

    python -m benchmarks.sampling against [--rounds 5] [--device cpu]
    python -m benchmarks.sampling curves [--output docs/images/sampling.png]

`against`: one decoder (10.8M parameters: 8 layers of width 320, vocabulary 1,024, 256 tokens, float32) as Tessera's own
parts and, with the same weights, as the Transformers architecture it is (Qwen3: rotary positions, SwiGLU, queries and keys
normalized); greedy, batches of 1 and 32; the two take turns, the first turn of each is not counted, and their tokens must
be the same. `floor` is the time the weight products of a step alone take with the weights as both find them (torch's
linear) and as the engine packs them: no decoder that multiplies by every weight can be faster.
`curves`: milliseconds a token against the context and against the size of the codebook, batches of 1 and 32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from components import registry
from components.interfaces import Autoregressive, TokenSpec
from components.sampling._packed import Packed
from components.sampling.engine import Decoding, generate
from components.sampling.rules import Greedy

CLASSES, VOCABULARY, LENGTH = 10, 1024, 256


def decoder(*, vocabulary: int = VOCABULARY, length: int = LENGTH) -> Autoregressive:
    """The 10.8M decoder, with weights large enough that greedy choices are no ties."""
    torch.manual_seed(0)
    backbone = {"type": "transformer", "depth": 8, "width": 320, "heads": 5}
    config = {"type": "next_token", "backbone": backbone, "head": {"type": "categorical"}}
    model = registry.build(Autoregressive, config, TokenSpec((vocabulary,), length, "sequence"), CLASSES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model


def timed(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def against(rounds: int, device: torch.device) -> None:
    from components.converters import decoder as converter

    model = decoder().to(device)
    twin = converter.to_transformers(model).eval().to(device)
    classes = torch.arange(VOCABULARY, VOCABULARY + CLASSES + 1, device=device)  # no sample holds a class
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {torch.get_num_threads()} threads, {device}"
    )
    print(f"{'batch':>5} {'transformers':>13} {'tessera':>9} {'ratio':>6}   tokens/s; floor plain, packed (ms a step)")
    for batch in (1, 32):
        labels = torch.arange(batch, device=device) % CLASSES
        rng = torch.Generator(device)
        found: dict[str, Tensor] = {}

        def ours(labels: Tensor = labels, rng: torch.Generator = rng, found: dict[str, Tensor] = found) -> None:
            found["tessera"] = generate(model, labels, rng, [Greedy()])

        def theirs(labels: Tensor = labels, found: dict[str, Tensor] = found) -> None:
            found["transformers"] = twin.generate(
                (VOCABULARY + labels)[:, None],
                attention_mask=torch.ones(len(labels), 1, dtype=torch.int64, device=device),
                max_new_tokens=LENGTH,
                min_new_tokens=LENGTH,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=VOCABULARY,
                suppress_tokens=classes.tolist(),
            )[:, 1:]

        times = [(timed(ours, device), timed(theirs, device)) for _ in range(rounds + 1)][1:]
        if not torch.equal(found["tessera"], found["transformers"]):
            raise SystemExit("the two did not draw the same tokens")
        mine, other = (LENGTH * batch / statistics.median(t[i] for t in times) for i in range(2))
        ratio = statistics.median(other_time / own_time for own_time, other_time in times)
        plain, packed = floor(model, batch, device)
        print(f"{batch:5d} {other:13.0f} {mine:9.0f} {ratio:6.2f}   {plain:.2f}, {packed:.2f}")


def floor(model: nn.Module, batch: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds that the products with all weights take, one after another: plain and packed."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    inputs = [torch.randn(batch, layer.in_features, device=device) for layer in layers]

    def step() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    def median() -> float:
        return 1000 * statistics.median(timed(step, device) for _ in range(50))

    with torch.inference_mode():
        plain = median()
        with Packed.of(model):
            return plain, median()


def curves(output: Path) -> None:
    """Milliseconds a token; each point is the median over the steps near it."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for batch in (1, 32):
        contexts, medians = context_times(batch)
        left.plot(contexts, medians, marker="o", label=f"batch {batch}")
        sizes = [256, 1024, 4096, 16384, 65536]
        per_size = [context_times(batch, vocabulary=size, length=48)[1][-1] for size in sizes]
        right.plot(sizes, per_size, marker="o", label=f"batch {batch}")
        print(
            f"batch {batch}: context " + ", ".join(f"{c}: {m:.2f} ms" for c, m in zip(contexts, medians, strict=True))
        )
        print(f"batch {batch}: codebook " + ", ".join(f"{s}: {m:.2f} ms" for s, m in zip(sizes, per_size, strict=True)))
    left.set(xlabel="tokens of context", ylabel="ms a token", ylim=(0, None))
    right.set(xlabel="size of the codebook", ylabel="ms a token", xscale="log", ylim=(0, None))
    left.legend()
    figure.savefig(output, dpi=110)
    print(f"wrote {output}")


def context_times(batch: int, *, vocabulary: int = VOCABULARY, length: int = 1024) -> tuple[list[int], list[float]]:
    """(contexts, median milliseconds of the 16 steps before each)"""
    model = decoder(vocabulary=vocabulary, length=length)
    decoding = Decoding(model, torch.arange(batch) % CLASSES, torch.Generator(), [Greedy()])
    times = []
    started = time.perf_counter()
    for _ in decoding:
        times.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
    marks = [mark for mark in (32, 64, 128, 256, 512, 1024) if mark <= length] or [length]
    marks = marks if length in marks else [*marks, length]
    return marks, [statistics.median(times[mark - 16 : mark]) for mark in marks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["against", "curves"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("docs/images/sampling.png"))
    chosen = parser.parse_args()
    if chosen.what == "against":
        against(chosen.rounds, torch.device(chosen.device))
    else:
        curves(chosen.output)


if __name__ == "__main__":
    main()
