"""An estimator as scikit-learn has them, fitted on values or on coordinates in the span of the training rows: its weights and biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bids_dl import building, material
from bids_dl import span as spans
from bids_dl.material import Material, Rows
from bids_dl.records import Array, Split
from bids_dl.settings import Settings


def fit(
    definition: Mapping[str, Any], data: Material, split: Split, settings: Settings, *, small: bool
) -> tuple[Array, Array, float]:
    """Fit an estimator of one input, in the span of the training rows where that is ``small``.

    Returns
    -------
    tuple
        Weights on the values (output, value), biases (output,), and the penalty that was chosen, NaN where there is none.
    """
    pool = split.pool
    span = spans.rotated(data.kernel(pool), pool) if small else None
    x = span.coordinates(data.kernel(pool), pool) if span else np.nan_to_num(data.rows(pool)[0].flatten(1).numpy())
    weights, bias, penalty = estimate(definition, x, data, split, settings)
    if span is not None:
        weights = data.folded(span.mixing(weights), pool)
    return weights[:, : int(np.prod(data.shapes[0]))], bias, penalty


def estimate(
    definition: Mapping[str, Any], x: Array, data: Material, split: Split, settings: Settings
) -> tuple[Array, Array, float]:
    """Fit an estimator on ``x``, the training rows' values or coordinates, and note its outputs for rows held out.

    Returns
    -------
    tuple
        Weights (output, value), biases (output,), and the penalty that was chosen.
    """
    pool = split.pool
    x = x if x.shape[1] else np.zeros((len(pool), 1), np.float32)
    estimator = building.instantiate({**definition, "shapes": [[x.shape[1]]]}, classify=data.is_class)
    if hasattr(estimator, "cv"):
        estimator.cv = inner_folds(split, data, settings)
    estimator.fit(x, data.y[pool].astype(int) if data.is_class else data.y[pool])
    weights, bias = _linear_parts(estimator, x.shape[1], data.target.n_outputs)
    data.held.append((pool, _held_by(estimator, x, data, split, settings)))
    return weights, bias, float(getattr(estimator, "penalty_", float("nan")))


def inner_folds(split: Split, data: Material, settings: Settings) -> list[tuple[Rows, Rows]]:
    """Divide the training rows again to choose a penalty, like the outer folds; returns positions in the pool."""
    pool = split.pool
    parts = material.parts(split, data.y, data.target, 5, settings.seed)
    return [(np.searchsorted(pool, a), np.searchsorted(pool, b)) for a, b in parts]


def _held_by(estimator: Any, x: Array, data: Material, split: Split, settings: Settings) -> Array:
    """Return each row's output by an inner fit without it, fitted once more where the estimator has not kept them."""
    if hasattr(estimator, "held_"):
        return np.asarray(estimator.held_, np.float64)
    from sklearn.base import clone

    pool = split.pool
    n_outputs = data.target.n_outputs
    found = np.full((len(pool), n_outputs), np.nan)
    for train, held in inner_folds(split, data, settings):
        y = data.y[pool[train]]
        if data.is_class and len(np.unique(y)) < len(data.target.levels):
            continue
        one = clone(estimator).fit(x[train], y.astype(int) if data.is_class else y)
        weights, bias = _linear_parts(one, x.shape[1], n_outputs)
        found[held] = x[held] @ weights.T + bias
    return found


def _linear_parts(estimator: Any, n_values: int, n_outputs: int) -> tuple[Array, Array]:
    """Read an estimator's weights (output, value) and biases; one that has none is constant."""
    if hasattr(estimator, "coef_"):
        return np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if hasattr(estimator, "class_prior_"):
        prior = np.log(np.maximum(estimator.class_prior_, 1e-9))
        bias = prior if n_outputs > 1 else np.array([prior[1] - prior[0]])
    else:
        bias = np.ravel(estimator.constant_)
    return np.zeros((len(bias), n_values)), bias
