"""Penalised linear models: logistic regression or ridge, their penalty chosen inside the training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_dl import choice

SUITS = ("volume", "maps", "edge", "column")
BY_DEFAULT = True


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True, weakest: float = 1e4, strongest: float = 1e-3,
    n_penalties: int = 6,
) -> choice.Penalised:  # fmt: skip
    """Fit logistic regression [1]_ or ridge regression [2]_ with an L2 penalty.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    classify
        Classes or a quantity; set by the target.
    weakest, strongest
        Range of inverse penalties that the inner folds choose from, for inputs of unit variance.
    n_penalties
        How many values of the range are tried.

    Returns
    -------
    estimator
        Of weights; the trainer sets its inner folds.

    References
    ----------
    .. [1] Cox (1958), Journal of the Royal Statistical Society B 20(2). doi:10.1111/j.2517-6161.1958.tb00292.x
    .. [2] Hoerl and Kennard (1970), Technometrics 12(1). doi:10.1080/00401706.1970.10488634
    """
    n_values = max(1, int(np.prod(shapes[0])) if shapes else 1)
    penalties = np.geomspace(strongest, weakest, n_penalties) / n_values
    return choice.Penalised(penalties, n_outputs, is_class=classify)
