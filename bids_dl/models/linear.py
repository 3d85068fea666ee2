"""Penalised linear models: logistic regression or ridge, their penalty chosen inside the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SUITS = ("volume", "maps", "edge", "column")
BY_DEFAULT = True


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
        ``LogisticRegressionCV`` (by log loss) or ``RidgeCV``; the trainer sets its inner folds.

    References
    ----------
    .. [1] Cox (1958), Journal of the Royal Statistical Society B 20(2). doi:10.1111/j.2517-6161.1958.tb00292.x
    .. [2] Hoerl and Kennard (1970), Technometrics 12(1). doi:10.1080/00401706.1970.10488634
    """
    from sklearn.linear_model import LogisticRegressionCV, RidgeCV

    n_values = max(1, int(np.prod(shapes[0])) if shapes else 1)
    grid = np.geomspace(strongest, weakest, n_penalties) / n_values
    if not classify:
        return RidgeCV(alphas=1 / grid, scoring="neg_mean_squared_error")
    return LogisticRegressionCV(
        Cs=grid, l1_ratios=(0.0,), scoring="neg_log_loss", class_weight="balanced", max_iter=500, use_legacy_attributes=False,
    )  # fmt: skip
