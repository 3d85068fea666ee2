import numpy as np
import pandas as pd
import pytest

from bids_dl.errors import DataError
from bids_dl.records import Block, Cohort, Split, Target


def rows(*numbers):
    return np.array(numbers, np.intp)


IDS = tuple(f"sub-{n}" for n in range(6))


def test_participant_on_both_sides_is_named():
    with pytest.raises(DataError, match="split one: participant 'sub-1' is in train and in test"):
        Split(rows(0, 1), rows(2), rows(1, 3), "one", IDS)


def test_row_on_both_sides_is_named_where_nobody_has_a_name():
    with pytest.raises(DataError, match="participant '1' is in train and in validation"):
        Split(rows(0, 1), rows(1), rows(3), "one")


def test_participant_with_two_rows_on_both_sides_is_named():
    twice = ("sub-0", "sub-1", "sub-2", "sub-0")
    with pytest.raises(DataError, match="participant 'sub-0' is in train and in test"):
        Split(rows(0, 1), rows(2), rows(3), "one", twice)


@pytest.mark.parametrize(("validation", "test", "other"), [((2,), (3,), "validation"), ((3,), (2,), "test")])
def test_family_in_two_parts_is_named(validation, test, other):
    with pytest.raises(DataError, match=f"group 'smith' is in train and in {other}"):
        Split(rows(0, 1), rows(*validation), rows(*test), "one", IDS, ("smith", "b", "smith", "d", "e", "f"))


def test_site_in_training_and_test_is_named():
    with pytest.raises(DataError, match="site 'NYU' is in train and in test"):
        Split(rows(0, 1), rows(2), rows(3), "one", IDS, (), ("UCLA", "UCLA", "NYU", "NYU", "NYU", "NYU"))


def test_site_may_stop_the_training_of_its_own_participants():
    split = Split(rows(0, 1), rows(2), rows(3, 4), "one", IDS, (), ("UCLA", "UCLA", "UCLA", "NYU", "NYU", "NYU"))
    assert split.name == "one"


def test_feature_with_other_rows_than_participants_is_named():
    people = pd.DataFrame({"participant_id": IDS})
    with pytest.raises(DataError, match="'edges' has 5 rows for 6 participants"):
        Cohort(people, {"edges": Block(np.zeros((5, 3)), ("edge",))}, Target("age", np.zeros(6)))


@pytest.mark.parametrize(("levels", "n_outputs"), [((), 1), (("a", "b"), 1), (("a", "b", "c"), 3)])
def test_target_needs_one_output_unless_there_are_three_classes(levels, n_outputs):
    assert Target("x", np.zeros(6), levels).n_outputs == n_outputs


def test_some_test_rows_are_spread_over_all():
    split = Split(np.array([0]), np.array([1]), np.arange(2, 12), "one")
    assert split.tested(3).tolist() == [2, 6, 11]
    assert split.tested(20).tolist() == list(range(2, 12))
    assert split.tested(0).tolist() == []
