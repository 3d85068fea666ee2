"""How sure a model may be: probabilities and quantities brought to what was observed, sets and intervals that cover it.

Everything here is learned from training rows that a model was not fitted on: its own validation rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bids_dl.records import Array

COLDEST, HOTTEST = 0.05, 20.0
PRIOR_SD = float(np.log(2))
"""Standard deviation of the temperature's logarithm before any row is seen: a few rows must not make a model certain."""
FLAT = 0.1
TIGHTEST = 1e-3
OFFSET_SD = 0.25
"""Standard deviation of a quantity's offset before any row is seen, in standard deviations of the target."""
TAILS = 4.0
"""Degrees of freedom of the errors of a quantity: with four, a wild row weighs less the wilder it is."""
N_BINS = 10


def nothing() -> Array:
    """Return no scores: nothing was held out."""
    return np.zeros(0)


@dataclass(frozen=True)
class Calibration:
    """What held-out training rows taught: what to make of the outputs, and how far predictions were from the truth.

    ``nonconformity`` (row,) is sorted: one less the probability of the true class, or the absolute error in the target's
    unit. Logits are divided by ``temperature``; a standardised quantity is multiplied by ``slope``, then ``offset`` added.
    """

    temperature: float = 1.0
    nonconformity: Array = field(default_factory=nothing)
    slope: float = 1.0
    offset: float = 0.0

    def scores(self, outputs: Array, n_levels: int, mean: float, scale: float) -> Array:
        """Turn outputs into calibrated probabilities (row, level), or into a calibrated quantity in its unit (row, 1)."""
        if n_levels:
            return scores(outputs, n_levels, mean, scale, self.temperature)
        return scores(self.slope * outputs + self.offset, 0, mean, scale)

    def reach(self, coverage: float) -> float:
        """How far from the truth predictions of new participants stay with this probability [1]_.

        Returns
        -------
        float
            The ⌈(n + 1) coverage⌉-th smallest of n nonconformities; infinite where n is too small to promise it.

        References
        ----------
        .. [1] Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World. doi:10.1007/b106715
        """
        n = len(self.nonconformity)
        rank = int(np.ceil((n + 1) * coverage - 1e-9))
        return float(self.nonconformity[rank - 1]) if 0 < rank <= n else float("inf")


def learn(outputs: Array, truth: Array, n_levels: int, mean: float = 0.0, scale: float = 1.0) -> Calibration:
    """Learn from held-out rows.

    Parameters
    ----------
    outputs
        (row, output): logits, or the standardised quantity.
    truth
        (row,): codes of classes, or the standardised quantity.
    n_levels
        Classes; 0 for a quantity.
    mean, scale
        The target's unit.
    """
    known = np.isfinite(outputs).all(axis=1) & np.isfinite(truth)
    outputs, truth = outputs[known], truth[known]
    if not len(truth):
        return Calibration()
    if not n_levels:
        slope, offset = line(outputs[:, 0], truth)
        return Calibration(1.0, np.sort(np.abs(slope * outputs[:, 0] + offset - truth)) * scale, slope, offset)
    found = temperature(outputs, truth, n_levels)
    likely = scores(outputs, n_levels, mean, scale, found)[np.arange(len(truth)), truth.astype(int)]
    return Calibration(found, np.sort(1 - likely))


