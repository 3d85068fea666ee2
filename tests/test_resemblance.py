"""Two samples of one kind are not told apart; those that differ in place or spread are; copies are found."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bids_dl import resemblance

SOURCES = np.random.default_rng(99).normal(size=(4, 120)) / 2


def people(seed, n, *, spread=1.0, shift=0.0):
    """Four sources move 120 values; the rest is noise."""
    generator = np.random.default_rng(seed)
    sources = spread * generator.normal(size=(n, 4)) + shift
    return sources @ SOURCES + spread * generator.normal(size=(n, 120))


def told(seed, drawn, n_train=100, n_validation=30):
    """How well synthetic rows, and training rows, are told from validation rows."""
    generator, train = np.random.default_rng(seed), people(seed, n_train)
    axes = resemblance.principal(train)[:, : resemblance.n_shared(train, generator)]
    unseen = people(seed + 1000, n_validation) @ axes
    return [resemblance.tell_apart(rows @ axes, unseen, generator) for rows in (drawn, train)]


def test_a_perfect_generator_passes_and_so_do_the_training_rows():
    found = [told(seed, people(seed + 500, 100)) for seed in range(20)]
    for kind in (0, 1):
        aucs = [pair[kind].auc for pair in found]
        assert np.mean(aucs) == pytest.approx(0.5, abs=0.05)
        inside = [pair[kind].chance_low <= pair[kind].auc <= pair[kind].chance_high for pair in found]
        assert np.mean(inside) >= 0.85


@pytest.mark.parametrize("wrong", [{"spread": 0.6}, {"spread": 1.6}, {"shift": 1.0}])
def test_a_bad_generator_is_told(wrong):
    found = [told(seed, people(seed + 500, 100, **wrong))[0] for seed in range(6)]
    assert np.mean([one.auc for one in found]) > 0.7
    assert sum(one.auc > one.chance_high for one in found) >= 5


def test_axes_that_only_fit_the_noise_of_the_training_rows_are_not_looked_at():
    generator = np.random.default_rng(0)
    assert resemblance.n_shared(people(0, 100), generator) == 4
    assert resemblance.n_shared(generator.normal(size=(40, 500)), generator) == 1


def test_area_is_that_of_scikit_learn_with_ties():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 5, size=(40, 3)) / 4, generator.integers(0, 2, size=(40, 3)).astype(float)
    expected = [roc_auc_score(labels[:, k], scores[:, k]) for k in range(3)]
    np.testing.assert_allclose(resemblance.area(scores, labels), expected)


def test_few_rows_are_not_judged():
    one, other = people(0, 5), people(1, 50)
    assert np.isnan(resemblance.tell_apart(one, other, np.random.default_rng(0)).auc)
    assert np.isnan(resemblance.nearness(other, one, other))


def test_copies_are_no_distance_away_and_other_people_are_as_far_as_others():
    train, unseen = people(0, 80), people(1, 40)
    assert resemblance.nearness(train[:30] + 1e-6, unseen, train) < 0.01
    assert resemblance.nearness(people(2, 60), unseen, train) == pytest.approx(1, abs=0.05)


def test_distance_is_the_slow_one():
    rows, train = people(0, 7), people(1, 9)
    expected = [min(np.linalg.norm(a - b) for b in train) for a in rows]
    np.testing.assert_allclose(resemblance._nearest(rows, train), expected)


def test_classes_are_compared_where_there_are_enough():
    y = np.repeat([0.0, 1.0], [30, 4])
    samples = {
        "train": (people(0, 60), np.arange(60) % 2.0), "synthetic": (people(1, 60), np.arange(60) % 2.0),
        "validation": (people(2, 34), y),
    }  # fmt: skip
    rows = resemblance.compare(samples, ("a", "b"), np.random.default_rng(0))
    assert [(r["level"], r["rows"]) for r in rows] == [
        ("all", "synthetic"),
        ("all", "train"),
        ("a", "synthetic"),
        ("a", "train"),
    ]
    assert {r["n_validation"] for r in rows} == {34, 30}
    assert np.isfinite([r["auc"] for r in rows]).all()


def test_lots_keep_the_number_of_each_sample_in_every_fold():
    generator = np.random.default_rng(0)
    member, fold = np.repeat([0.0, 1.0], [20, 8]), np.arange(28) % 5
    drawn = resemblance._by_lot(member, fold, generator)
    assert [drawn[fold == k].sum() for k in range(5)] == [member[fold == k].sum() for k in range(5)]
    assert not np.array_equal(drawn, member)
