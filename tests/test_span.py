import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from bids_dl import building, normalization, span, training
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

TRAIN, NEW = np.arange(0, 20), np.arange(20, 30)


@pytest.fixture
def block():
    """More edges than participants, the case in which the span is smaller."""
    values = np.random.default_rng(0).normal(3, 2, (30, 50)).astype(np.float32)
    values[2, 5] = np.nan
    return Block(values, ("edge",))


@pytest.fixture
def confounds():
    return np.random.default_rng(1).normal(40, 10, (30, 1))


def kernels(block, confounds=None, rows=None):
    normal = normalization.fit(block.values, TRAIN, confounds)
    rows = np.arange(30) if rows is None else rows
    x = normal.apply(block.values, confounds).astype(np.float64)
    return normal, span.kernel(block, normal, rows, confounds), x


@pytest.mark.parametrize("with_confounds", [False, True])
def test_kernel_holds_the_inner_products_of_normalised_rows(block, confounds, with_confounds, monkeypatch):
    monkeypatch.setattr(span, "CHUNK_BYTES", 30 * 4 * 7)
    _, inner, x = kernels(block, confounds if with_confounds else None)
    np.testing.assert_allclose(inner.values, x @ x.T, rtol=1e-4, atol=1e-3)


def test_kernel_finds_rows_in_any_order(block):
    _, inner, x = kernels(block, rows=np.array([8, 2, 25]))
    assert inner.rows.tolist() == [2, 8, 25]
    at = inner.at(np.array([25, 2]))
    np.testing.assert_allclose(inner.values[at[0], at[1]], x[25] @ x[2], rtol=1e-4)


def test_coordinates_keep_the_inner_products_of_the_training_rows(block):
    _, inner, x = kernels(block)
    axes = span.of(inner, TRAIN)
    z = axes.coordinates(inner, TRAIN) * axes.scale
    np.testing.assert_allclose(z @ z.T, x[TRAIN] @ x[TRAIN].T, rtol=1e-3, atol=1e-2)
    assert z.shape[1] <= len(TRAIN)


def test_coordinates_have_a_deviation_of_1(block):
    _, inner, _ = kernels(block)
    coordinates = span.of(inner, TRAIN).coordinates(inner, TRAIN)
    assert np.sqrt((coordinates**2).mean()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("with_confounds", [False, True])
def test_ridge_on_coordinates_folded_back_is_ridge_on_values(block, confounds, with_confounds, monkeypatch):
    monkeypatch.setattr(span, "CHUNK_BYTES", 20 * 4 * 7)
    given = confounds if with_confounds else None
    normal, inner, x = kernels(block, given)
    y = np.random.default_rng(2).normal(size=30)
    whole = Ridge(alpha=10.0).fit(x[TRAIN], y[TRAIN])
    axes = span.of(inner, TRAIN)
    small = Ridge(alpha=10.0 / axes.scale**2).fit(axes.coordinates(inner, TRAIN), y[TRAIN])
    folded = span.fold(axes.mixing(small.coef_[None]), TRAIN, block, normal, given)
    np.testing.assert_allclose(folded[0], whole.coef_, atol=1e-4)
    np.testing.assert_allclose(x[NEW] @ folded[0] + small.intercept_, whole.predict(x[NEW]), atol=1e-4)


@pytest.fixture
def corners(monkeypatch):
    """Few rows are very many here."""
    monkeypatch.setattr(span, "MOST_AXES", 5)


@pytest.mark.parametrize("with_confounds", [False, True])
def test_ridge_with_very_many_rows_is_ridge_on_values_too(block, confounds, with_confounds, corners):
    given = confounds if with_confounds else None
    normal, inner, x = kernels(block, given)
    y = np.random.default_rng(2).normal(size=30)
    whole = Ridge(alpha=10.0).fit(x[TRAIN], y[TRAIN])
    corner = span.of(inner, TRAIN)
    assert isinstance(corner, span.Corner)
    z = corner.coordinates(inner, TRAIN)
    small = Ridge(alpha=10.0 / corner.scale**2).fit(z, y[TRAIN])
    folded = span.fold(corner.mixing(small.coef_[None]), TRAIN, block, normal, given)
    np.testing.assert_allclose(folded[0], whole.coef_, atol=2e-4)
    predicted = small.predict(corner.coordinates(inner, NEW))
    np.testing.assert_allclose(predicted, whole.predict(x[NEW]), atol=2e-3)


def test_corner_keeps_inner_products_and_the_scale_of_the_axes(block, monkeypatch):
    _, inner, x = kernels(block)
    axes = span.of(inner, TRAIN)
    monkeypatch.setattr(span, "MOST_AXES", 5)
    corner = span.of(inner, TRAIN)
    z = corner.coordinates(inner, TRAIN) * corner.scale
    np.testing.assert_allclose(z @ z.T, x[TRAIN] @ x[TRAIN].T, rtol=1e-3, atol=1e-2)
    assert corner.scale == pytest.approx(axes.scale, rel=0.1)


@pytest.mark.parametrize("levels", [("a", "b"), ("a", "b", "c"), ()], ids=["two", "three", "quantity"])
def test_linear_model_of_very_many_rows_predicts_as_that_of_few(block, levels, monkeypatch):
    generator = np.random.default_rng(3)
    y = generator.permutation(np.arange(30) % len(levels)).astype(float) if levels else generator.normal(50, 9, 30)
    people = pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(30)]})
    cohort = Cohort(people, {"edges": block}, Target("target", y, levels))
    split = Split(TRAIN[:14], TRAIN[14:], NEW, "one")
    definition = training.define("linear", [(50,)], cohort.target.n_outputs, {"n_penalties": 2})
    found = []
    for most in (1000, 5):
        monkeypatch.setattr(span, "FEW_ROWS", most)
        fitted = training.train(definition, cohort, split, ["edges"], Settings(device="cpu"))
        found.append(training.predict(fitted, cohort, NEW))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-3)


