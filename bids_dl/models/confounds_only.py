"""What age, sex, site and motion alone predict: the baseline a brain model must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INPUT = "confounds"


def build(shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True) -> Any:
    """Fit a weakly penalised linear model on the confounds alone.

    Parameters
    ----------
    shapes
        The confounds' columns.
    n_outputs
        Not used: scikit-learn sees it in the labels.
    classify
        Classes or a quantity; set by the target.

    Returns
    -------
    estimator
        Logistic regression or ridge regression.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    return LogisticRegression(class_weight="balanced", max_iter=500) if classify else Ridge(alpha=1.0)
