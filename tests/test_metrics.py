import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as peer

from bids_dl import metrics
from bids_dl.metrics import Predictions


def two_classes(n=60, *, n_folds=3, seed=0, strength=1.0, n_repeats=1):
    """Held-out probabilities of two classes with ties (one decimal), over folds."""
    generator = np.random.default_rng(seed)
    truth = np.tile((generator.random(n) < 0.4).astype(float), n_repeats)
    logit = strength * (2 * truth - 1) + generator.normal(size=n * n_repeats)
    positive = np.round(1 / (1 + np.exp(-logit)), 1)
    people = np.tile(np.arange(n), n_repeats)
    folds = people % n_folds + np.repeat(np.arange(n_repeats), n) * n_folds
    return Predictions(truth, np.column_stack([1 - positive, positive]), people, folds, 2)


def three_classes(n=60, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 3, n).astype(float)
    raw = np.eye(3)[truth.astype(int)] + generator.random((n, 3)) * 2
    return Predictions(truth, raw / raw.sum(axis=1, keepdims=True), np.arange(n), np.zeros(n, int), 3)


def quantity(n=60, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.normal(50, 10, n)
    return Predictions(truth, (truth + generator.normal(0, 8, n))[:, None], np.arange(n), np.arange(n) % 3)


def ranks(n=60, *, n_folds=1, seed=0, strength=1.0, n_ranks=4):
    """Predicted places among four levels, some beyond the ends, with ties."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, n_ranks, n).astype(float)
    said = np.round(strength * truth + (1 - strength) * 1.5 + generator.normal(0, 0.9, n), 1)
    return Predictions(truth, said[:, None], np.arange(n), np.arange(n) % n_folds, n_ranks=n_ranks)


def rounded(p):
    return np.clip(np.floor(p.scores[:, 0] + 0.5), 0, p.n_ranks - 1)


def values(predictions):
    return {name: found[0] for name, found in metrics.score(predictions).items()}


def slow_auc(p, weights=None):
    """Count pair by pair, within each fold."""
    weights = np.ones(len(p.truth)) if weights is None else weights
    ordered = pairs = 0.0
    for i, j in itertools.product(range(len(p.truth)), repeat=2):
        if p.folds[i] == p.folds[j] and p.truth[i] == 1 and p.truth[j] == 0:
            a, b = p.scores[i, 1], p.scores[j, 1]
            weight = weights[i] * weights[j]
            pairs += weight
            ordered += weight * (1.0 if a > b else 0.5 if a == b else 0.0)
    return ordered / pairs


def test_auc_counts_the_pairs_of_each_fold():
    predictions = two_classes()
    assert values(predictions)["auc"] == pytest.approx(slow_auc(predictions))


def test_auc_of_a_reweighting_counts_each_pair_as_often_as_it_was_drawn():
    predictions = two_classes()
    weights = np.random.default_rng(0).integers(0, 3, (2, 60)).astype(float)
    found = metrics.score(predictions, weights)["auc"]
    assert found == pytest.approx([slow_auc(predictions, w) for w in weights])


def test_auc_does_not_compare_models_of_different_folds():
    """Each fold is in perfect order, but the second fold's model gives higher scores to everybody."""
    scores = np.array([0.1, 0.2, 0.7, 0.8])
    truth = np.array([0.0, 1.0, 0.0, 1.0])
    predictions = Predictions(truth, np.column_stack([1 - scores, scores]), np.arange(4), np.array([0, 0, 1, 1]), 2)
    assert values(predictions)["auc"] == 1
    assert peer.roc_auc_score(truth, scores) < 1


def test_two_classes_agree_with_scikit_learn():
    p = two_classes(n_folds=1)
    said = (p.scores[:, 1] > 0.5).astype(int)
    expected = {
        "auc": peer.roc_auc_score(p.truth, p.scores[:, 1]), "brier": peer.brier_score_loss(p.truth, p.scores[:, 1]),
        "f1": peer.f1_score(p.truth, said), "balanced_accuracy": peer.balanced_accuracy_score(p.truth, said),
        "accuracy": peer.accuracy_score(p.truth, said),
    }  # fmt: skip
    assert values(p) == pytest.approx(expected)


def test_three_classes_agree_with_scikit_learn():
    p = three_classes()
    said = p.scores.argmax(axis=1)
    expected = {
        "auc": peer.roc_auc_score(p.truth, p.scores, multi_class="ovr"),
        "brier": ((np.eye(3)[p.truth.astype(int)] - p.scores) ** 2).sum(axis=1).mean(),
        "f1": peer.f1_score(p.truth, said, average="macro"),
        "balanced_accuracy": peer.balanced_accuracy_score(p.truth, said),
        "accuracy": peer.accuracy_score(p.truth, said),
    }  # fmt: skip
    assert values(p) == pytest.approx(expected)


def test_quantity_agrees_with_scikit_learn():
    p = quantity()
    said = p.scores[:, 0]
    expected = {
        "mae": peer.mean_absolute_error(p.truth, said), "r2": peer.r2_score(p.truth, said),
        "r": np.corrcoef(p.truth, said)[0, 1], "rmse": peer.root_mean_squared_error(p.truth, said),
    }  # fmt: skip
    assert values(p) == pytest.approx(expected)


def test_weights_count_a_participant_as_often_as_it_was_drawn():
    p = quantity(20)
    weights = np.random.default_rng(0).integers(0, 3, 20)
    drawn = np.repeat(np.arange(20), weights)
    again = Predictions(p.truth[drawn], p.scores[drawn], p.participants[drawn], p.folds[drawn])
    weighted = {name: found[0] for name, found in metrics.score(p, weights[None].astype(float)).items()}
    assert weighted == pytest.approx(values(again))


def test_constant_prediction_has_no_correlation():
    p = quantity()
    assert values(Predictions(p.truth, np.full((60, 1), 41.3), p.participants, p.folds))["r"] == 0


@pytest.mark.parametrize("age", [30.1, 0.1])
def test_correlation_with_a_truth_that_does_not_vary_is_undefined_not_huge(age):
    said = np.array([[28.3], [31.7], [33.9]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = values(Predictions(np.full(3, age), said, np.arange(3), np.zeros(3, int)))
    assert np.isnan(found["r"])


def test_r2_of_a_single_participant_is_undefined_not_infinite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = values(Predictions(np.array([41.3]), np.array([[40.0]]), np.array([0]), np.array([0])))
    assert np.isnan(one["r2"])
    assert one["mae"] == pytest.approx(1.3)


@pytest.mark.parametrize("make", [two_classes, three_classes, quantity, ranks])
def test_interval_holds_the_value_and_has_a_width(make):
    p = make()
    found = metrics.intervals(p, n=200, seed=0)
    for name, value in values(p).items():
        low, high = found[name]
        assert low < value < high


def test_interval_of_accuracy_covers_the_truth_as_often_as_it_says():
    """A model that is right in 70 % of the cases, seen through 100 cohorts of 80 participants."""
    covered = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        truth = generator.integers(0, 2, 80).astype(float)
        said = np.where(generator.random(80) < 0.7, truth, 1 - truth)
        p = Predictions(truth, np.column_stack([1 - said, said]), np.arange(80), np.zeros(80, int), 2)
        low, high = metrics.intervals(p, n=200, seed=seed)["accuracy"]
        covered += low <= 0.7 <= high
    assert 87 <= covered <= 100


def test_repeats_of_a_participant_do_not_narrow_the_interval():
    once, thrice = two_classes(), two_classes()
    thrice = Predictions(*(np.concatenate([v] * 3) for v in (once.truth, once.scores, once.participants)),
                         np.concatenate([once.folds, once.folds + 3, once.folds + 6]), 2)  # fmt: skip
    assert metrics.intervals(thrice, n=100, seed=0)["auc"] == pytest.approx(
        metrics.intervals(once, n=100, seed=0)["auc"]
    )


def twins(seed: int, *, tied: bool, n_pairs: int = 40) -> Predictions:
    """Pairs who are alike in the target and in what is said of them, though neither tells of the other."""
    generator = np.random.default_rng(seed)
    pair = np.repeat(np.arange(n_pairs), 2)
    truth, said = (
        generator.standard_normal(n_pairs)[pair] + 0.2 * generator.standard_normal(2 * n_pairs) for _ in range(2)
    )
    return Predictions(truth, said[:, None], np.arange(2 * n_pairs), pair % 4, families=pair if tied else None)


def test_relatives_are_drawn_together():
    narrow, wide = (np.diff(metrics.intervals(twins(0, tied=tied), n=400, seed=0)["r"])[0] for tied in (False, True))
    assert 1.2 < wide / narrow < 1.7  # half as many people: 1.4


def test_p_values_hold_where_relatives_are_alike():
    small = {
        tied: np.mean([metrics.p_values(twins(s, tied=tied), n=99, seed=0)["r"] <= 0.1 for s in range(100)])
        for tied in (False, True)
    }
    assert small[True] <= 0.16
    assert small[False] > 0.16


def test_families_change_places_with_those_of_their_size():
    families, values = np.array([0, 1, 0, 2, 2, 3, 4]), np.array([1.0, 2, 3, 4, 5, 6, 7])
    seen = set()
    for seed in range(60):
        moved = metrics.permuted(values, np.zeros(7, int), np.random.default_rng(seed), families)
        pairs = {frozenset(moved[families == f]) for f in (0, 2)}
        assert pairs == {frozenset({1.0, 3.0}), frozenset({4.0, 5.0})}
        assert set(moved[[1, 5, 6]]) == {2.0, 6.0, 7.0}
        seen.add(tuple(moved))
    assert len(seen) > 30


def test_same_seed_gives_the_same_interval_and_p_value():
    p = two_classes()
    assert metrics.intervals(p, n=50, seed=1) == metrics.intervals(p, n=50, seed=1)
    assert metrics.p_values(p, n=50, seed=1) == metrics.p_values(p, n=50, seed=1)


@pytest.mark.parametrize("metric", ["auc", "brier", "accuracy"])
def test_perfect_classifier_has_the_smallest_p_value(metric):
    truth = np.tile([0.0, 1.0], 20)
    p = Predictions(truth, np.column_stack([1 - truth, truth]), np.arange(40), np.arange(40) % 4 // 2, 2)
    assert metrics.p_values(p, n=99, seed=0)[metric] == pytest.approx(1 / 100)


def test_perfect_regression_has_the_smallest_p_value():
    truth = np.random.default_rng(0).normal(size=30)
    p = Predictions(truth, truth[:, None], np.arange(30), np.zeros(30, int))
    assert set(metrics.p_values(p, n=99, seed=0).values()) == {1 / 100}


@pytest.mark.parametrize("n_levels", [0, 2])
def test_constant_predictor_has_a_p_value_of_1(n_levels):
    truth = np.tile([0.0, 1.0], 20)
    scores = np.tile([0.4, 0.6], (40, 1)) if n_levels else np.full((40, 1), 0.5)
    p = Predictions(truth, scores, np.arange(40), np.arange(40) % 3, n_levels)
    assert set(metrics.p_values(p, n=99, seed=0).values()) == {1.0}


def test_useless_predictor_is_rarely_significant():
    found = [metrics.p_values(two_classes(40, seed=s, strength=0), n=99, seed=s)["auc"] for s in range(60)]
    assert np.mean(np.array(found) <= 0.05) < 0.15
    assert 0.35 < np.mean(found) < 0.65


def test_permutations_keep_the_repeats_of_a_participant_together():
    """Were rows moved instead of people, three repeats of one lucky guess would look like three times the evidence."""
    once = two_classes(30, n_folds=1, strength=0.3)
    repeated = Predictions(np.tile(once.truth, 3), np.tile(once.scores, (3, 1)), np.tile(once.participants, 3),
                           np.repeat(np.arange(3), 30), 2)  # fmt: skip
    p_once, p_repeated = (metrics.p_values(p, n=999, seed=0)["auc"] for p in (once, repeated))
    assert p_repeated == pytest.approx(p_once, abs=0.04)


def test_permutations_stay_within_folds():
    """The fold tells the class: a model that only knows the fold is at chance."""
    folds = np.repeat([0, 1], 20)
    truth = np.concatenate([np.repeat([0.0, 1.0], [18, 2]), np.repeat([0.0, 1.0], [2, 18])])
    p = Predictions(truth, np.column_stack([1 - folds, folds]).astype(float), np.arange(40), folds, 2)
    assert metrics.p_values(p, n=99, seed=0)["accuracy"] == 1


def test_undefined_values_count_against_the_model():
    null = np.array([0.4, np.nan, 0.8])
    assert metrics.as_good(null, 0.6, "auc").tolist() == [False, True, True]
    assert metrics.as_good(null, 0.6, "brier").tolist() == [True, True, False]
    assert metrics.as_good(null, np.nan, "auc").all()


@pytest.mark.parametrize("make", [two_classes, three_classes, quantity, ranks])
def test_table_has_a_row_a_metric_with_chance_and_count(make):
    p = make()
    rows = metrics.table(p, n_bootstraps=20, n_permutations=20, seed=0, retrained=lambda name: 0.25)
    assert [row["metric"] for row in rows] == list(p.names)
    assert {row["n"] for row in rows} == {60}
    assert {row["p_value_retrained"] for row in rows} == {0.25}
    assert all(np.isfinite([row["value"], row["ci_low"], row["ci_high"], row["chance"]]).all() for row in rows)


def test_chance_is_what_the_class_frequencies_reach():
    p = two_classes()
    prior = np.tile([1 - p.truth.mean(), p.truth.mean()], (60, 1))
    at_chance = values(Predictions(p.truth, prior, p.participants, np.zeros(60, int), 2))
    for name in ("auc", "balanced_accuracy", "brier", "accuracy"):
        assert metrics.chance(p, name) == pytest.approx(at_chance[name])


def test_site_is_scored_by_its_own_participants():
    p = two_classes(n_folds=1)
    sites = ["north", "south"] * 30
    rows = {(r["level"], r["metric"]): r for r in metrics.by_level(p, sites)}
    for number, site in enumerate(["north", "south"]):
        mine = slice(number, None, 2)
        assert rows[site, "auc"]["value"] == pytest.approx(peer.roc_auc_score(p.truth[mine], p.scores[mine, 1]))
        assert rows[site, "auc"]["n"] == 30


def test_site_with_one_class_has_no_auc():
    p = two_classes()
    rows = {(r["level"], r["metric"]): r["value"] for r in metrics.by_level(p, [f"class-{int(y)}" for y in p.truth])}
    assert np.isnan(rows["class-1", "auc"])
    assert np.isfinite(rows["class-1", "accuracy"])


def test_ranks_agree_with_scikit_learn_and_scipy():
    p = ranks()
    expected = {
        "rho": stats.spearmanr(p.truth, p.scores[:, 0]).statistic,
        "weighted_kappa": peer.cohen_kappa_score(p.truth, rounded(p), weights="quadratic"),
        "mae": peer.mean_absolute_error(p.truth, p.scores[:, 0]), "accuracy": peer.accuracy_score(p.truth, rounded(p)),
    }  # fmt: skip
    assert values(p) == pytest.approx(expected)


def test_weights_count_ranks_as_often_as_they_were_drawn():
    p = ranks(30)
    weights = np.random.default_rng(0).integers(0, 3, (2, 30)).astype(float)
    found = metrics.score(p, weights)
    for number, drawn in enumerate(np.repeat(np.arange(30), w.astype(int)) for w in weights):
        assert found["rho"][number] == pytest.approx(stats.spearmanr(p.truth[drawn], p.scores[drawn, 0]).statistic)
        kappa = peer.cohen_kappa_score(p.truth[drawn], rounded(p)[drawn], weights="quadratic")
        assert found["weighted_kappa"][number] == pytest.approx(kappa)


def test_relabelled_ranks_are_scored_as_if_they_were_the_truth():
    p = ranks(30)
    truth = np.stack([np.random.default_rng(seed).permutation(p.truth) for seed in range(3)])
    found = metrics.score(p, truth=truth)
    for number, y in enumerate(truth):
        again = values(Predictions(y, p.scores, p.participants, p.folds, n_ranks=4))
        assert {m: found[m][number] for m in again} == pytest.approx(again)


def test_order_of_ranks_is_not_compared_between_folds():
    """Each fold is in perfect order, but the second fold's model places everybody higher."""
    truth, said = np.tile([0.0, 1, 2], 2), np.array([0, 1, 2, 2.1, 2.2, 2.3])
    p = Predictions(truth, said[:, None], np.arange(6), np.repeat([0, 1], 3), n_ranks=3)
    assert values(p)["rho"] == pytest.approx(1)
    assert stats.spearmanr(truth, said).statistic < 0.8


def test_constant_rank_knows_nothing_and_one_true_level_leaves_its_order_undefined():
    p = ranks()
    same = values(replace(p, scores=np.ones((60, 1))))
    assert (same["rho"], same["weighted_kappa"]) == (0, pytest.approx(0))
    alone = values(replace(p, truth=np.ones(60), scores=np.ones((60, 1))))
    assert np.isnan(alone["rho"])
    assert np.isnan(alone["weighted_kappa"])
    assert alone["accuracy"] == 1


def test_useless_ranks_are_at_chance_and_useful_ones_significant():
    found = [metrics.p_values(ranks(40, n_folds=4, seed=s, strength=0), n=99, seed=s)["rho"] for s in range(40)]
    assert np.mean(np.array(found) <= 0.05) < 0.18
    assert 0.3 < np.mean(found) < 0.7
    assert metrics.p_values(ranks(n_folds=4), n=99, seed=0)["rho"] == pytest.approx(1 / 100)


def test_chance_of_ranks_is_what_the_middle_level_reaches():
    p = ranks()
    middle = values(replace(p, scores=np.full((60, 1), np.median(p.truth))))
    assert {m: metrics.chance(p, m) for m in ("rho", "weighted_kappa", "mae")} == pytest.approx(
        {m: middle[m] for m in ("rho", "weighted_kappa", "mae")}
    )
    assert metrics.chance(p, "accuracy") == np.bincount(p.truth.astype(int)).max() / 60
