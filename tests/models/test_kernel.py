import numpy as np
import planted
import pytest
import torch
from sklearn.svm import SVC, SVR

from bids_dl.errors import UsageError
from bids_dl.models.kernel import build

N, N_VALUES = 40, 5
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(N, N_VALUES)).astype(np.float32)
Y = (X[:, 0] + 0.5 * GENERATOR.normal(size=N) > 0).astype(float)
FOLDS = [(np.arange(10, N), np.arange(10)), (np.arange(30), np.arange(30, N))]
ONE = {"weakest": 2.0, "strongest": 2.0, "n_penalties": 1, "gammas": (0.5,)}


def solved(y=Y, n_outputs=1, x=X, folds=FOLDS, **options):
    module = build([(N_VALUES,)], n_outputs, **{**ONE, **options})
    return module, *module.solve([torch.from_numpy(x)], y, folds)


def gaussian(a, b):
    """Word for word, with the median squared distance of the training rows as its unit."""
    distances = [np.sum((X[i] - X[j]) ** 2) for i in range(N) for j in range(i)]
    return np.array([[np.exp(-0.5 * np.sum((p - q) ** 2) / np.median(distances)) for q in b] for p in a])


def test_gaussian_machine_decides_as_scikit_learns_on_the_textbook_kernel():
    module, _, _ = solved()
    machine = SVC(kernel="precomputed", C=2.0, class_weight="balanced").fit(gaussian(X, X), Y)
    new = np.random.default_rng(1).normal(size=(7, N_VALUES)).astype(np.float32)
    expected = machine.decision_function(gaussian(new, X))
    np.testing.assert_allclose(module(torch.from_numpy(new))[:, 0], expected, atol=1e-4)
    assert len(module.kept) == machine.n_support_.sum()


def test_quantity_is_decided_as_by_scikit_learns_regression():
    y = X[:, 0] ** 2 - 1
    module, _, _ = solved(y, classify=False)
    machine = SVR(kernel="precomputed", C=2.0, epsilon=0.1).fit(gaussian(X, X), y)
    np.testing.assert_allclose(module(torch.from_numpy(X))[:, 0], machine.predict(gaussian(X, X)), atol=1e-4)


def test_each_of_several_classes_is_told_from_the_others():
    y = np.arange(N) % 3
    module, _, _ = solved(y, 3)
    for code in range(3):
        one, _, _ = solved((y == code).astype(float))
        torch.testing.assert_close(module(torch.from_numpy(X))[:, [code]], one(torch.from_numpy(X)))


def test_linear_machine_is_scikit_learns_and_keeps_no_participant():
    module, _, _ = solved(kernel="linear")
    unit = np.mean(np.sum(X.astype(float) ** 2, axis=1))
    machine = SVC(kernel="linear", C=2.0 / unit, class_weight="balanced", tol=1e-4).fit(X, Y)
    np.testing.assert_allclose(module(torch.from_numpy(X))[:, 0], machine.decision_function(X), atol=2e-3)
    assert module.kept.shape == (1, N_VALUES)


def test_output_of_a_row_left_out_does_not_know_its_label_nor_its_fold():
    y = Y.copy()
    y[:10] = 1 - y[:10]
    (_, _, one), (_, _, other) = (solved(labels, folds=FOLDS[:1]) for labels in (Y, y))
    np.testing.assert_array_equal(one[:10], other[:10])
    assert np.isnan(one[10:]).all()


def test_penalty_of_the_range_is_chosen():
    _, chosen, _ = solved(strongest=0.1, weakest=10.0, n_penalties=3)
    assert chosen in np.geomspace(0.1, 10, 3)


def test_product_of_two_values_is_told_by_a_gaussian_and_by_no_linear_model():
    assert planted.auc("kernel") > 0.8
    assert planted.auc("kernel", options={"kernel": "linear"}) < 0.65
    assert planted.linear_auc("kernel") < 0.65


def test_kernel_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        build([(3,)], 1, kernel="linea")
