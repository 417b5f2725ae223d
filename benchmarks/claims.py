"""What the quickstart shows, over seeds: the mixture serves the target, and reinforcement removes errors, not variety.

    python benchmarks/claims.py [--seeds 0 1 2]

Runs the recipe in this project for each seed (what is up to date is not run again) and prints each claim's figures. A claim
holds if it holds for every seed; the bounds are those of the project's first requirements and stand here once.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

from flows import runs

#: claim -> (figure, bound as text, whether it holds)
CLAIMS: dict[str, tuple[Callable[[dict[str, float]], float], str, Callable[[float], bool]]] = {
    "mixture: weight on digit clusters / on letter clusters": (
        lambda m: m["mixture.mean_weight_of_target_clusters"] / m["mixture.mean_weight_of_other_clusters"],
        "> 1",
        lambda value: value > 1,
    ),
    "mixture: target loss against the uniform mixture": (
        lambda m: m["mixture.target_loss"] - m["mixture.target_loss_uniform"],
        "< 0",
        lambda value: value < 0,
    ),
    "RL: share of the class error removed": (
        lambda m: m["evaluation.rl.error_removed"],
        ">= 1/3",
        lambda value: value >= 1 / 3,
    ),
    "RL: diversity after / before": (
        lambda m: m["evaluation.rl.diversity_ratio"],
        ">= 0.95",
        lambda value: value >= 0.95,
    ),
}
SHOWN = (
    "mixture.target_loss",
    "mixture.target_loss_uniform",
    "tokenizer.psnr",
    "evaluation.codebook_usage",
    "evaluation.rl.class_error_before",
    "evaluation.rl.class_error_after",
    "evaluation.before.diversity",
    "evaluation.after.diversity",
    "evaluation.before.fd_judge",
    "evaluation.after.fd_judge",
    "evaluation.class_accuracy",
)


def measured(seed: int) -> dict[str, float]:
    name = f"claims-{seed}"
    command = [sys.executable, "-m", "flows.cli", "run", "quickstart", "--name", name, "--set", f"seed={seed}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    run = runs.find(runs.project_root(), name)
    stages = runs.stage_list(run)
    return {f"{stage}.{key}": value for stage in stages for key, value in runs.metrics(run, stage).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    found = [measured(seed) for seed in seeds]
    print(f"{'':<56}" + "".join(f"{'seed ' + str(seed):>10}" for seed in seeds) + f"{'mean':>10}")
    for name in SHOWN:
        values = [metrics[name] for metrics in found]
        print(f"{name:<56}" + "".join(f"{v:>10.4f}" for v in [*values, statistics.mean(values)]))
    for claim, (figure, bound, holds) in CLAIMS.items():
        values = [figure(metrics) for metrics in found]
        verdict = "holds" if all(map(holds, values)) else "does not hold"
        row = "".join(f"{v:>10.4f}" for v in [*values, statistics.mean(values)])
        print(f"{claim:<56}{row}  {bound}: {verdict}")


if __name__ == "__main__":
    main()
