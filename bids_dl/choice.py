"""Choose among a model's options inside the training rows, by how well each predicts rows that it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bids_dl import logistic, ridge
from bids_dl.records import Array

Rows = NDArray[np.intp]
STRETCHES = 2.0 ** np.arange(-5, 6)
"""What outputs are multiplied by, to see what they are worth after calibration."""


def choose(
    outputs: Callable[[Rows, Rows], Array], y: Array, folds: Sequence[tuple[Rows, Rows]], *, n_options: int, n_outputs: int,
    is_class: bool,
) -> tuple[int, Array]:  # fmt: skip
    """Fit every option on the inner folds and take the one whose outputs on the rows left out are best.

    Parameters
    ----------
    outputs
        Fits every option on some rows and returns (option, row, output) for others; the simplest option comes first.
    y
        Codes of classes, or a standardised quantity, (row,).
    folds
        Rows to fit on and rows to judge by, inside the training rows.
    n_options
        How many there are.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    is_class
        Judge by `log_loss`, else by the squared error.

    Returns
    -------
    chosen, held_out
        The number of the best option (the first of equals, the middle one where no fold could be fitted), and its
        outputs (row, output) by the fits that did not see the row; NaN in a fold whose rows lack a class.
    """
    found = np.full((n_options, len(y), n_outputs), np.nan)
    for train, held in folds:
        if not is_class or len(np.unique(y[train])) >= max(2, n_outputs):
            found[:, held] = outputs(train, held)
    known = np.isfinite(found).all(axis=(0, 2))
    if not known.any():
        return n_options // 2, found[n_options // 2]
    judge = log_loss if is_class else _squared_error
    chosen = int(np.argmin([judge(one[known], y[known]) for one in found]))
    return chosen, found[chosen]


def log_loss(outputs: Array, y: Array) -> float:
    """Score logits, of any scale, by the log loss at the best of some scales: calibration stretches them later.

    Parameters
    ----------
    outputs
        (row, output).
    y
        Codes (row,); each class has the same say.
    """
    logits = outputs if outputs.shape[1] > 1 else np.hstack([-outputs, outputs]) / 2
    codes, counts = np.unique(y.astype(int), return_counts=True)
    weights = 1 / counts[np.searchsorted(codes, y.astype(int))] / len(codes)
    return min(float(weights @ _surprise(stretch * logits, y.astype(int))) for stretch in STRETCHES)


def _surprise(logits: Array, y: NDArray[np.int_]) -> Array:
    """Return minus the log of each row's own class's probability, (row,)."""
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(logits, axis=1)[np.arange(len(y)), y])


def _squared_error(outputs: Array, y: Array) -> float:
    return float(np.mean((outputs[:, 0] - y) ** 2))


def penalised(
    x: Array, y: Array, folds: Sequence[tuple[Rows, Rows]], penalties: Array, *, n_outputs: int, is_class: bool
) -> tuple[int, Array, Array, Array]:
    """Choose an inverse penalty of logistic or ridge regression by the inner folds, and fit all rows with it.

    Returns
    -------
    chosen, held_out, weights, bias
        As `choose` does, the strongest penalty being the simplest; then weights (output, value) and biases (output,).
    """
    if not is_class:
        return _ridge(x, y, folds, 1 / penalties)

    def outputs(train: Rows, held: Rows) -> Array:
        weights, bias = logistic.path(x[train], y[train].astype(int), penalties, n_outputs=n_outputs)
        return x[held] @ weights.mT + bias[:, None]  # (penalty, row, output)

    best, held_out = choose(outputs, y, folds, n_options=len(penalties), n_outputs=n_outputs, is_class=True)
    weights, bias = logistic.path(x, y.astype(int), penalties[: best + 1], n_outputs=n_outputs)
    return best, held_out, weights[-1], bias[-1]


class Penalised:
    """Logistic or ridge regression whose penalty is chosen by inner folds ``cv``, used as scikit-learn's estimators are.

    ``coef_`` (output, value), ``intercept_`` (output,) and ``penalty_``, the inverse penalty, are what it learns; ``held_``
    (row, output) are the rows' outputs by the inner fits that did not see them.
    """

    def __init__(self, penalties: Array, n_outputs: int, *, is_class: bool) -> None:
        self.penalties, self.n_outputs, self.is_class = np.asarray(penalties), n_outputs, is_class
        self.cv: Sequence[tuple[Rows, Rows]] = ()

    def fit(self, x: Array, y: Array) -> Penalised:
        """Choose a penalty and fit all rows (row, value); the middle one without folds."""
        best, self.held_, self.coef_, self.intercept_ = penalised(
            x, y, self.cv, self.penalties, n_outputs=self.n_outputs, is_class=self.is_class
        )
        self.penalty_ = float(self.penalties[best])
        return self


def _ridge(x: Array, y: Array, folds: Sequence[tuple[Rows, Rows]], penalties: Array) -> tuple[int, Array, Array, Array]:
    """Choose a penalty of ridge regression; inner products of rows, where these are fewer, serve all folds."""
    by_rows = min((len(train) for train, _ in folds), default=len(x)) < x.shape[1]
    inner = ridge.products(x) if by_rows else np.zeros((0, 0))

    def outputs(train: Rows, held: Rows) -> Array:
        if by_rows:
            dual, bias = ridge.of_rows(inner[np.ix_(train, train)], y[train], penalties)
            found = dual @ inner[np.ix_(train, held)]
        else:
            weights, bias = ridge.of_values(x[train], y[train], penalties)
            found = weights @ x[held].T
        return np.asarray(found + bias[:, None])[..., None]

    best, held_out = choose(outputs, y, folds, n_options=len(penalties), n_outputs=1, is_class=False)
    if by_rows:
        dual, bias = ridge.of_rows(inner, y, penalties[[best]])
        return best, held_out, dual @ x, bias
    return best, held_out, *ridge.of_values(x, y, penalties[[best]])


def each_class(y: Array, n_outputs: int, *, is_class: bool) -> list[Array]:
    """List what each output is fitted to: the quantity, or 1 for its class and 0 for the others."""
    if not is_class or n_outputs == 1:
        return [y]
    return [(y == code).astype(np.float64) for code in range(n_outputs)]
