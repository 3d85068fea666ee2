import numpy as np
import pytest

from bids_dl.models.linear import build


@pytest.mark.parametrize("shape", [(10,), (2, 5), (4, 5, 6)])
def test_penalties_follow_the_number_of_values(shape):
    """With unit variance the inner product of two participants grows with the values; the range is per value."""
    n_values = np.prod(shape)
    estimator = build([shape], 1, strongest=0.1, weakest=10.0, n_penalties=3)
    np.testing.assert_allclose(estimator.penalties, np.array([0.1, 1, 10]) / n_values)


def test_ridge_and_logistic_regression_try_the_same_range():
    ridge, logistic = (build([(10,)], 1, classify=c) for c in (False, True))
    np.testing.assert_allclose(ridge.penalties, logistic.penalties)
