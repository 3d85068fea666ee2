"""Which model is better: the same folds or the same other dataset, a test that suits it, and all tests counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import metrics
from bids_dl.metrics import Predictions
from bids_dl.records import Array

LEVEL = 0.95
ROUNDING = 1e-12
"""Differences up to which two scores are the same."""


def corrected_t(differences: Array, test_share: float) -> tuple[float, float]:
    """Corrected resampled t-test of the mean difference over folds and repeats [1]_.

    Parameters
    ----------
    differences
        (fold,): one model's score less the other's.
    test_share
        Test participants for each training participant, n_test / n_train, which corrects for shared training rows.

    Returns
    -------
    t, standard_error
        With ``len(differences) - 1`` degrees of freedom; NaN below two folds, and where every fold differs by the same
        (small folds in which one model is perfect): nothing then says how far chance reaches.

    References
    ----------
    .. [1] Nadeau and Bengio (2003), Machine Learning 52(3). doi:10.1023/A:1024068626366
    """
    k = len(differences)
    if k < 2:
        return float("nan"), float("nan")
    error = float(np.sqrt((1 / k + test_share) * differences.var(ddof=1)))
    mean = float(differences.mean())
    if error > ROUNDING:
        return mean / error, error
    return (0.0, 0.0) if abs(mean) <= ROUNDING else (float("nan"), float("nan"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, step by step from the smallest [1]_; NaN stays NaN and does not count.

    References
    ----------
    .. [1] Holm (1979), Scandinavian Journal of Statistics 6(2). https://www.jstor.org/stable/4615733
    """
    given = np.asarray(p_values, float)
    adjusted = np.full(len(given), np.nan)
    order = [i for i in np.argsort(given, kind="stable") if np.isfinite(given[i])]
    worst = 0.0
    for step, at in enumerate(order):
        worst = max(worst, min(1.0, given[at] * (len(order) - step)))
        adjusted[at] = worst
    return [float(v) for v in adjusted]


def fold_scores(predictions: Predictions, participants: NDArray[np.intp], metric: str) -> dict[int, float]:
    """Score each fold over some participants; folds in which the metric is undefined are left out."""
    common = np.isin(predictions.participants, participants)
    found = {}
    for fold in np.unique(predictions.folds):
        at = common & (predictions.folds == fold)
        if at.any():
            value = float(metrics.score(metrics.some(predictions, at))[metric][0])
            if np.isfinite(value):
                found[int(fold)] = value
    return found


def compare(one: Predictions, other: Predictions, metric: str, n_train: Sequence[int]) -> dict[str, Any]:
    """Compare two models fold by fold, over the participants that both predict.

    Parameters
    ----------
    one, other
        Held-out predictions on the same splits.
    metric
        Which score.
    n_train
        Training participants of each fold.

    Returns
    -------
    dict
        ``difference`` (one less other) with its interval, ``t``, ``dof``, ``p_value`` (two-sided), ``n_folds``.
    """
    both = np.intersect1d(one.participants, other.participants)
    a, b = fold_scores(one, both, metric), fold_scores(other, both, metric)
    folds = sorted(set(a) & set(b))
    differences = np.array([a[f] - b[f] for f in folds])
    found = _tested(differences, _test_share(one, both, folds, n_train))
    return {"metric": metric, "difference": found.pop("mean"), **found, "n_folds": len(folds)}


def spread(predictions: Predictions, metric: str, n_train: Sequence[int]) -> tuple[float, float]:
    """Find the interval of a model's mean score over folds, whose training rows differ as its test rows do.

    An interval over participants takes the fitted models as they are; this one says how far the score would be off with other
    participants to train on as well. Training sets overlap, which the variance is corrected for [1]_.

    Parameters
    ----------
    predictions
        Held-out predictions.
    metric
        Which score.
    n_train
        Training participants of each fold.

    Returns
    -------
    low, high
        Ends of the 95 % interval, not beyond what the score can be; NaN below two folds in which it is defined, or where all
        are equal, which says nothing about the spread.

    References
    ----------
    .. [1] Nadeau and Bengio (2003), Machine Learning 52(3). doi:10.1023/A:1024068626366
    """
    everybody = np.unique(predictions.participants)
    scores = fold_scores(predictions, everybody, metric)
    if len(set(scores.values())) < 2:
        return float("nan"), float("nan")
    found = _tested(np.array(list(scores.values())), _test_share(predictions, everybody, list(scores), n_train))
    low, high = metrics.bounds(metric)
    return max(found["ci_low"], low), min(found["ci_high"], high)


