import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bids_dl import logistic


def problem(n_classes, n=60, n_values=8, seed=0):
    generator = np.random.default_rng(seed)
    shares = np.geomspace(1, 3, n_classes)
    y = np.repeat(np.arange(n_classes), np.ceil(shares / shares.sum() * n).astype(int))
    x = generator.normal(size=(len(y), n_values))
    x[:, :n_classes] += np.eye(n_classes)[y]
    return x, y


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_each_penalty_reaches_the_minimum_of_the_textbook_objective(n_classes, monkeypatch):
    """Written out: C times the weighted loss, and half the squared weights; no small step anywhere lowers it."""
    monkeypatch.setattr(logistic, "GRADIENT", 1e-9)
    x, y = problem(n_classes)
    n_outputs = n_classes if n_classes > 2 else 1
    penalties = np.array([1e-2, 1.0, 30.0])
    weights, bias = logistic.path(x, y, penalties, n_outputs=n_outputs)
    say = len(y) / n_classes / np.bincount(y)[y]

    def objective(w, b, penalty):
        logits = x @ w.T + b
        logits = logits if n_outputs > 1 else np.hstack([-logits, logits]) / 2
        loss = sum(s * (np.log(np.exp(row).sum()) - row[code]) for s, row, code in zip(say, logits, y, strict=True))
        return penalty * loss + (w**2).sum() / 2

    for w, b, penalty in zip(weights, bias, penalties, strict=True):
        lowest = objective(w, b, penalty)
        for step in (1e-3, -1e-3):
            for k in np.ndindex(w.shape):
                moved = w.copy()
                moved[k] += step
                assert objective(moved, b, penalty) > lowest
            for k in range(len(b)):
                moved = b.copy()
                moved[k] += step
                assert objective(w, moved, penalty) > lowest - 1e-9  # equal shifts of all classes change nothing


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_scikit_learns_balanced_logistic_regression(n_classes):
    x, y = problem(n_classes, n=200)
    penalties = np.geomspace(1e-3, 1, 4)
    weights, bias = logistic.path(x, y, penalties, n_outputs=n_classes if n_classes > 2 else 1)
    for w, b, penalty in zip(weights, bias, penalties, strict=True):
        peer = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-8, max_iter=5000).fit(x, y)
        np.testing.assert_allclose(
            x @ w.T + b - (x @ w.T + b).mean(axis=1, keepdims=True) * (n_classes > 2),
            x @ peer.coef_.T
            + peer.intercept_
            - (n_classes > 2) * (x @ peer.coef_.T + peer.intercept_).mean(axis=1, keepdims=True),
            atol=0.02,
        )


def test_float32_rows_give_what_float64_rows_do():
    x, y = problem(2)
    one, other = (logistic.path(x.astype(t), y, [0.1, 1.0], n_outputs=1)[0] for t in (np.float32, np.float64))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_large_logits_do_not_overflow():
    x, y = problem(2)
    with np.errstate(all="raise", under="ignore"):
        weights, bias = logistic.path(1e4 * x, y, [1.0], n_outputs=1)
    assert np.isfinite(weights).all()
    assert np.isfinite(bias).all()
