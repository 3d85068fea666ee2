"""Scores of held-out predictions with intervals over participants and permutation tests.

Predictions of different folds come from different models, so scores are compared within a fold and summed over folds:
the AUC is the part of the pairs (positive, negative) *of one fold* that are in the right order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import calibration, shifting
from bids_dl.records import Array

CLASS_METRICS = ("auc", "balanced_accuracy", "f1", "brier", "accuracy")
QUANTITY_METRICS = ("mae", "r2", "r", "rmse")
ORDINAL_METRICS = ("rho", "weighted_kappa", "mae", "accuracy")
"""The first is the main one: weak effects shrink predictions to the middle level, where kappa is 0 whatever they know."""
LOWER_IS_BETTER = {"brier", "mae", "rmse"}
LEVEL = 0.95


@dataclass(frozen=True)
class Predictions:
    """Held-out predictions: one row a participant and split.

    ``scores`` is (row, level) for classes, (row, 1) for a quantity or a rank, of which there are ``n_ranks``;
    ``participants`` and ``folds`` are numbers, and so are ``runs`` where rows are moments of runs, in order of time, and
    ``families`` where some participants are relatives: these are drawn together.
    """

    truth: Array
    scores: Array
    participants: NDArray[np.intp]
    folds: NDArray[np.intp]
    n_levels: int = 0
    runs: NDArray[np.intp] | None = None
    n_ranks: int = 0
    families: NDArray[np.intp] | None = None

    @property
    def drawn_together(self) -> NDArray[np.intp]:
        """Number what a bootstrap draws as one: participants, or families where there are some."""
        return self.participants if self.families is None else self.families

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that fit."""
        if self.n_ranks:
            return ORDINAL_METRICS
        return CLASS_METRICS if self.n_levels else QUANTITY_METRICS


def score(predictions: Predictions, weights: Array | None = None, truth: Array | None = None) -> dict[str, Array]:
    """Compute every metric for many reweightings or relabellings at once.

    Parameters
    ----------
    predictions
        What was predicted.
    weights
        (draw, row): how often each row counts; one draw of ones unless given.
    truth
        (draw, row): labels that replace the true ones, for permutations.

    Returns
    -------
    dict
        Metric → values (draw,).
    """
    n = len(predictions.truth)
    w = np.ones((1, n)) if weights is None else weights
    y = np.broadcast_to(predictions.truth, (1, n)) if truth is None else truth
    if predictions.n_ranks:
        return _ordinal_scores(predictions, w, y)
    return _class_scores(predictions, w, y) if predictions.n_levels else _quantity_scores(predictions, w, y)


def _class_scores(p: Predictions, w: Array, y: Array) -> dict[str, Array]:
    predicted = p.scores.argmax(axis=1) if p.n_levels > 2 else (p.scores[:, 1] > 0.5).astype(int)
    right = y == predicted
    recalls, f1s = [], []
    for level in range(p.n_levels):
        mine, said = y == level, predicted == level
        hit = (w * (mine & said)).sum(axis=1)
        recalls.append(_ratio(hit, (w * mine).sum(axis=1)))
        f1s.append(_ratio(2 * hit, (w * mine).sum(axis=1) + (w * said).sum(axis=1)))
    error = sum(((y == level) - p.scores[:, level]) ** 2 for level in range(p.n_levels))
    return {
        "auc": _auc(p, w, y),
        "balanced_accuracy": np.nanmean(recalls, axis=0),
        "f1": f1s[1] if p.n_levels == 2 else np.nanmean(f1s, axis=0),
        "brier": _ratio((w * error).sum(axis=1) / (2 if p.n_levels == 2 else 1), w.sum(axis=1)),
        "accuracy": _ratio((w * right).sum(axis=1), w.sum(axis=1)),
    }


def _auc(p: Predictions, w: Array, y: Array) -> Array:
    """Two classes: pairs in order; more: the mean over each class against the rest."""
    levels = [1] if p.n_levels == 2 else list(range(p.n_levels))
    found = np.stack([_auc_of(p.scores[:, level], y == level, p.folds, w) for level in levels])
    known = np.isfinite(found)
    return _ratio(np.where(known, found, 0).sum(axis=0), known.sum(axis=0))


