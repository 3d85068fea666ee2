import numpy as np
import pytest
from trained import absent, cohort, split_of, train

from bids_dl import material
from bids_dl.errors import DataError
from bids_dl.records import Split


def test_rows_with_any_value_are_found():
    values = np.full((4, 200), np.nan)
    values[1, 199] = 0.0
    values[2] = 1.0
    assert material.has_values(values).tolist() == [False, True, True, False]
    assert material.has_values(np.zeros((3, 0))).tolist() == [True] * 3


def test_present_rows_have_any_of_the_inputs():
    data = absent(absent(cohort(), "edges", [0, 1]), "volume", [1, 2])
    split = Split(np.arange(0, 20), np.arange(20, 30), np.arange(30, 40), "one")
    assert material.present(data, split, ["edges", "volume"]).train.tolist() == [0, *range(2, 20)]
    assert material.present(data, split, ["edges"]).train.tolist() == list(range(2, 20))


def test_few_training_participants_are_counted():
    data = cohort()
    split = split_of(data)
    with pytest.raises(DataError, match="2 training participants have edges; at least 4 are needed"):
        train("mlp", "edges", absent(data, "edges", split.train[2:]), split)
