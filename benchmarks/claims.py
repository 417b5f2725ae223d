"""What the quickstart shows, over seeds: the mixture serves the target, and reinforcement removes errors, not variety.

    python -m benchmarks.claims [--seeds 0 1 2]

Runs the recipe in this project for each seed (what is up to date is not run again) and prints the figures and the recipe's
`claims:`, judged on the mean over the seeds and on each.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from flows import gates, recipes, runs

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
    return runs.all_metrics(runs.find(runs.project_root(), name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    found = [measured(seed) for seed in seeds]
    recipe = recipes.load(runs.project_root(), "quickstart")
    print(f"{'':<56}" + "".join(f"{'seed ' + str(seed):>10}" for seed in seeds) + f"{'mean':>10}")
    for name in SHOWN:
        values = [metrics[name] for metrics in found]
        print(f"{name:<56}" + "".join(f"{v:>10.4f}" for v in [*values, statistics.mean(values)]))
    verdicts = [gates.shown(recipe["claims"], metrics) for metrics in found]
    means = {name: statistics.mean(metrics[name] for metrics in found) for name in set(found[0]).intersection(*found)}
    for mean, *row in zip(gates.shown(recipe["claims"], means), *verdicts, strict=True):
        values = "".join(f"{verdict.value:>10.4f}" for verdict in [*row, mean])
        how = f"{'holds' if mean.passed else 'does not hold'} in the mean, in {sum(v.passed for v in row)} of {len(row)} seeds"
        print(f"{mean.gate:<56}{values}  {how}")


if __name__ == "__main__":
    main()
