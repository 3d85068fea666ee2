import numpy as np
import pandas as pd
import planted
import pytest
import torch
from sklearn.feature_selection import f_classif, f_regression

from bids_dl import building, group, training
from bids_dl.config import from_mapping
from bids_dl.errors import UsageError
from bids_dl.explainers.integrated_gradients import explain
from bids_dl.models.boosting import _explained, build
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N, N_VALUES = 60, 12
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(N, N_VALUES)).astype(np.float32)
TARGETS = {
    "two": (X[:, 0] > 0).astype(int),
    "three": np.digitize(X[:, 0], [-0.5, 0.5]),
    "quantity": X[:, 0] + X[:, 1] ** 2,
}


@pytest.mark.parametrize("target", TARGETS)
def test_tables_add_up_to_what_scikit_learns_trees_say(target):
    y, is_class = TARGETS[target], target != "quantity"
    n_outputs = 3 if target == "three" else 1
    module = build([(N_VALUES,)], n_outputs, classify=is_class, n_values=7, n_trees=9)
    trees, kept = module._fit(X, y, 0, 9)
    module._keep(trees, kept)
    new = np.random.default_rng(1).normal(size=(50, N_VALUES)).astype(np.float32)
    expected = trees.decision_function(new[:, kept]) if is_class else trees.predict(new[:, kept])
    np.testing.assert_allclose(module(torch.from_numpy(new)), expected.reshape(50, n_outputs), atol=1e-5)
    assert module.feature.shape[0] == 9 * n_outputs
    assert set(module.feature.unique().tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("target", TARGETS)
def test_values_are_ordered_as_by_their_f_score(target):
    y = TARGETS[target]
    scores, _ = f_regression(X, y) if target == "quantity" else f_classif(X, y)
    np.testing.assert_array_equal(np.argsort(_explained(X, y, is_class=target != "quantity")), np.argsort(scores))


def test_values_are_chosen_among_the_rows_that_are_fitted_only():
    """A value that follows the label among the rows left out, and nowhere else, tempts a selection that sees them."""
    y, x = TARGETS["two"], X.copy()
    x[:20, 5] = 50 * (2 * y[:20] - 1)
    x[20:, 5] = np.random.default_rng(2).normal(size=40)
    module = build([(N_VALUES,)], 1, n_values=1, n_trees=1)
    _, held = module.solve([torch.from_numpy(x)], y, [(np.arange(20, N), np.arange(20))])
    trees, kept = module._fit(x[20:], y[20:], 0, 1)
    assert kept.tolist() == [0]
    assert len(np.unique(held[:20])) == len(np.unique(trees.decision_function(x[:20][:, kept])))


def test_output_of_a_row_left_out_does_not_know_its_label():
    y = TARGETS["two"].copy()
    y[:20] = 1 - y[:20]
    found = []
    for labels in (TARGETS["two"], y):
        torch.manual_seed(0)
        module = build([(N_VALUES,)], 1, n_trees=1)
        found.append(module.solve([torch.from_numpy(X)], labels, [(np.arange(20, N), np.arange(20))])[1][:20])
    np.testing.assert_array_equal(*found)


def test_number_of_rounds_is_chosen_and_kept():
    torch.manual_seed(0)
    module = build([(N_VALUES,)], 1, n_trees=30)
    folds = [(np.arange(20, N), np.arange(20)), (np.arange(40), np.arange(40, N))]
    chosen, _ = module.solve([torch.from_numpy(X)], np.random.default_rng(3).permutation(TARGETS["two"]), folds)
    assert 1 <= chosen < 30
    assert len(module.feature) == chosen


def test_product_of_two_values_is_told_by_trees_and_by_no_linear_model():
    assert planted.auc("boosting") > 0.8
    assert planted.linear_auc("boosting") < 0.65


def test_gradients_are_refused_by_name_also_in_an_ensemble():
    people = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(N)]})
    data = Cohort(people, {"edges": Block(X, ("edge",))}, Target("target", TARGETS["two"].astype(float), ("a", "b")))
    split = Split(np.arange(30), np.arange(30, 40), np.arange(40, N), "one")
    definition = training.define("boosting", [(N_VALUES,)], 1, {"n_trees": 3})
    fitted = training.train(definition, data, split, ["edges"], Settings(device="cpu"))
    with pytest.raises(UsageError, match="no gradient passes the model 'boosting'; explain it by occlusion"):
        explain(fitted, data, split)
    assert building.without_gradients({"_target_": "bids_dl.training.Ensemble", "members": [definition]}) == (
        "boosting",
    )


@pytest.mark.parametrize("named", [{}, {"names": ["integrated_gradients"]}])
@pytest.mark.parametrize(
    "model",
    [
        group.Model("edges_boosting", "boosting", ("edges",), "network"),
        group.Model(
            "postfusion",
            "postfusion",
            ("volume", "edges"),
            "fusion",
            parts=(("volume", "cnn3d"), ("edges", "boosting")),
        ),
    ],
)
def test_trees_and_fusions_of_them_are_explained_by_occlusion(model, named):
    config = from_mapping(
        {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", **({"explainers": named} if named else {})}
    )
    assert "integrated_gradients" not in group._explainers(config, model)
    assert "occlusion" in group._explainers(config, model)
    other = group.Model("edges_mlp", "mlp", ("edges",), "network")
    assert "integrated_gradients" in group._explainers(config, other)
