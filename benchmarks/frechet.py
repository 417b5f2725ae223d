"""Fréchet distance of features: ours against torchmetrics' FID, same features, update and compute.

    python -m benchmarks.frechet [--samples 50000] [--width 2048] [--rounds 1]

Random features with a decaying spectrum, as a network's are, float32, in batches of 500, for a real and a drawn side. Both
give their distance; they must agree to 1e-4. torchmetrics gets a network that hands features through.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from components.evaluation.fd import Moments, frechet_distance

BATCH = 500


class Through(nn.Module):
    """The features are the images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return images


def features(samples: int, width: int, side: int) -> Iterator[Tensor]:
    rng = torch.Generator().manual_seed(side)
    scales = (torch.arange(width) + 1.0) ** -0.5
    for start in range(0, samples, BATCH):
        yield torch.randn(min(BATCH, samples - start), width, generator=rng) * scales * (1 + 0.1 * side) + 0.01 * side


def ours(samples: int, width: int) -> tuple[float, float, float]:
    sides, updating = [Moments(), Moments()], 0.0
    for side, moments in enumerate(sides):
        for batch in features(samples, width, side):
            started = time.perf_counter()
            moments.update(batch)
            updating += time.perf_counter() - started
    real, drawn = sides
    assert real.mean is not None
    assert drawn.mean is not None
    started = time.perf_counter()
    distance = frechet_distance(real.mean, real.covariance(), drawn.mean, drawn.covariance())
    return distance, updating, time.perf_counter() - started


def theirs(samples: int, width: int) -> tuple[float, float, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric, updating = FrechetInceptionDistance(feature=Through(width), normalize=True, input_img_size=(width,)), 0.0
    metric.used_custom_model = True
    for side in range(2):
        for batch in features(samples, width, side):
            started = time.perf_counter()
            metric.update(batch, real=side == 0)
            updating += time.perf_counter() - started
    started = time.perf_counter()
    distance = float(metric.compute())
    return distance, updating, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    print(f"{chosen.samples:,} features of width {chosen.width:,} a side, {torch.get_num_threads()} threads")
    rounds = [(ours(chosen.samples, chosen.width), theirs(chosen.samples, chosen.width)) for _ in range(chosen.rounds)]
    for name, which in (("tessera", 0), ("torchmetrics", 1)):
        distance, update, compute = (statistics.median(r[which][part] for r in rounds) for part in range(3))
        print(
            f"{name:12} distance {distance:.6f}  update {update:6.1f} s  compute {compute:6.1f} s  {update + compute:6.1f} s"
        )
    ratio = statistics.median(sum(r[1][1:]) / sum(r[0][1:]) for r in rounds)
    print(f"ratio {ratio:.2f}")
    found, expected = rounds[0][0][0], rounds[0][1][0]
    if abs(found - expected) > 1e-4 * abs(expected):
        raise SystemExit("the two distances differ")


if __name__ == "__main__":
    main()
