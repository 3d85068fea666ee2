"""What age, sex, site and motion alone predict: the baseline a brain model must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bids_dl import choice

INPUT = "confounds"


def build(shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True) -> choice.Penalised:
    """Fit a weakly penalised linear model on the confounds alone.

    Parameters
    ----------
    shapes
        The confounds' columns.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    classify
        Classes or a quantity; set by the target.

    Returns
    -------
    estimator
        Logistic regression or ridge regression.
    """
    return choice.Penalised(np.ones(1), n_outputs, is_class=classify)
