import numpy as np
import pytest
from sklearn.linear_model import Ridge

from bids_dl import choice, ridge

PENALTIES = np.array([100.0, 1.0, 1e-2])


def textbook(x, y, penalty):
    """The normal equations with a column of ones whose weight is not penalised."""
    design = np.hstack([x.astype(np.float64), np.ones((len(x), 1))])
    penalised = penalty * np.diag([*np.ones(x.shape[1]), 0])
    found = np.linalg.solve(design.T @ design + penalised, design.T @ y)
    return found[:-1], found[-1]


def rows(n, n_values, seed=0):
    """Values in float32, off centre as those of an inner fold are, and a quantity that some of them know."""
    generator = np.random.default_rng(seed)
    x = (generator.normal(size=(n, n_values)) + 0.3).astype(np.float32)
    return x, x[:, :3].sum(axis=1) + generator.normal(size=n) + 5


@pytest.mark.parametrize(("n", "n_values"), [(30, 12), (12, 30), (20, 20)])
def test_rows_and_values_give_the_textbook_weights(n, n_values, monkeypatch):
    monkeypatch.setattr(ridge, "TOGETHER", 7)
    x, y = rows(n, n_values)
    weights, bias = ridge.of_values(x, y, PENALTIES)
    dual, dual_bias = ridge.of_rows(ridge.products(x), y, PENALTIES)
    for number, penalty in enumerate(PENALTIES):
        expected, intercept = textbook(x, y, penalty)
        for found, where in ((weights[number], bias[number]), (dual[number] @ x, dual_bias[number])):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
            assert where == pytest.approx(intercept, rel=1e-6)
    np.testing.assert_allclose(dual.sum(axis=1), 0, atol=1e-8)


@pytest.mark.parametrize(("n", "n_values"), [(40, 10), (20, 60), (30, 29)])
def test_penalty_and_held_out_rows_are_those_of_scikit_learn_fold_by_fold(n, n_values):
    """Also where all rows outnumber the values and those of a fold do not."""
    x, y = rows(n, n_values)
    folds = [(np.setdiff1d(np.arange(n), part), part) for part in np.array_split(np.arange(n), 4)]
    best, held_out, weights, bias = choice.penalised(x, y, folds, 1 / PENALTIES, n_outputs=1, is_class=False)
    expected = np.zeros((len(PENALTIES), n))
    for number, penalty in enumerate(PENALTIES):
        for train, held in folds:
            expected[number, held] = Ridge(alpha=penalty).fit(x[train].astype(float), y[train]).predict(x[held])
    assert best == np.argmin(((expected - y) ** 2).mean(axis=1))
    np.testing.assert_allclose(held_out[:, 0], expected[best], rtol=1e-5)
    whole = Ridge(alpha=PENALTIES[best]).fit(x.astype(float), y)
    np.testing.assert_allclose(weights[0], whole.coef_, rtol=1e-5, atol=1e-7)
    assert bias[0] == pytest.approx(whole.intercept_)


def test_penalty_that_rounding_swallows_gives_numbers():
    x = np.ones((6, 4), np.float32)
    dual, _ = ridge.of_rows(ridge.products(x), np.arange(6.0), [1e-300])
    weights, _ = ridge.of_values(x, np.arange(6.0), [1e-300])
    assert np.isfinite(dual).all()
    assert np.isfinite(weights).all()


def test_products_of_rows_are_exact_where_float32_is_not():
    x = np.full((2, 5000), 1000.1, np.float32)
    exact = float(np.float64(np.float32(1000.1)) ** 2) * 5000
    assert ridge.products(x)[0, 1] == pytest.approx(exact, rel=1e-12)
