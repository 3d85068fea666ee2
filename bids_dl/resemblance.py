"""Are synthetic participants like real ones? Two samples, and a classifier that tries to tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl.records import Array

N_AXES, SHARED = 10, 0.5
"""Principal axes that are looked at, at most; the part of an axis's variance that other rows must have."""
FEWEST = 6
"""Members of each sample below which nothing is said."""
N_FOLDS, N_PERMUTATIONS, PENALTY = 5, 200, 1.0


@dataclass(frozen=True)
class Told:
    """How well two samples are told apart: an area under the curve, 0.5 if not at all, and what chance reaches.

    ``chance_low`` and ``chance_high`` are the middle 95 % of the same area when it is drawn by lot who is in which sample.
    """

    auc: float
    chance_low: float
    chance_high: float


NOTHING = Told(float("nan"), float("nan"), float("nan"))


def compare(
    samples: Mapping[str, tuple[Array, Array]], levels: Sequence[str], generator: np.random.Generator
) -> list[dict[str, Any]]:
    """Compare synthetic participants with real ones of the validation part, and the real ones of the training part as well.

    Parameters
    ----------
    samples
        ``train``, ``synthetic`` and ``validation``: normalised values (row, value), and targets (row,).
    levels
        Names of the target's classes, by their codes; none for a quantity.
    generator
        Of folds and lots.

    Returns
    -------
    list
        Two rows, ``synthetic`` and ``train``, for all and for each class of which there are enough.
    """
    axes = principal(samples["train"][0])
    n = n_shared(samples["train"][0], generator)
    on = {name: values @ axes for name, (values, _) in samples.items()}
    rows = []
    for code, level in enumerate(("all", *levels)):
        mine = {name: x[samples[name][1] == code - 1] if code else x for name, x in on.items()}
        if code == 0 or min(map(len, mine.values())) >= FEWEST:
            rows += [{"level": level, **row} for row in _both(mine, n, generator)]
    return rows


def _both(samples: Mapping[str, Array], n_axes: int, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Tell synthetic and training rows (row, axis) from those of the validation part, by the first axes."""
    unseen, train = samples["validation"], samples["train"]
    for name in ("synthetic", "train"):
        ratio = nearness(samples[name], unseen, train) if name == "synthetic" else float("nan")
        told = asdict(tell_apart(samples[name][:, :n_axes], unseen[:, :n_axes], generator))
        counts = {"n_axes": n_axes, "n": len(samples[name]), "n_validation": len(unseen)}
        yield {"rows": name, **told, "nearness": ratio, **counts}


def principal(rows: Array) -> Array:
    """Return the first principal axes of normalised rows about 0, the training mean, (value, axis)."""
    squares, mixing = np.linalg.eigh(np.asarray(rows @ rows.T, np.float64))
    kept = np.argsort(squares)[::-1][:N_AXES]
    kept = kept[squares[kept] > max(squares.max(), 1e-12) * 1e-6]
    return np.asarray(rows.T @ (mixing[:, kept] / np.sqrt(squares[kept])))


def n_shared(train: Array, generator: np.random.Generator) -> int:
    """Count the leading axes that are no chance of who trains: of one half of the rows, drawn by lot, and shared by the other.

    With more values than rows most axes fit the noise of these rows, and spread less in anybody else: by them even real
    participants would be told apart. An axis is shared where the other half has some of its variance; 1 at least.
    """
    order = generator.permutation(len(train))
    one, other = train[order[::2]], train[order[1::2]]
    axes = principal(one)
    ratio = ((other @ axes) ** 2).mean(axis=0) / ((one @ axes) ** 2).mean(axis=0)
    return max(1, int(np.logical_and.accumulate(ratio > SHARED).sum()))


def tell_apart(one: Array, other: Array, generator: np.random.Generator) -> Told:
    """Classify rows (row, axis) by the sample they are from, linearly on coordinates and their squares, cross-validated.

    A classifier two-sample test [1]_: ridge regression on the sample, whose null comes from samples drawn by lot within
    folds. Squares tell samples that differ in spread alone.

    Returns
    -------
    Told
        NaN where a sample has fewer than `FEWEST` rows.

    References
    ----------
    .. [1] Lopez-Paz and Oquab (2017), ICLR. arXiv:1610.06545
    """
    if min(len(one), len(other)) < FEWEST:
        return NOTHING
    x, member = np.concatenate([one, other]), np.repeat([0.0, 1.0], [len(one), len(other)])
    fold = np.concatenate([generator.permutation(len(s)) % N_FOLDS for s in (one, other)])
    labels = np.stack([member, *(_by_lot(member, fold, generator) for _ in range(N_PERMUTATIONS))], axis=1)
    found = np.mean([_areas(x, labels, fold == k) for k in range(N_FOLDS)], axis=0)
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Told(float(found[0]), float(low), float(high))


def _by_lot(member: Array, fold: NDArray[np.intp], generator: np.random.Generator) -> Array:
    """Draw who is in which sample, within each fold."""
    drawn = member.copy()
    for k in range(N_FOLDS):
        drawn[fold == k] = generator.permutation(member[fold == k])
    return drawn


def _areas(x: Array, labels: Array, held: NDArray[np.bool_]) -> Array:
    """Fit each labelling (row, labelling) on the rows that are not held out; returns its area on those that are."""
    mean, scale = x[~held].mean(axis=0), x[~held].std(axis=0) + 1e-12
    z = (x - mean) / scale
    design = np.hstack([z, z**2 - 1])
    centred = labels[~held] - labels[~held].mean(axis=0)
    inside = design[~held] - design[~held].mean(axis=0)
    gram = inside.T @ inside + PENALTY * len(inside) * np.eye(design.shape[1])
    return area(design[held] @ np.linalg.solve(gram, inside.T @ centred), labels[held])


def area(scores: Array, labels: Array) -> Array:
    """Return the area under the curve of each column, ties halved, (column,)."""
    from scipy.stats import rankdata

    n_one = labels.sum(axis=0)
    ranks = (rankdata(scores, axis=0) * labels).sum(axis=0)
    return np.asarray((ranks - n_one * (n_one + 1) / 2) / (n_one * (len(labels) - n_one)))


def nearness(synthetic: Array, unseen: Array, train: Array) -> float:
    """Divide the median distance of synthetic rows to the nearest training row by that of unseen real rows.

    1: synthetic participants lie no nearer to the training participants than other people do; 0: they are copies [1]_.

    References
    ----------
    .. [1] Park et al. (2018), PVLDB 11(10). doi:10.14778/3231751.3231757
    """
    if min(map(len, (synthetic, unseen, train))) < FEWEST:
        return float("nan")
    near, far = (float(np.median(_nearest(rows, train))) for rows in (synthetic, unseen))
    return near / far if far > 0 else float("nan")


def _nearest(rows: Array, train: Array) -> Array:
    """Return each row's distance to the nearest training row."""
    squares = (rows**2).sum(axis=1)[:, None] + (train**2).sum(axis=1) - 2 * rows @ train.T
    return np.asarray(np.sqrt(np.maximum(squares.min(axis=1), 0)))
