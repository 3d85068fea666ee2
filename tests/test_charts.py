"""Figures of the group page agree with their closed forms."""

import numpy as np
import pandas as pd
import pytest

from bids_dl import charts


def test_mean_roc_has_the_area_of_the_pairs_in_order():
    rng = np.random.default_rng(3)
    truth = rng.choice(["a", "b"], 400)
    score = (truth == "b") + rng.standard_normal(400)
    mean, folds = charts.mean_roc(pd.DataFrame({"split": "one", "y_true": truth, "y_score": score}), "y_score", "b")
    pairs = (score[truth == "b"][:, None] > score[truth == "a"][None]).mean()
    assert len(folds) == 1
    assert np.trapezoid(mean, charts.GRID) == pytest.approx(pairs, abs=0.01)
