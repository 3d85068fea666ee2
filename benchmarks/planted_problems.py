"""planted_problems.py [--models NAME …] [--seeds N]: every model on a problem planted for it, beside a linear model.

The problems and the models' options are those of the tests (``tests/planted.py``). Each seed draws new data and new weights; half of the
participants train, a tenth stops the training, the rest are predicted. The linear model, with its default options, takes the usual feature
of the same data: of series the connectivity, of windows their mean, of volumes and maps the voxels, of graphs the edges. Prints a table:
the mean AUC of those held out, and the least and most over the seeds; a model that on some seed is not above ``PASSES``, or whose linear
model is not below ``CHANCE``, is named under it. A second table says how well generative models draw two Gaussian classes, a
third how well is decoded what new people see; that effect is linear, and ``linear`` is expected to tell it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bids_dl.metrics import score

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import mixture
import planted
import seen

PASSES, CHANCE = 0.8, 0.65
DECODERS = ("lstm", "mean_mlp")


def main() -> None:
    options = arguments()
    print("| model | problem | AUC (range) | linear's AUC (range) |\n|---|---|---|---|", flush=True)
    falls_short = [
        line for model in options.models for solutions in (planted.SOLUTIONS, planted.OTHERS) if model in solutions
        for line in row(model, options.seeds, solutions)
    ]  # fmt: skip
    remark = f"Every model is above {PASSES} and every linear model below {CHANCE} on every seed."
    print("", *(falls_short or [remark]), sep="\n", flush=True)
    generative([model for model in options.models if model in mixture.LEARNED], options.seeds)
    decoded([model for model in options.models if model in DECODERS], options.seeds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(planted.SOLUTIONS), choices=list(planted.SOLUTIONS))
    parser.add_argument("--seeds", type=int, default=3, help="how many times everything is drawn anew")
    return parser.parse_args()


def row(model: str, n_seeds: int, solutions: Mapping[str, planted.Solution]) -> list[str]:
    """Print a model's row; returns a line for each seed on which it falls short."""
    found = [planted.auc(model, seed=seed, solutions=solutions) for seed in range(n_seeds)]
    linear = [planted.linear_auc(model, seed=seed, solutions=solutions) for seed in range(n_seeds)]
    words = solutions[model].problem.words
    print(f"| `{model}` | {words} | {spread(found)} | {spread(linear)} |", flush=True)
    return [
        f"- `{model}`, seed {seed}: {ours:.3f}, linear {theirs:.3f}"
        for seed, (ours, theirs) in enumerate(zip(found, linear, strict=True))
        if ours <= PASSES or theirs >= CHANCE
    ]


def generative(models: Sequence[str], n_seeds: int) -> None:
    """Print the largest error of a class's mean and covariance (of deviations near 1) among synthetic participants."""
    if models:
        print("\n| model | error of a class's mean (range) | of its covariance (range) |\n|---|---|---|", flush=True)
    for model in models:
        means, covariances = np.transpose([mixture.distances(model, seed) for seed in range(n_seeds)])
        print(f"| `{model}` | {spread(means)} | {spread(covariances)} |", flush=True)


def decoded(models: Sequence[str], n_seeds: int) -> None:
    """Print how well models of six volumes, and a linear model of their values, tell a face from a house."""
    if not models:
        return
    print("\n| decoder | AUC (range) |\n|---|---|", flush=True)
    found = [decode(models, seed) for seed in range(n_seeds)]
    for model in (*models, "linear"):
        print(f"| `{model}` | {spread([one[model] for one in found])} |", flush=True)


def decode(models: Sequence[str], seed: int) -> dict[str, float]:
    """Draw ten people, train on five and return the AUC of the others' volumes."""
    with tempfile.TemporaryDirectory() as folder:
        config = seen.config_of(*seen.write_outputs(Path(folder), seed=seed))
        _, cohort = seen.filled(config, Path(folder) / "cohort")
        asked = {**dict.fromkeys(models, "timeseries"), "linear": "timeseries+context"}
        return {m: score(seen.held_out(config, cohort, m, f, seed=seed))["auc"][0] for m, f in asked.items()}


def spread(found: Sequence[float]) -> str:
    return f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"


if __name__ == "__main__":
    main()
