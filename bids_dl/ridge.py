"""Ridge regression of one quantity for many penalties: one matrix of inner products, one Cholesky factor a penalty.

The matrix is that of rows or of values, whichever are fewer; sums are in float64 whatever the values are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_dl import threads
from bids_dl.records import Array

TOGETHER = 1024
"""Values, or rows, that are turned into float64 at once."""


def products(x: Array) -> Array:
    """Multiply rows (row, value) with one another, (row, row) in float64, without a float64 copy of all."""
    total = np.zeros((len(x), len(x)))
    for start in range(0, x.shape[1], TOGETHER):
        part = x[:, start : start + TOGETHER].astype(np.float64)
        total += part @ part.T
    return total


def of_rows(inner: Array, y: Array, penalties: Sequence[float] | Array) -> tuple[Array, Array]:
    """Fit as many unknowns as there are rows [1]_; the intercept is not penalised.

    Parameters
    ----------
    inner
        Inner products of the rows, (row, row); they need not be centred.
    y
        The quantity, (row,).
    penalties
        Of the weights' squares, beside the sum of squared errors; above 0.

    Returns
    -------
    dual, bias
        (penalty, row), each row's part in the weights, which sums to 0; (penalty,). Inner products with other rows
        (row, other) give predictions ``dual @ products + bias``.

    References
    ----------
    .. [1] Saunders, Gammerman and Vovk (1998), ICML.
    """
    right = np.stack([y, np.ones(len(y))], axis=1)  # (row, 2)
    solved = np.stack([_solve(inner, penalty, right) for penalty in penalties])  # (penalty, row, 2)
    sums = solved.sum(axis=1)
    bias = sums[:, 0] / sums[:, 1]
    return solved[..., 0] - bias[:, None] * solved[..., 1], bias


def of_values(x: Array, y: Array, penalties: Sequence[float] | Array) -> tuple[Array, Array]:
    """Fit as many unknowns as there are values in rows (row, value); returns weights (penalty, value), bias (penalty,)."""
    mean = x.mean(axis=0, dtype=np.float64)
    inner, right = np.zeros((x.shape[1], x.shape[1])), np.zeros(x.shape[1])
    for start in range(0, len(x), TOGETHER):
        part = x[start : start + TOGETHER] - mean
        with threads.for_values(inner.size):
            inner += part.T @ part
        right += part.T @ (y[start : start + TOGETHER] - y.mean())
    weights = np.stack([_solve(inner, penalty, right) for penalty in penalties])
    return weights, y.mean() - weights @ mean


def _solve(inner: Array, penalty: float, right: Array) -> Array:
    """Solve with a penalty on the diagonal; one that rounding would swallow is raised above it."""
    from scipy.linalg import cho_factor, cho_solve

    matrix = inner.copy()
    matrix[np.diag_indices(len(inner))] += penalty + np.finfo(np.float64).eps * np.trace(inner)
    with threads.for_values(matrix.size):
        factor = cho_factor(
            matrix.T, lower=True, overwrite_a=True, check_finite=False
        )  # its transpose: overwritten in place
        found: Array = cho_solve(factor, right, check_finite=False)
    return found
