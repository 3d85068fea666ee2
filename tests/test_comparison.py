import math

import numpy as np
import pytest
from scipy import stats

from bids_dl import comparison
from bids_dl.metrics import Predictions, intervals, score, some

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


def test_folds_that_all_differ_by_the_same_are_no_certainty():
    """Three folds of three people, told perfectly against by lot: p was 0."""
    assert np.isnan(comparison.corrected_t(np.full(3, 0.7 - 0.2), 0.5)).all()
    positive = np.tile([0.0, 1.0], 6)
    perfect, lot = (np.column_stack([1 - p, p]) for p in (positive, np.full(12, 0.5)))
    models = [Predictions(positive, s, np.arange(12), np.repeat(np.arange(3), 4), 2) for s in (perfect, lot)]
    found = comparison.compare(*models, "auc", [8] * 3)
    assert found["difference"] == 0.5
    assert np.isnan([found["p_value"], found["ci_low"], found["ci_high"]]).all()


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
    fewer = Predictions(good.truth[kept], good.scores[kept], good.participants[kept], good.folds[kept], 2)
    both = Predictions(bad.truth[kept], bad.scores[kept], bad.participants[kept], bad.folds[kept], 2)
    one = comparison.compare(fewer, bad, "auc", [48] * 15)
    assert one == comparison.compare(fewer, both, "auc", [48] * 15)


def once(seed, strength, n=60):
    """Predictions of one held-out set; how hard a participant is, is the same for every seed."""
    truth = np.arange(n) % 2.0
    latent = strength * (truth - 0.5) + np.random.default_rng(99).normal(size=n)
    positive = 1 / (1 + np.exp(-(latent + 0.5 * np.random.default_rng(seed).normal(size=n))))
    return Predictions(truth, np.column_stack([1 - positive, positive]), np.arange(n), np.zeros(n, int), 2)


def test_on_one_held_out_set_the_better_model_is_found_and_two_alike_are_not():
    good, alike, bad = once(0, 3.0), once(1, 3.0), once(2, 0.0)
    found = comparison.compare_once(good, bad, "auc", n=500, seed=0)
    assert found["difference"] == pytest.approx((score(good)["auc"] - score(bad)["auc"])[0])
    assert 0 < found["ci_low"] < found["difference"] < found["ci_high"]
    assert found["p_value"] < 0.02
    assert comparison.compare_once(good, alike, "auc", n=500, seed=0)["p_value"] > 0.05
    assert comparison.compare_once(good, good, "auc", n=500, seed=0)["p_value"] == 1


def test_draws_are_paired_so_that_hard_participants_cancel():
    one, other = once(0, 3.0), once(1, 3.0)
    paired = comparison.compare_once(one, other, "auc", n=500, seed=0)
    alone = [np.subtract(*reversed(intervals(p, n=500, seed=0)["auc"])) for p in (one, other)]
    assert paired["ci_high"] - paired["ci_low"] < 0.8 * math.hypot(*alone)


def test_on_one_held_out_set_two_models_alike_seldom_differ():
    p = [
        comparison.compare_once(once(2 * k, 2.0, 30), once(2 * k + 1, 2.0, 30), "auc", n=100, seed=k)["p_value"]
        for k in range(200)
    ]
    assert np.mean(np.array(p) <= 0.05) < 0.09


def test_on_one_held_out_set_models_are_compared_over_the_participants_that_both_predict():
    good, bad = once(0, 3.0), once(2, 0.0)
    fewer, both = (Predictions(p.truth[:40], p.scores[:40], p.participants[:40], p.folds[:40], 2) for p in (good, bad))
    found = comparison.compare_once(fewer, bad, "auc", n=50, seed=0)
    assert found == comparison.compare_once(fewer, both, "auc", n=50, seed=0)
    assert found["n"] == 40


def test_held_out_set_of_one_class_is_no_comparison():
    one = once(0, 3.0)
    healthy = some(one, one.truth == 0)
    assert np.isnan(comparison.compare_once(healthy, healthy, "auc", n=20, seed=0)["p_value"])
    assert comparison.counted([{"p_value": 0.01}, {"p_value": float("nan")}])[0] == {"p_value": 0.01, "p_holm": 0.01}


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


def test_interval_over_folds_is_the_corrected_one_of_their_mean():
    found, n_train = predictions(0, 1.0), [48] * 15
    scores = np.array(list(comparison.fold_scores(found, np.arange(60), "auc").values()))
    half = stats.t.ppf(0.975, 14) * math.sqrt((1 / 15 + 12 / 48) * scores.var(ddof=1))
    assert comparison.spread(found, "auc", n_train) == pytest.approx((scores.mean() - half, scores.mean() + half))


def test_interval_over_folds_stays_where_scores_are():
    low, high = comparison.spread(predictions(0, 2.0, n=30, repeats=1), "auc", [24] * 5)
    assert 0.5 < low < high == 1.0


def test_folds_that_are_all_alike_say_nothing_about_their_spread():
    assert np.isnan(comparison.spread(predictions(0, 6.0, n=30, repeats=1), "auc", [24] * 5)).all()


def test_one_fold_has_no_interval_over_folds():
    one = predictions(0, 1.0, n_folds=1, repeats=1)
    assert np.isnan(comparison.spread(one, "auc", [48])).all()


def test_interval_over_folds_holds_what_such_trainings_reach_on_average():
    """In nine of ten studies of 60, each with participants of its own, of a classifier by the difference of the means."""
    expected = np.mean([_auc_of_means(seed, n=48, n_test=2000) for seed in range(200)])
    holds = []
    for seed in range(1000, 1060):
        generator = np.random.default_rng(seed)
        x, y = _two_groups(generator, 60)
        folds = [generator.permuted(np.arange(60) // 2 % 5) for _ in range(3)]
        scores = np.concatenate([_scores_of_means(x, y, fold) for fold in folds])
        numbered = np.concatenate([5 * k + fold for k, fold in enumerate(folds)])
        found = Predictions(
            np.tile(y, 3), np.column_stack([1 - scores, scores]), np.tile(np.arange(60), 3), numbered, 2
        )
        low, high = comparison.spread(found, "auc", [48] * 15)
        holds.append(low <= expected <= high)
    assert np.mean(holds) > 0.85


def _two_groups(generator, n):
    y = np.arange(n) % 2.0
    return generator.standard_normal((n, 10)) + 0.3 * (y - 0.5)[:, None], y


def _weights(x, y):
    return x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)


def _scores_of_means(x, y, fold):
    scores = np.empty(len(y))
    for number in np.unique(fold):
        scores[fold == number] = x[fold == number] @ _weights(x[fold != number], y[fold != number])
    return 1 / (1 + np.exp(-scores))


def _auc_of_means(seed, n, n_test):
    generator = np.random.default_rng(seed)
    weights = _weights(*_two_groups(generator, n))
    x, y = _two_groups(generator, n_test)
    ranks = stats.rankdata(x @ weights)[y == 1]
    return (ranks.sum() - len(ranks) * (len(ranks) + 1) / 2) / (len(ranks) * (n_test - len(ranks)))