def _auc_of(scores: Array, positive: NDArray[np.bool_], folds: NDArray[np.intp], w: Array) -> Array:
    """Weighted share of the pairs within a fold in which the positive scores higher; ties count half [1]_.

    References
    ----------
    .. [1] Hanley and McNeil (1982), Radiology 143(1). doi:10.1148/radiology.143.1.7063747
    """
    ordered, pairs = np.zeros(1), np.zeros(1)
    for fold in np.unique(folds):
        at = folds == fold
        up, down = w[:, at] * positive[:, at], w[:, at] * ~positive[:, at]
        values, equal = np.unique(scores[at], return_inverse=True)
        order = np.argsort(equal, kind="stable")
        first = np.searchsorted(equal[order], np.arange(len(values)))
        up_at, down_at = (np.add.reduceat(part[:, order], first, axis=1) for part in (up, down))
        ordered = ordered + (up_at * (down_at.cumsum(axis=1) - 0.5 * down_at)).sum(axis=1)
        pairs = pairs + up.sum(axis=1) * down.sum(axis=1)
    return _ratio(ordered, pairs)


def _quantity_scores(p: Predictions, w: Array, y: Array) -> dict[str, Array]:
    said = p.scores[:, 0]
    total = w.sum(axis=1)
    squares = (w * (y - said) ** 2).sum(axis=1) / total
    mean_y, mean_said = (w * y).sum(axis=1) / total, (w @ said) / total
    var_y = (w * y**2).sum(axis=1) / total - mean_y**2
    var_said = (w @ said**2) / total - mean_said**2
    together = (w * y * said).sum(axis=1) / total - mean_y * mean_said
    varies = var_said > 1e-12 * np.maximum(mean_said**2, 1e-12)
    spread = np.where(var_y > 1e-12 * np.maximum(mean_y**2, 1e-12), var_y, 0)
    r = np.where(varies, together / np.sqrt(np.maximum(spread * var_said, 1e-300)), 0)
    return {
        "mae": (w * np.abs(y - said)).sum(axis=1) / total,
        "r2": 1 - _ratio(squares, spread),
        "r": np.where(spread > 0, r, np.nan),
        "rmse": np.sqrt(squares),
    }


def _ordinal_scores(p: Predictions, w: Array, y: Array) -> dict[str, Array]:
    """Score ranks: their order within folds, and what is left of it where predictions are rounded to a level."""
    said = p.scores[:, 0]
    nearest = calibration.nearest_rank(said, p.n_ranks)
    total = w.sum(axis=1)
    return {
        "rho": _rho(p, w, y),
        "weighted_kappa": _weighted_kappa(nearest, w, y),
        "mae": (w * np.abs(y - said)).sum(axis=1) / total,
        "accuracy": (w * (y == nearest)).sum(axis=1) / total,
    }


def _weighted_kappa(said: Array, w: Array, y: Array) -> Array:
    """Kappa with quadratic weights: 1 less the mean squared distance over that of independent raters [1]_.

    For the squared distance both follow from means, variances and the covariance. Undefined where both say one level only,
    the same.

    References
    ----------
    .. [1] Cohen (1968), Psychological Bulletin 70(4). doi:10.1037/h0026256
    """
    total = w.sum(axis=1)
    mean_y, mean_said = (w * y).sum(axis=1) / total, (w @ said) / total
    var_y, var_said = (w * y**2).sum(axis=1) / total - mean_y**2, (w @ said**2) / total - mean_said**2
    together = (w * y * said).sum(axis=1) / total - mean_y * mean_said
    by_chance = var_y + var_said + (mean_y - mean_said) ** 2
    return _ratio(2 * together, np.where(by_chance > 1e-12, by_chance, 0))


def _rho(p: Predictions, w: Array, y: Array) -> Array:
    """Spearman's correlation of ranks [1]_ within folds, each fold weighing as much as its rows; ties share their mean rank.

    0 where predictions do not vary within any fold, undefined where the truth does not.

    References
    ----------
    .. [1] Spearman (1904), American Journal of Psychology 15(1). doi:10.2307/1412159
    """
    together, var_y, var_said = np.zeros(1), np.zeros(1), np.zeros(1)
    for fold in np.unique(p.folds):
        at = p.folds == fold
        mine = w[:, at]
        different, place = np.unique(p.scores[at, 0], return_inverse=True)
        a = _centred_ranks(y[:, at].astype(np.intp), p.n_ranks, mine)
        b = _centred_ranks(place[None], len(different), mine)
        together = together + (mine * a * b).sum(axis=1)
        var_y, var_said = var_y + (mine * a**2).sum(axis=1), var_said + (mine * b**2).sum(axis=1)
    varies = var_said > 1e-12 * w.sum(axis=1)
    known = np.where(var_y > 1e-12 * w.sum(axis=1), var_y, 0)
    return np.where(known > 0, np.where(varies, _ratio(together, np.sqrt(known * var_said)), 0), np.nan)


