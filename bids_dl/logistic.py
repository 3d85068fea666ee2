"""Logistic regression for many penalties: from the strongest to the weakest, each begins where the last one ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bids_dl import threads
from bids_dl.records import Array

GRADIENT, LINE_SEARCH, MOST_STEPS = 1e-4, 50, 500
"""Where L-BFGS stops: the largest part of the gradient of the mean loss; trials and steps, as scikit-learn has them."""


def path(x: Array, y: NDArray[np.int_], penalties: Sequence[float] | Array, *, n_outputs: int) -> tuple[Array, Array]:
    """Fit all rows for each inverse penalty [1]_; each class has the same say, and the intercept is not penalised.

    The objective and the rule that ends it are those of scikit-learn's ``LogisticRegression(class_weight="balanced")``: with
    a weak penalty it stops before the minimum, which is a penalty too.

    Parameters
    ----------
    x
        Rows of unit variance, or coordinates of such rows, (row, value).
    y
        Codes of classes, (row,); each of them occurs.
    penalties
        Inverse penalties in rising order: what the summed loss is multiplied by, against half the sum of squared weights.
    n_outputs
        1 for two classes, else one a class.

    Returns
    -------
    weights, bias
        (penalty, output, value) and (penalty, output).

    References
    ----------
    .. [1] Liu and Nocedal (1989), Mathematical Programming 45. doi:10.1007/BF01589116
    """
    from scipy.optimize import minimize

    say = len(y) / (np.bincount(y)[y] * len(np.unique(y)))  # sums to the number of rows
    told = np.eye(n_outputs)[y] if n_outputs > 1 else y[:, None].astype(np.float64)
    options = {"maxiter": MOST_STEPS, "maxls": LINE_SEARCH, "gtol": GRADIENT, "ftol": 64 * np.finfo(float).eps}
    at, found = np.zeros(n_outputs * (x.shape[1] + 1)), []
    with threads.for_vectors(x.size):  # each step of L-BFGS also solves a system of 20
        for penalty in penalties:
            given = (x, told, say / say.sum(), 1 / (penalty * say.sum()))
            at = minimize(_loss, at, given, method="L-BFGS-B", jac=True, options=options).x
            found.append(at.reshape(n_outputs, -1))
    both = np.stack(found)
    return both[..., :-1], both[..., -1]


def _loss(at: Array, x: Array, told: Array, say: Array, strength: float) -> tuple[float, Array]:
    """Return the mean loss and its gradient, for weights (output, value) with their bias last."""
    both = at.reshape(told.shape[1], -1)
    weights = both[:, :-1].astype(x.dtype)  # or every step would copy the rows to bring them to float64
    logits = x @ weights.T + both[:, -1]  # (row, output)
    surprise, excess = _of_two(logits, told) if told.shape[1] == 1 else _of_many(logits, told)
    excess *= say[:, None]
    gradient = np.hstack([excess.T.astype(x.dtype) @ x + strength * weights, excess.sum(axis=0)[:, None]])
    return float(say @ surprise + strength * (weights**2).sum() / 2), gradient.ravel()


def _of_two(logits: Array, told: Array) -> tuple[Array, Array]:
    """Return each row's minus log probability, (row,), and by how much its probability is too high, (row, 1)."""
    from scipy.special import expit

    surprise = np.logaddexp(0, logits) - told * logits
    return surprise[:, 0], expit(logits) - told


def _of_many(logits: Array, told: Array) -> tuple[Array, Array]:
    """Return the same for one logit a class, (row,) and (row, class)."""
    from scipy.special import log_softmax

    log_share = log_softmax(logits, axis=1)
    return -(told * log_share).sum(axis=1), np.exp(log_share) - told
