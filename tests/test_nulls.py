import numpy as np
import pytest
from trained import SMALL, TARGETS, cohort, split_of

from bids_dl import nulls, training
from bids_dl.settings import Settings


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("feature", ["edges", "columns"])
def test_training_under_the_true_labels_again_gives_the_same_scores(feature, levels):
    """What the permutation test retrains is the very model that is tested."""
    data = cohort(levels, effect=0.5)
    split = split_of(data)
    definition = training.define("linear", [data.features[feature].shape], data.target.n_outputs, {})
    settings = Settings(device="cpu")
    (scores,) = nulls.null_scores(definition, data, split, [feature], settings, [data.target])
    fitted = training.train(definition, data, split, [feature], settings)
    np.testing.assert_allclose(scores, training.predict(fitted, data, split.test), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_scores_without_a_kept_model_are_those_of_one_that_is_kept(model):
    """Somebody of the test rows lacks the feature: there is no score in their place."""
    data = cohort(effect=0.5)
    split = split_of(data)
    data.features["edges"].values[split.test[1]] = np.nan
    definition = training.define(model, [data.features["edges"].shape], 1, SMALL[model])
    settings = Settings(n_epochs=3, device="cpu")
    scores = nulls.held_out_scores(definition, data, split, ["edges"], settings)
    expected = training.predict(training.train(definition, data, split, ["edges"], settings), data, split.test)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)
    assert np.flatnonzero(np.isnan(scores).any(axis=1)).tolist() == [1]