def _centred_ranks(place: NDArray[np.intp], n: int, w: Array) -> Array:
    """Rank rows that count ``w`` times, (draw, row), by their place among ``n``: from 0 to 1, less their mean."""
    shape = np.broadcast_shapes(place.shape, w.shape)
    at = np.broadcast_to(place, shape) + n * np.arange(shape[0])[:, None]
    counts = np.bincount(at.ravel(), np.broadcast_to(w, shape).ravel(), minlength=n * shape[0]).reshape(shape[0], n)
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    ranks = (counts.cumsum(axis=1) - counts / 2) / total
    return np.asarray(np.take_along_axis(ranks, np.broadcast_to(place, shape), axis=1) - 0.5)


def _ratio(a: Array, b: Array) -> Array:
    out: Array = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)
    return out


def intervals(predictions: Predictions, *, n: int, seed: int) -> dict[str, tuple[float, float]]:
    """Draw participants with replacement, with all their predictions, and take percentiles of every metric [1]_.

    Relatives are alike: families are drawn in their place, where there are some.

    References
    ----------
    .. [1] Efron (1979), Annals of Statistics 7(1). doi:10.1214/aos/1176344552
    """
    drawn = [score(predictions, weights) for (weights,) in _samples([predictions], n, seed)]
    edges = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    joined = {name: np.concatenate([d[name] for d in drawn]) for name in predictions.names}
    return {name: tuple(np.nanpercentile(values, edges)) for name, values in joined.items()}  # type: ignore[misc]


def drawn(several: Sequence[Predictions], metric: str, *, n: int, seed: int) -> Array:
    """Score several models on the same draws of participants, (draw, model); draws in which a score is undefined are dropped."""
    found = np.concatenate([
        np.stack([score(p, weights)[metric] for p, weights in zip(several, batch, strict=True)], axis=1)
        for batch in _samples(several, n, seed)
    ])  # fmt: skip
    return np.asarray(found[np.isfinite(found).all(axis=1)])


def _samples(several: Sequence[Predictions], n: int, seed: int) -> Iterator[list[Array]]:
    """Draw participants with replacement, in batches: how often each row of each model's predictions counts, (draw, row)."""
    people = np.unique(np.concatenate([p.drawn_together for p in several]))
    codes = [np.searchsorted(people, p.drawn_together) for p in several]
    generator, even = np.random.default_rng(seed), np.full(len(people), 1 / len(people))
    for size in _draws(n, max(len(p.truth) for p in several)):
        counts = generator.multinomial(len(people), even, size=size).astype(float)
        yield [counts[:, code] for code in codes]


def p_values(predictions: Predictions, *, n: int, seed: int) -> dict[str, float]:
    """Permute the labels against the held-out predictions, within folds: how often is chance as good.

    A participant keeps one label over repeats, so permutations move people, not rows; relatives change places with each
    other, and families with those of their size [2]_. Where rows are moments of runs, the labels of each run are moved in a
    circle instead (`bids_dl.shifting.shifts`). The models are held fixed: folds share training rows, so that in
    cross-validation p is too small (`bids_dl.doubts`); [1]_ train again, as `bids_dl.nulls` does.

    References
    ----------
    .. [1] Ojala and Garriga (2010), Journal of Machine Learning Research 11, 1833-1863.
    .. [2] Winkler et al. (2015), NeuroImage 123. doi:10.1016/j.neuroimage.2015.05.092
    """
    observed = score(predictions)
    null_labels = _relabelled(predictions, np.random.default_rng(seed))
    extreme = dict.fromkeys(predictions.names, 1)
    for size in _draws(n, len(predictions.truth)):
        null = score(predictions, truth=np.stack([next(null_labels) for _ in range(size)]))
        for name in predictions.names:
            extreme[name] += int(as_good(null[name], observed[name], name).sum())
    return {name: count / (n + 1) for name, count in extreme.items()}


def _relabelled(p: Predictions, generator: np.random.Generator) -> Iterator[Array]:
    """Draw labels under the null without end: of people, or of each run's course."""
    if p.runs is not None:
        return shifting.shifts(p.truth, p.runs, generator, p.folds)
    people, first, code = np.unique(p.participants, return_index=True, return_inverse=True)
    strata = strata_of(p.folds[first]) if len(people) == len(p.truth) else np.zeros(len(people), int)
    families = None if p.families is None else p.families[first]
    return (permuted(p.truth[first], strata, generator, families)[code] for _ in itertools.count())


def as_good(null: Array, observed: Array | float, metric: str) -> NDArray[np.bool_]:
    """Tell which values of the null are at least as good as what was observed; undefined ones count as good."""
    margin = 1e-9  # sums in another order differ by rounding; equal scores count against the model
    better = null <= observed + margin if metric in LOWER_IS_BETTER else null >= observed - margin
    return np.asarray(better | np.isnan(null) | np.isnan(observed))


