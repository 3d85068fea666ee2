import math

import numpy as np
import pytest
from scipy import stats

from bids_dl import comparison
from bids_dl.metrics import Predictions

DIFFERENCES = np.array([0.02, 0.05, -0.01, 0.03, 0.04, 0.00, 0.06, 0.02, 0.01, 0.03])


def test_corrected_t_follows_the_paper_word_for_word():
    n, n_train, n_test = 10, 80, 20
    mean = sum(DIFFERENCES) / n
    variance = sum((d - mean) ** 2 for d in DIFFERENCES) / (n - 1)
    expected = mean / math.sqrt((1 / n + n_test / n_train) * variance)
    assert comparison.corrected_t(DIFFERENCES, n_test / n_train)[0] == pytest.approx(expected)


def test_without_the_correction_it_is_students_t():
    assert comparison.corrected_t(DIFFERENCES, 0.0)[0] == pytest.approx(stats.ttest_1samp(DIFFERENCES, 0).statistic)


def test_equal_models_do_not_differ():
    assert comparison.corrected_t(np.zeros(5), 0.25) == (0.0, 0.0)


def test_holm_follows_the_paper_step_by_step():
    assert comparison.holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(comparison.holm([0.01, float("nan")])[1])


def predictions(seed, strength, n=60, n_folds=5, repeats=3):
    generator = np.random.default_rng(seed)
    truth = np.tile(np.arange(n) % 2, repeats).astype(float)
    positive = 1 / (1 + np.exp(-(strength * (truth - 0.5) + generator.normal(size=n * repeats))))
    folds = np.concatenate([r * n_folds + (np.arange(n) // 2) % n_folds for r in range(repeats)])
    return Predictions(truth, np.column_stack([1 - positive, positive]), np.tile(np.arange(n), repeats), folds, 2)


def test_better_model_is_found_and_two_alike_are_not():
    good, alike, bad = predictions(0, 2.5), predictions(1, 2.5), predictions(2, 0.0)
    n_train = [48] * 15
    found = comparison.compare(good, bad, "auc", n_train)
    assert found["p_value"] < 0.01
    assert found["ci_low"] > 0
    assert found["dof"] == 14
    assert comparison.compare(good, alike, "auc", n_train)["p_value"] > 0.05


def test_models_are_compared_over_the_participants_that_both_predict():
    good, bad = predictions(0, 2.5), predictions(2, 0.0)
    kept = good.participants < 40
    some = Predictions(good.truth[kept], good.scores[kept], good.participants[kept], good.folds[kept], 2)
    both = Predictions(bad.truth[kept], bad.scores[kept], bad.participants[kept], bad.folds[kept], 2)
    one = comparison.compare(some, bad, "auc", [48] * 15)
    assert one == comparison.compare(some, both, "auc", [48] * 15)


def test_networks_stand_against_the_linear_models_of_their_inputs_and_the_confounds():
    models = [
        {"id": "confounds_only", "method": "confounds_only", "inputs": ["confounds"], "role": "baseline"},
        {"id": "a_linear", "method": "linear", "inputs": ["a"], "role": "baseline"},
        {"id": "b_linear", "method": "linear", "inputs": ["b"], "role": "baseline"},
        {"id": "a_mlp", "method": "mlp", "inputs": ["a"], "role": "network"},
        {"id": "fused", "method": "postfusion", "inputs": ["a", "b"], "role": "fusion"},
    ]
    assert comparison.pairs(models) == [
        ("a_linear", "confounds_only"), ("b_linear", "confounds_only"), ("a_mlp", "a_linear"), ("a_mlp", "confounds_only"),
        ("fused", "a_linear"), ("fused", "b_linear"), ("fused", "confounds_only"),
    ]  # fmt: skip


def test_network_on_a_sequence_is_compared_with_the_linear_models_of_other_features() -> None:
    models = [
        {"id": "a_linear", "role": "baseline", "method": "linear", "inputs": ["a"]},
        {"id": "b_linear", "role": "baseline", "method": "linear", "inputs": ["b"]},
        {"id": "c_lstm", "role": "network", "method": "lstm", "inputs": ["c"]},
    ]
    assert comparison.pairs(models) == [("c_lstm", "a_linear"), ("c_lstm", "b_linear")]
