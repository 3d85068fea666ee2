import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.utils.class_weight import compute_sample_weight

from bids_dl import choice

N = 12
ROWS = np.arange(N)
FOLDS = [(np.setdiff1d(ROWS, part), part) for part in np.array_split(ROWS, 3)]


def choose(outputs, y, *, n_options=3, n_outputs=1, is_class=False):
    return choice.choose(outputs, y, FOLDS, n_options=n_options, n_outputs=n_outputs, is_class=is_class)


def test_option_nearest_to_the_rows_left_out_is_chosen_with_its_outputs():
    y = np.random.default_rng(0).normal(size=N)
    off = np.array([0.5, 0.1, -0.3])
    best, found = choose(lambda train, held: y[held][None, :, None] + off[:, None, None], y)
    assert best == 1
    np.testing.assert_allclose(found[:, 0], y + 0.1)


def test_first_of_equal_options_is_chosen():
    assert choose(lambda train, held: np.ones((3, len(held), 1)), np.zeros(N))[0] == 0


def test_no_row_is_predicted_by_a_fit_that_saw_it():
    def outputs(train, held):
        assert not set(train) & set(held)
        return np.broadcast_to(held[:, None].astype(float), (3, len(held), 1))

    _, found = choose(outputs, np.zeros(N))
    np.testing.assert_array_equal(found[:, 0], ROWS)


def test_fold_whose_rows_lack_a_class_is_not_fitted():
    y = np.array([2] * 4 + [0, 1] * 4)  # who is left out first has all of class 2

    def outputs(train, held):
        assert set(y[train]) == {0, 1, 2}
        return np.zeros((3, len(held), 3))

    _, found = choose(outputs, y, n_outputs=3, is_class=True)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), ROWS < 4)


def test_middle_option_is_chosen_where_no_fold_can_be_fitted():
    best, found = choose(None, np.zeros(N), is_class=True)
    assert best == 1
    assert np.isnan(found).all()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_log_loss_is_scikit_learns_at_the_best_stretch_with_classes_of_one_say(n_classes):
    generator = np.random.default_rng(0)
    y = np.array([0] * 6 + [1] * 3 + [n_classes - 1] * 3)
    logits = generator.normal(size=(N, n_classes if n_classes > 2 else 1)) + 2 * (
        y[:, None] == np.arange(n_classes)[1:][:1]
    )
    found = []
    for stretch in choice.STRETCHES:
        whole = stretch * (logits if n_classes > 2 else np.hstack([0 * logits, logits]))
        p = np.exp(whole) / np.exp(whole).sum(axis=1, keepdims=True)
        found.append(sklearn_log_loss(y, p, sample_weight=compute_sample_weight("balanced", y)))
    assert choice.log_loss(logits, y) == pytest.approx(min(found))


def test_unit_of_the_outputs_does_not_change_the_choice():
    y = ROWS % 2
    logits = np.random.default_rng(0).normal(size=(N, 1)) + y[:, None]
    assert choice.log_loss(logits / 4, y) == pytest.approx(choice.log_loss(logits, y))


def test_each_of_several_classes_is_told_from_the_others():
    y = np.array([0, 2, 1])
    found = choice.each_class(y, 3, is_class=True)
    np.testing.assert_array_equal(found, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert choice.each_class(y, 1, is_class=False)[0] is y
