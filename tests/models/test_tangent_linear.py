import connectomes
import numpy as np
import planted
import pytest
import torch
from scipy.linalg import expm, inv, logm, sqrtm
from sklearn.linear_model import LogisticRegression, Ridge

from bids_dl import training
from bids_dl.errors import DataError, UsageError
from bids_dl.models.tangent_linear import build, logarithm
from bids_dl.normalization import Normalization

N, N_REGIONS = 30, 5
N_EDGES = N_REGIONS * (N_REGIONS - 1) // 2
ABOVE = np.triu_indices(N_REGIONS, 1)
GENERATOR = np.random.default_rng(0)
R = np.stack([np.corrcoef(GENERATOR.normal(size=(N_REGIONS, 8))) for _ in range(N)])
Y = np.arange(N) % 2.0
FOLDS = [(np.arange(10, N), np.arange(10)), (np.arange(20), np.arange(20, N))]
ONE = {"weakest": 3.0, "strongest": 3.0, "n_penalties": 1}


def solved(edges, y=Y, n_outputs=1, folds=FOLDS, **options):
    """Normalise, adopt and solve as the training does; returns the module and the normalised edges."""
    mean, scale = edges.mean(axis=0), np.full(N_EDGES, edges.std())
    module = build([(N_EDGES,)], n_outputs, **{**ONE, "shrinkage": 0.3, **options})
    module.adopt(Normalization(mean.astype(np.float32), scale.astype(np.float32)))
    x = torch.from_numpy(((edges - mean) / scale).astype(np.float32))
    with torch.no_grad():
        chosen, held = module.solve([x], y, folds)
    return module, x, chosen, held


def textbook():
    """Each tangent matrix, one after another."""
    shrunk = [0.7 * r + 0.3 * np.eye(N_REGIONS) for r in R]
    mean = expm(np.mean([logm(c) for c in shrunk], axis=0))
    whitener = inv(sqrtm(mean))
    return np.stack([logm(whitener @ c @ whitener) for c in shrunk])


def test_tangent_vectors_follow_the_paper_word_for_word():
    module, x, _, _ = solved(R[:, *ABOVE])
    expected = []
    for matrix in textbook():
        row = []
        for i in range(N_REGIONS):
            for j in range(i, N_REGIONS):
                row.append(matrix[i, j] * (1 if i == j else np.sqrt(2)))
        expected.append(row)
    np.testing.assert_allclose(module.embed(x).detach(), expected, atol=1e-4)


def test_fisher_z_and_correlations_give_the_same_vectors():
    edges = R[:, *ABOVE].clip(-0.99, 0.99)
    (one, x, _, _), (other, z, _, _) = solved(edges), solved(np.arctanh(edges))
    assert not one.fisher_z
    assert other.fisher_z
    torch.testing.assert_close(one.embed(x), other.embed(z), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_class", [True, False])
def test_weights_are_those_of_scikit_learn_on_the_tangent_vectors(is_class):
    y = Y if is_class else R[:, 0, 1]
    module, x, _, _ = solved(R[:, *ABOVE], y, classify=is_class)
    tangent = module.embed(x).detach().numpy().astype(float)
    n_coordinates = np.linalg.matrix_rank(tangent, tol=1e-3)
    unit = (tangent**2).sum() / (N * n_coordinates)  # what a coordinate's square is on average
    penalty = 3.0 / n_coordinates / unit
    if is_class:
        found = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-8, max_iter=5000).fit(tangent, y)
        expected = found.decision_function(tangent)
    else:
        expected = Ridge(alpha=1 / penalty).fit(tangent, y).predict(tangent)
    np.testing.assert_allclose(module(x).detach()[:, 0], expected, atol=5e-3)


def test_gradient_of_the_logarithm_holds_where_eigenvalues_are_equal():
    torch.manual_seed(0)
    noise = torch.randn(3, 4, 4, dtype=torch.float64)
    apart = torch.eye(4, dtype=torch.float64) + noise @ noise.mT / 4
    equal = 2 * torch.eye(4, dtype=torch.float64)[None]

    def of_symmetric(x):
        return logarithm((x + x.mT) / 2)

    assert torch.autograd.gradcheck(of_symmetric, torch.cat([apart, equal]).requires_grad_())


def test_gradient_knows_that_eigenvalues_below_the_smallest_are_all_one():
    """Attributions of matrices that are no covariances were some hundred times too large."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    values = torch.tensor([-0.5, -0.3, 0.7, 1.6], dtype=torch.float64)
    matrix = ((axes * values) @ axes.T)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: logarithm((x + x.mT) / 2), matrix)


def test_matrix_that_is_no_covariance_gives_finite_values():
    module, _, _, _ = solved(R[:, *ABOVE])
    assert torch.isfinite(module(40 * torch.randn(6, N_EDGES))).all()


def test_output_of_a_row_left_out_does_not_know_its_label():
    y = Y.copy()
    y[:10] = 1 - y[:10]
    one, other = (solved(R[:, *ABOVE], labels, folds=FOLDS[:1])[3] for labels in (Y, y))
    np.testing.assert_array_equal(one[:10], other[:10])
    assert np.isnan(one[10:]).all()


def test_ratios_of_eigenvalues_are_told_in_the_tangent_space_and_by_no_linear_model():
    assert planted.auc("tangent_linear") > 0.8
    assert planted.linear_auc("tangent_linear") < 0.65


def test_trained_model_knows_what_undoes_its_normalisation():
    data = connectomes.ratios_of_eigenvalues(60)
    fitted = planted.fit("tangent_linear", data)
    test = fitted.split.test
    (x,) = training.inputs_of(fitted, data, test)
    measured = fitted.module.connectome.measured(x)[:, *np.triu_indices(8, 1)]
    np.testing.assert_allclose(measured, data.features["edges"].values[test], atol=1e-5)


def test_edges_that_are_no_correlations_are_refused():
    with pytest.raises(DataError, match="which no correlation has; give it a connectivity"):
        solved(np.random.default_rng(0).poisson(30, (N, N_EDGES)).astype(float))


def test_directed_connectome_is_refused():
    with pytest.raises(UsageError, match="needs an undirected connectome"):
        build([(20,)], 1, True)


@pytest.mark.parametrize("shrinkage", [0.0, 1.5])
def test_shrinkage_out_of_range_is_refused(shrinkage):
    with pytest.raises(UsageError, match=f"shrinkage is {shrinkage}"):
        build([(10,)], 1, shrinkage=shrinkage)
