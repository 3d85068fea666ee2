"""The baseline that looks at nothing: class frequencies, or the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INPUT = "confounds"


def build(shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True) -> Any:
    """Predict the training rows' class frequencies, or their mean, for everybody.

    Parameters
    ----------
    shapes
        Not used.
    n_outputs
        Not used.
    classify
        Classes or a quantity; set by the target.

    Returns
    -------
    estimator
        scikit-learn's dummy classifier or regressor.
    """
    from sklearn.dummy import DummyClassifier, DummyRegressor

    return DummyClassifier(strategy="prior") if classify else DummyRegressor()
