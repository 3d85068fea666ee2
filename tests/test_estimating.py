import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from trained import THREE, TWO, as_trained, cohort, split_of, train

from bids_dl import training
from bids_dl.settings import Settings


@pytest.mark.parametrize("feature", ["edges", "columns"])
def test_linear_regression_is_ridge_with_the_penalty_that_its_history_names(feature):
    data = cohort((), effect=0.5)
    split = split_of(data)
    fitted = train("linear", feature, data, split)
    pool = np.sort(np.concatenate([split.train, split.validation]))
    x = fitted.normalization[feature].apply(data.features[feature].values).astype(float)
    y = (data.target.values - fitted.target_mean) / fitted.target_scale
    candidates = [Ridge(alpha=a).fit(x[pool], y[pool]).coef_ for a in np.geomspace(1e-6, 1e8, 400)]
    weights = fitted.module.head.weight.detach().numpy()[0]
    nearest = min(np.abs(c - weights).max() / np.abs(weights).max() for c in candidates)
    assert nearest < 0.05
    assert np.isfinite(fitted.history[0]["penalty"])


def test_linear_classifier_is_logistic_regression_with_the_chosen_penalty():
    data = cohort(effect=0.5)
    split = split_of(data)
    fitted = train("linear", "columns", data, split)
    pool = np.sort(np.concatenate([split.train, split.validation]))
    x = fitted.normalization["columns"].apply(data.features["columns"].values)
    peer = LogisticRegression(C=fitted.history[0]["penalty"], class_weight="balanced", max_iter=500)
    peer.fit(x[pool], data.target.values[pool])
    expected = peer.predict_proba(x[split.test])
    np.testing.assert_allclose(as_trained(fitted, data, split.test), expected, atol=1e-3)


def test_dummy_predicts_the_training_rows_frequencies_and_mean():
    for levels in (TWO, THREE, ()):
        data = cohort(levels)
        split = split_of(data)
        pool = np.concatenate([split.train, split.validation])
        settings = Settings(device="cpu")
        definition = training.define("dummy", [(2,)], data.target.n_outputs, {})
        scores = training.predict(training.train(definition, data, split, ["confounds"], settings), data, split.test)
        y = data.target.values[pool]
        expected = np.bincount(y.astype(int)) / len(pool) if levels else [y.mean()]
        np.testing.assert_allclose(scores, np.tile(expected, (len(split.test), 1)), rtol=1e-5)
