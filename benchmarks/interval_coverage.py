"""interval_coverage.py: how often each interval of an AUC holds what such trainings reach on average.

Studies are drawn of two groups that differ a little in every feature; a classifier by the difference of the means is judged by
three repeats of five folds. What it reaches on average is its AUC over many other trainings of the same size, each on
thousands of new participants. Both intervals promise 95 %: the one over participants takes the fitted models as they are, the one over
folds is corrected for overlapping training sets.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.metrics import roc_auc_score

from bids_dl import comparison, metrics

KINDS = ((60, 10, 0.3), (60, 100, 0.15), (200, 1000, 0.05))
"""Participants, features, and the difference of the groups in each, in standard deviations."""
N_FOLDS, N_REPEATS = 5, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=300)
    options = parser.parse_args()
    for n, n_features, effect in KINDS:
        n_train = n * (N_FOLDS - 1) // N_FOLDS
        expected = np.mean([reached(seed, n_train, n_features, effect) for seed in range(options.studies)])
        ends = np.array([study(10_000 + seed, n, n_features, effect) for seed in range(options.studies)])
        holds = (ends[:, 0::2] <= expected) & (expected <= ends[:, 1::2])
        widths = np.mean(ends[:, 1::2] - ends[:, 0::2], axis=0)
        print(
            f"{n} participants, {n_features} features, AUC {expected:.3f}: over participants {holds[:, 0].mean():.2f} "
            f"(width {widths[0]:.2f}), over folds {holds[:, 1].mean():.2f} (width {widths[1]:.2f})",
            flush=True,
        )


def draw(generator: np.random.Generator, n: int, n_features: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(n) % 2.0
    return generator.standard_normal((n, n_features)) + effect * (y - 0.5)[:, None], y


def weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)


def reached(seed: int, n_train: int, n_features: int, effect: float) -> float:
    """Train once and test on many new participants."""
    generator = np.random.default_rng(seed)
    learned = weights(*draw(generator, n_train, n_features, effect))
    x, y = draw(generator, 2000, n_features, effect)
    return float(roc_auc_score(y, x @ learned))


def study(seed: int, n: int, n_features: int, effect: float) -> tuple[float, float, float, float]:
    """Return both intervals of one study: over participants, over folds."""
    generator = np.random.default_rng(seed)
    x, y = draw(generator, n, n_features, effect)
    folds = [generator.permuted(np.arange(n) // 2 % N_FOLDS) for _ in range(N_REPEATS)]
    scores = np.concatenate([held_out(x, y, fold) for fold in folds])
    numbered = np.concatenate([N_FOLDS * repeat + fold for repeat, fold in enumerate(folds)])
    two = np.column_stack([1 - scores, scores])
    found = metrics.Predictions(np.tile(y, N_REPEATS), two, np.tile(np.arange(n), N_REPEATS), numbered, 2)
    n_train = [n * (N_FOLDS - 1) // N_FOLDS] * (N_FOLDS * N_REPEATS)
    return (*metrics.intervals(found, n=300, seed=0)["auc"], *comparison.spread(found, "auc", n_train))


def held_out(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Predict each fold by the others, as something like a probability."""
    scores = np.empty(len(y))
    for number in np.unique(fold):
        scores[fold == number] = x[fold == number] @ weights(x[fold != number], y[fold != number])
    return 1 / (1 + np.exp(-scores / 10))


if __name__ == "__main__":
    main()