def strata_of(folds: NDArray[np.intp]) -> NDArray[np.intp]:
    """Labels change places within folds, (row,); everywhere where each fold is one row."""
    return folds if len(np.unique(folds)) < len(folds) else np.zeros(len(folds), np.intp)


def permuted(
    values: Array, strata: NDArray[np.intp], generator: np.random.Generator, families: NDArray[np.intp] | None = None
) -> Array:
    """Let values change places within their stratum: relatives with each other, families with those of their size."""
    moved = values.copy()
    for stratum in np.unique(strata):
        at = np.flatnonzero(strata == stratum)
        for members in [at[:, None]] if families is None else _by_size(at, families[at]):
            moved[members] = values[generator.permuted(generator.permutation(members), axis=1)]
    return moved


def _by_size(rows: NDArray[np.intp], families: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Lay out the rows of all families of one size, (family, member), for each size."""
    _, code, counts = np.unique(families, return_inverse=True, return_counts=True)
    order = np.argsort(code, kind="stable")
    for size in np.unique(counts):
        yield rows[order[counts[code[order]] == size]].reshape(-1, size)


def _draws(n: int, n_rows: int) -> list[int]:
    """Cut many draws into batches that fit into memory."""
    step = max(1, min(n, 2**22 // max(1, n_rows)))
    return [min(step, n - start) for start in range(0, n, step)]


def chance(predictions: Predictions, metric: str) -> float:
    """What a model that knows nothing reaches."""
    y = predictions.truth
    if predictions.n_ranks:
        share = np.bincount(y.astype(int)) / len(y)
        off = float(np.abs(y - np.median(y)).mean())
        return {"rho": 0.0, "weighted_kappa": 0.0, "mae": off, "accuracy": float(share.max())}[metric]
    if not predictions.n_levels:
        return {"mae": float(np.abs(y - np.median(y)).mean()), "r2": 0.0, "r": 0.0, "rmse": float(y.std())}[metric]
    share = np.bincount(y.astype(int), minlength=predictions.n_levels) / len(y)
    brier = float((share * (1 - share)).sum()) / (2 if predictions.n_levels == 2 else 1)
    f1 = 2 * share[1] / (1 + share[1]) if predictions.n_levels == 2 else 1 / predictions.n_levels
    return {
        "auc": 0.5,
        "balanced_accuracy": 1 / predictions.n_levels,
        "f1": f1,
        "brier": brier,
        "accuracy": float(share.max()),
    }[metric]


def table(
    predictions: Predictions,
    *,
    n_bootstraps: int,
    n_permutations: int,
    seed: int,
    retrained: Callable[[str], float] | None = None,
) -> list[dict[str, Any]]:
    """Lay out every metric with interval, p-value and chance: a row a metric."""
    values = score(predictions)
    ranges = intervals(predictions, n=n_bootstraps, seed=seed)
    p = p_values(predictions, n=n_permutations, seed=seed)
    return [
        {
            "metric": name, "value": float(values[name][0]), "ci_low": ranges[name][0], "ci_high": ranges[name][1],
            "p_value": p[name], "p_value_retrained": retrained(name) if retrained else np.nan,
            "n": len(np.unique(predictions.participants)), "chance": chance(predictions, name),
        }
        for name in predictions.names
    ]  # fmt: skip


def bounds(metric: str) -> tuple[float, float]:
    """Say between what a score lies."""
    if metric in {"mae", "rmse"}:
        return 0.0, np.inf
    return {"r2": -np.inf, "r": -1.0, "rho": -1.0, "weighted_kappa": -1.0}.get(metric, 0.0), 1.0


def some(predictions: Predictions, at: NDArray[np.bool_]) -> Predictions:
    """Keep some of the rows."""
    p = predictions
    runs, families = (None if one is None else one[at] for one in (p.runs, p.families))
    return replace(
        p, truth=p.truth[at], scores=p.scores[at], participants=p.participants[at], folds=p.folds[at], runs=runs,
        families=families,
    )  # fmt: skip


def by_level(predictions: Predictions, levels: Sequence[str]) -> list[dict[str, Any]]:
    """Score the participants of each level by themselves; ``levels`` names that of each row, empty for none."""
    rows = []
    labels = np.asarray(levels, dtype=object)
    for level in sorted(set(levels) - {""}, key=str):
        mine = some(predictions, labels == level)
        values = score(mine)
        rows += [
            {"level": level, "metric": m, "value": float(values[m][0]), "n": len(np.unique(mine.participants))}
            for m in mine.names
        ]
    return rows