def temperature(outputs: Array, truth: Array, n_levels: int) -> float:
    """Find the number that logits are divided by so that held-out rows become most likely [1]_.

    Its logarithm has a normal prior around 0, which matters only where rows are few. Outputs that hardly differ
    between rows say nothing about how sure to be: they stay as they are.

    References
    ----------
    .. [1] Guo et al. (2017), ICML. arXiv:1706.04599
    """
    from scipy.optimize import minimize_scalar

    if outputs.std(axis=0).max() < FLAT:
        return 1.0
    at = np.arange(len(truth)), truth.astype(int)

    def surprise(log_temperature: float) -> float:
        probabilities = scores(outputs, n_levels, 0.0, 1.0, np.exp(log_temperature))
        unlikely = -float(np.log(np.maximum(probabilities[at], 1e-12)).sum())
        return unlikely + (log_temperature / PRIOR_SD) ** 2 / 2

    found = minimize_scalar(surprise, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def line(outputs: Array, truth: Array) -> tuple[float, float]:
    """Find slope and offset that bring a standardised quantity's held-out outputs closest to the truth.

    Networks with strong dropout predict too close to the mean. The errors are taken to follow Student's distribution, so
    that a few wild rows do not decide [1]_. The slope's logarithm has a normal prior around 0, as the temperature's, and
    the offset one of `OFFSET_SD`: few rows change little, and a slope is never negative. Two learned numbers are judged on
    the rows they were learned from, which matters below some twenty rows.

    Parameters
    ----------
    outputs, truth
        (row,): finite, in standard deviations of the training rows.

    Returns
    -------
    slope, offset
        1 and 0 where the outputs vary less than the mean of so many rows does: they are as good as constant.

    References
    ----------
    .. [1] Lange, Little and Taylor (1989), Journal of the American Statistical Association 84(408).
       doi:10.1080/01621459.1989.10478852
    """
    from scipy.optimize import minimize

    if np.std(outputs) < 1 / np.sqrt(len(truth)):
        return 1.0, 0.0
    bounds = [(np.log(COLDEST), np.log(HOTTEST)), (-np.inf, np.inf), (np.log(TIGHTEST), np.inf)]
    spread = max(float(np.std(truth - outputs)), 10 * TIGHTEST)
    found = minimize(_unlikely, [0.0, 0.0, np.log(spread)], (outputs, truth), jac=True, bounds=bounds)
    return float(np.exp(found.x[0])), float(found.x[1])


def _unlikely(at: Array, outputs: Array, truth: Array) -> tuple[float, Array]:
    """Negative log posterior of log slope, offset and log scale of the errors, and its gradient."""
    slope, offset, spread = np.exp(at[0]), at[1], np.exp(at[2])
    z = (truth - slope * outputs - offset) / spread
    pull = (TAILS + 1) * z / (TAILS + z**2)  # its weight falls where an error is wild
    value = len(z) * at[2] + (TAILS + 1) / 2 * np.log1p(z**2 / TAILS).sum()
    value += (at[0] / PRIOR_SD) ** 2 / 2 + (offset / OFFSET_SD) ** 2 / 2
    gradient = [
        -(pull * outputs).sum() * slope / spread + at[0] / PRIOR_SD**2,
        -pull.sum() / spread + offset / OFFSET_SD**2,
        len(z) - (pull * z).sum(),
    ]
    return float(value), np.array(gradient)


def scores(outputs: Array, n_levels: int, mean: float, scale: float, temperature: float = 1.0) -> Array:
    """Turn outputs into probabilities (row, level), or into a quantity in its unit (row, 1)."""
    if not n_levels:
        return outputs * scale + mean
    logits = outputs / temperature
    if outputs.shape[1] == 1:
        positive = 1 / (1 + np.exp(-logits))
        return np.hstack([1 - positive, positive])
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def expected_error(truth: Array, probabilities: Array, *, n_bins: int = N_BINS) -> float:
    """Expected calibration error: predicted less observed frequency, absolute, over bins of equal size [1]_.

    Parameters
    ----------
    truth
        (row,): codes of classes.
    probabilities
        (row, level); of two classes the last one's probability is judged, of more the predicted one's.
    n_bins
        Bins of equally many rows; those of which the same is said count as equally often right, in whichever bin they are.

    References
    ----------
    .. [1] Naeini, Cooper and Hauskrecht (2015), AAAI 29(1). doi:10.1609/aaai.v29i1.9602
    """
    if probabilities.shape[1] == 2:
        said, right = probabilities[:, 1], truth == 1
    else:
        said, right = probabilities.max(axis=1), truth == probabilities.argmax(axis=1)
    _, at = np.unique(said, return_inverse=True)  # the order of rows of which the same is said tells nothing
    observed = (np.bincount(at, right) / np.bincount(at))[at]
    bins = np.array_split(np.argsort(said, kind="stable"), min(n_bins, len(said)))
    return float(sum(abs(said[b].mean() - observed[b].mean()) * len(b) for b in bins) / len(said))


def covers(truth: Array, predicted: Array, reach: Array, n_levels: int) -> Array:
    """Tell for each row whether its set of classes, or its interval, holds the truth; ``reach`` is (row,)."""
    if n_levels:
        likely = predicted[np.arange(len(truth)), truth.astype(int)]
        return np.asarray(1 - likely <= reach + 1e-12, float)
    return np.asarray(np.abs(truth - predicted[:, 0]) <= reach, float)


def sizes(predicted: Array, reach: Array, n_levels: int, n_ranks: int = 0) -> Array:
    """How many classes or ranks each row's set holds, or how wide its interval is; (row,)."""
    if n_ranks:
        return np.asarray(ranks_within(predicted, reach, n_ranks).sum(axis=1), float)
    return in_set(predicted, reach).sum(axis=1).astype(float) if n_levels else 2 * reach


def in_set(predicted: Array, reach: Array) -> Array:
    """Tell which classes each row's set holds, (row, level); none where nothing is likely enough."""
    return np.asarray(1 - predicted <= reach[:, None] + 1e-12)


def ranks_within(predicted: Array, reach: Array, n_ranks: int) -> Array:
    """Tell which ranks each row's interval holds, (row, rank); none where it lies between two or beyond all."""
    return np.asarray(np.abs(np.arange(n_ranks) - predicted[:, :1]) <= reach[:, None])


def limits(predicted: Array, reach: Array, names: Sequence[str], n_ranks: int = 0) -> dict[str, list[Any]]:
    """Write each row's set of classes or ranks by their names, ``y_set``, or the ends of its interval, ``y_low`` and ``y_high``."""
    if n_ranks:
        return {"y_set": ["|".join(_named(names, row)) or None for row in ranks_within(predicted, reach, n_ranks)]}
    if len(names):  # a level may be called none
        return {"y_set": ["|".join(_named(names, row)) or "none" for row in in_set(predicted, reach)]}
    return {"y_low": list(predicted[:, 0] - reach), "y_high": list(predicted[:, 0] + reach)}


def _named(names: Sequence[str], holds: Array) -> list[str]:
    return [str(name) for name, held in zip(names, holds, strict=True) if held]


def nearest_rank(predicted: Array, n_ranks: int) -> Array:
    """Round predicted places to the nearest rank, the higher one where two are as near."""
    return np.asarray(np.clip(np.floor(predicted + 0.5), 0, n_ranks - 1))
