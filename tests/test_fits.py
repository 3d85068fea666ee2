from types import SimpleNamespace

import numpy as np
from trained import cohort, split_of, train

from bids_dl import config as configuration
from bids_dl import fits


def test_training_participants_are_counted_where_they_have_the_input(tmp_path):
    """The test of overlapping training sets, and the learning curve, must not count those who taught nothing."""
    data = cohort()
    split = split_of(data)
    data.features["columns"].values[split.train[::2]] = np.nan
    step = SimpleNamespace(cohort=data, config=configuration.from_mapping(
        {"bids_dir": "a", "output_dir": "b", "analysis_level": "group"}
    ))  # fmt: skip
    fits._predict(step, train("linear", "columns", data, split), split, tmp_path / "predictions.npz")
    with np.load(tmp_path / "predictions.npz") as found:
        assert found["n_train"] == len(split.pool) - len(split.train[::2])
