"""Quantizers, forward and backward, against vector-quantize-pytorch at equal settings.

    python -m benchmarks.quantizers [--rounds 7] [--sizes 1024 16384 262144] [--rules moving_average rvq]

Latents [8, 256, 64] float32; a step is forward in training mode, backward of the sum of latents and losses, and what moves the
codebook. Each pair takes turns in one process (medians of the ratios); peak memory is that of a process of its own, above
what it had before the first step. FSQ, LFQ and RVQ at their usual sizes. `--rules` measures these and no others: with
262,144 codes each takes minutes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

BATCH, POSITIONS, DIM = 8, 256, 64
Step = Callable[[Tensor], None]

#: name -> (our configuration, theirs), for a codebook of K codes
WITH_SIZE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "moving_average": ({"type": "vq", "revival": None}, {"decay": 0.99, "commitment_weight": 0.25}),
    "cosine": (
        {"type": "vq", "assignment": {"type": "cosine"}, "revival": None},
        {"decay": 0.99, "commitment_weight": 0.25, "use_cosine_sim": True},
    ),
    "learned": (
        {"type": "vq", "codebook": {"type": "learned"}, "revival": None},
        {"learnable_codebook": True, "ema_update": False, "commitment_weight": 0.25},
    ),
    "rotation_trick": (
        {"type": "vq", "gradient": {"type": "rotation"}, "revival": None},
        {"decay": 0.99, "commitment_weight": 0.25, "rotation_trick": True},
    ),
}


def ours(config: dict[str, Any], dim: int = DIM) -> Step:
    from components import registry
    from components.interfaces import Quantizer

    torch.manual_seed(0)
    quantizer = registry.build(Quantizer, config, dim).train()

    def step(latents: Tensor) -> None:
        quantizer.before_step(0)
        result = quantizer(latents)
        (result.latents.sum() + sum(result.losses.values())).backward()
        quantizer.after_step(0)

    return step


def theirs(name: str, config: dict[str, Any], dim: int = DIM) -> Step:
    import vector_quantize_pytorch as peers

    torch.manual_seed(0)
    quantizer = getattr(peers, name)(dim=dim, **config).train()

    def step(latents: Tensor) -> None:
        result = quantizer(latents)
        loss = result[0].sum()
        if len(result) > 2:
            loss = loss + result[2].sum()
        loss.backward()

    return step


#: name -> (as it is printed, our configuration, their class, their configuration), of one size
OF_ONE_SIZE: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "rvq": (
        "RVQ, 4 x 1,024",
        {"type": "rvq", "stages": 4, "codebook_size": 1024, "revival": None},
        "ResidualVQ",
        {"num_quantizers": 4, "codebook_size": 1024, "decay": 0.99, "commitment_weight": 0.25},
    ),
    "fsq": ("FSQ, 8 5 5 5", {"type": "fsq", "levels": [8, 5, 5, 5]}, "FSQ", {"levels": [8, 5, 5, 5]}),
    "lfq": (
        "LFQ, 10 bits",
        {"type": "lfq", "bits": 10, "temperature": 0.01},
        "LFQ",
        {"codebook_size": 1024, "entropy_loss_weight": 0.1, "diversity_gamma": 1.0},
    ),
}
RULES = (*WITH_SIZE, *OF_ONE_SIZE)


def cases(sizes: list[int], rules: list[str]) -> list[tuple[str, Callable[[], Step], Callable[[], Step]]]:
    """(as it is printed, ours, theirs), each made when it is its turn"""
    found: list[tuple[str, Callable[[], Step], Callable[[], Step]]] = []
    for size in sizes:
        for rule in (rule for rule in WITH_SIZE if rule in rules):
            mine, other = ({**config, "codebook_size": size} for config in WITH_SIZE[rule])
            label = f"{rule.replace('_', ' ')}, K = {size:,}"
            found.append((label, partial(ours, mine), partial(theirs, "VectorQuantize", other)))
    for rule in (rule for rule in OF_ONE_SIZE if rule in rules):
        label, mine, peer, other = OF_ONE_SIZE[rule]
        found.append((label, partial(ours, mine), partial(theirs, peer, other)))
    return found


def latents() -> Tensor:
    return torch.randn(BATCH, POSITIONS, DIM, generator=torch.Generator().manual_seed(1)).requires_grad_()


def timed(step: Step, given: Tensor) -> float:
    started = time.perf_counter()
    step(given)
    return time.perf_counter() - started


def _measure(make: Callable[[], Step], pipe: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    step, given = make(), latents()
    torch.randn(512, 512) @ torch.randn(512, 512)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        step(given)
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak(make: Callable[[], Step]) -> float:
    """MB above what the process had before the first step"""
    context = multiprocessing.get_context("fork")
    mine, other = context.Pipe()
    process = context.Process(target=_measure, args=(make, other, torch.get_num_threads()))
    process.start()
    found = mine.recv()
    process.join()
    return float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 16384, 262144])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="NAME")
    chosen = parser.parse_args()
    every = cases(chosen.sizes, chosen.rules)
    memory = {name: (peak(mine), peak(other)) for name, mine, other in every}
    print(f"latents [{BATCH}, {POSITIONS}, {DIM}], {torch.get_num_threads()} threads")
    print(f"{'':28} {'peer ms':>9} {'ours ms':>9} {'ratio':>6} {'peer MB':>8} {'ours MB':>8}")
    for name, make_mine, make_other in every:
        mine, other, given = make_mine(), make_other(), latents()
        times = [(timed(mine, given), timed(other, given)) for _ in range(chosen.rounds + 2)][2:]
        a, b = (1000 * statistics.median(t[i] for t in times) for i in range(2))
        ratio = statistics.median(t[1] / t[0] for t in times)
        print(f"{name:28} {b:9.1f} {a:9.1f} {ratio:6.2f} {memory[name][1]:8.0f} {memory[name][0]:8.0f}")


if __name__ == "__main__":
    main()