def _test_share(one: Predictions, who: NDArray[np.intp], folds: Sequence[int], n_train: Sequence[int]) -> float:
    """Average n_test / n_train over folds."""
    n_test = np.array([(np.isin(one.participants, who) & (one.folds == f)).sum() for f in folds])
    return float(np.mean(n_test / np.asarray(n_train)[list(folds)])) if len(folds) else float("nan")


def _tested(values: Array, test_share: float) -> dict[str, Any]:
    """Test the mean of values of folds against 0, and give it an interval, both corrected for overlapping training sets."""
    from scipy import stats

    t, error = corrected_t(values, test_share)
    dof = len(values) - 1
    half = float(stats.t.ppf((1 + LEVEL) / 2, dof) * error) if dof > 0 else float("nan")
    mean = float(values.mean()) if len(values) else float("nan")
    p = 2 * float(stats.t.sf(abs(t), dof)) if dof > 0 else float("nan")
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "t": t, "dof": dof, "p_value": p}


def compare_once(one: Predictions, other: Predictions, metric: str, *, n: int, seed: int) -> dict[str, Any]:
    """Compare two models on a single held-out set, by drawing the participants that both predict with replacement.

    Both models are scored on the same draws, so that what is easy or hard about a participant cancels [1]_. The models
    are held fixed: nothing is said of other training sets.

    Parameters
    ----------
    one, other
        Predictions of the same held-out set.
    metric
        Which score.
    n, seed
        How often participants are drawn, and by which numbers.

    Returns
    -------
    dict
        ``difference`` (one less other) with its percentile interval, ``p_value`` (two-sided: twice the part of the draws,
        with the data as one of them, in which the sign is the other one or nothing differs), ``n`` participants. NaN
        where the score is undefined.

    References
    ----------
    .. [1] Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 13 and 15. doi:10.1201/9780429246593
    """
    both = np.intersect1d(one.participants, other.participants)
    nothing = {"difference": np.nan, "ci_low": np.nan, "ci_high": np.nan, "p_value": np.nan}
    found: dict[str, Any] = {"metric": metric, **nothing, "n": len(both)}
    if not len(both):
        return found
    ours, theirs = (metrics.some(p, np.isin(p.participants, both)) for p in (one, other))
    found["difference"] = float((metrics.score(ours)[metric] - metrics.score(theirs)[metric])[0])
    drawn = metrics.drawn([ours, theirs], metric, n=n, seed=seed)
    differences = drawn[:, 0] - drawn[:, 1]
    if not len(differences) or not np.isfinite(found["difference"]):
        return found
    low, high = np.percentile(differences, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    fewest = min(int((differences <= ROUNDING).sum()), int((differences >= -ROUNDING).sum()))
    p = min(1.0, 2 * (1 + fewest) / (1 + len(differences)))
    return found | {"ci_low": float(low), "ci_high": float(high), "p_value": p}


def counted(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add ``p_holm`` to comparisons: their p-values adjusted for how many there are."""
    adjusted = holm([row["p_value"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def pairs(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name the comparisons that matter: each network and fusion with the linear models of its inputs and the confounds.

    Where no linear model takes its inputs (a sequence), it is compared with those of all other features.
    """
    linear = {m["inputs"][0]: m["id"] for m in models if m["method"] == "linear"}
    confounds = [m["id"] for m in models if m["method"] == "confounds_only"]
    found = []
    for model in models:
        if model["role"] in {"network", "fusion"}:
            own = [linear[name] for name in model["inputs"] if name in linear]
            found += [(model["id"], other) for other in own or linear.values()]
        if model["role"] in {"network", "fusion"} or model["method"] == "linear":
            found += [(model["id"], other) for other in confounds]
    return found