def test_estimators_take_axes_of_few_rows_only_and_networks_of_many(block, monkeypatch):
    _, inner, _ = kernels(block)
    assert isinstance(span.rotated(inner, TRAIN), span.Span)
    monkeypatch.setattr(span, "FEW_ROWS", len(TRAIN) - 1)
    assert isinstance(span.rotated(inner, TRAIN), span.Corner)
    assert isinstance(span.of(inner, TRAIN), span.Span)


def test_folded_perceptron_gives_the_outputs_of_the_small_one(block):
    normal, inner, x = kernels(block)
    axes = span.of(inner, TRAIN)
    small = building.instantiate(training.define("mlp", [(axes.basis.shape[1],)], 1, {"hidden": [8, 4]})).eval()
    full = building.instantiate(training.define("mlp", [(50,)], 1, {"hidden": [8, 4]})).eval()
    folded = span.fold(axes.mixing(small.first.weight.detach().numpy()), TRAIN, block, normal)
    full.load_state_dict(small.state_dict() | {"first.weight": torch.from_numpy(folded)})
    for rows in (TRAIN, NEW):
        expected = small(torch.from_numpy(axes.coordinates(inner, rows)))
        torch.testing.assert_close(full(torch.from_numpy(x[rows]).float()), expected, atol=1e-4, rtol=1e-4)


def test_trained_perceptron_is_the_one_that_stopped_on_coordinates(block):
    """The stopped member, folded, has the validation loss that its history says."""
    y = np.repeat([0.0, 1.0], 15)[np.random.default_rng(0).permutation(30)]
    people = pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(30)]})
    cohort = Cohort(people, {"edges": block}, Target("group", y, ("a", "b")))
    split = Split(TRAIN[:14], TRAIN[14:], NEW, "one")
    settings = Settings(n_epochs=12, n_members=1, class_weights=False, device="cpu")
    fitted = training.train(training.define("mlp", [(50,)], 1, {}), cohort, split, ["edges"], settings)
    p = training.predict(fitted, cohort, split.validation)[:, 1]
    truth = y[split.validation]
    loss = -np.mean(truth * np.log(p) + (1 - truth) * np.log(1 - p))
    assert loss <= min(row["validation_loss"] for row in fitted.history) + 1e-4


def test_very_many_values_that_never_vary_give_no_weight(corners):
    block = Block(np.ones((30, 50), np.float32), ("edge",))
    normal, inner, _ = kernels(block)
    corner = span.of(inner, TRAIN)
    assert not corner.coordinates(inner, NEW).any()
    assert not span.fold(corner.mixing(np.ones((1, len(TRAIN)))), TRAIN, block, normal).any()


def test_values_that_never_vary_give_one_empty_coordinate():
    block = Block(np.ones((30, 50), np.float32), ("edge",))
    normal, inner, _ = kernels(block)
    axes = span.of(inner, TRAIN)
    assert axes.coordinates(inner, NEW).tolist() == [[0.0]] * len(NEW)
    assert not span.fold(axes.mixing(np.ones((1, 1))), TRAIN, block, normal).any()


@pytest.mark.parametrize(
    ("shapes", "n_rows", "smaller"),
    [([(100,)], 20, True), ([(4, 5, 6)], 20, True), ([(10,)], 20, False), ([(100,), (100,)], 20, False),
     ([(10**6,)], 5_000, False)],
)  # fmt: skip
def test_span_is_used_where_it_is_smaller(shapes, n_rows, smaller):
    assert span.is_smaller(shapes, n_rows) is smaller


def test_estimators_take_more_rows_than_networks_but_not_any_number():
    probes = {"linear": object(), "mlp": torch.nn.Identity()}
    found = {k: [training.is_smaller(p, [(10**6,)], n) for n in (4_000, 10_000, 20_000)] for k, p in probes.items()}
    assert found == {"linear": [True, True, False], "mlp": [True, False, False]}
