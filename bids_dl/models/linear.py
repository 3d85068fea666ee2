"""Penalised linear models: logistic regression or ridge, their penalty chosen inside the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bids_dl import choice
from bids_dl.records import Array

SUITS = ("volume", "maps", "edge", "column")
BY_DEFAULT = True


class Ridge:
    """Ridge regression whose penalty is chosen by inner folds ``cv``, as scikit-learn's estimators are used.

    ``held_`` (row, 1) are the rows' outputs by the inner fits that did not see them, with the penalty that was chosen.
    """

    def __init__(self, alphas: Array) -> None:
        self.alphas = alphas
        self.cv: Sequence[tuple[choice.Rows, choice.Rows]] = ()

    def fit(self, x: Array, y: Array) -> Ridge:
        """Choose a penalty and fit all rows (row, value); the middle one without folds."""
        best, self.held_, self.coef_, self.intercept_ = choice.penalised(
            x, y, self.cv, 1 / self.alphas, n_outputs=1, is_class=False
        )
        self.alpha_ = float(self.alphas[best])
        return self


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True, weakest: float = 1e4, strongest: float = 1e-3,
    n_penalties: int = 6,
) -> Any:  # fmt: skip
    """Fit logistic regression [1]_ or ridge regression [2]_ with an L2 penalty.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        Not used: scikit-learn sees it in the labels.
    classify
        Classes or a quantity; set by the target.
    weakest, strongest
        Range of inverse penalties that the inner folds choose from, for inputs of unit variance.
    n_penalties
        How many values of the range are tried.

    Returns
    -------
    estimator
        ``LogisticRegressionCV`` (by log loss) or `Ridge` (by the squared error); the trainer sets its inner folds.

    References
    ----------
    .. [1] Cox (1958), Journal of the Royal Statistical Society B 20(2). doi:10.1111/j.2517-6161.1958.tb00292.x
    .. [2] Hoerl and Kennard (1970), Technometrics 12(1). doi:10.1080/00401706.1970.10488634
    """
    from sklearn.linear_model import LogisticRegressionCV

    n_values = max(1, int(np.prod(shapes[0])) if shapes else 1)
    grid = np.geomspace(strongest, weakest, n_penalties) / n_values
    if not classify:
        return Ridge(1 / grid)
    return LogisticRegressionCV(
        Cs=grid, l1_ratios=(0.0,), scoring="neg_log_loss", class_weight="balanced", max_iter=500, use_legacy_attributes=False,
    )  # fmt: skip
