"""Labels that are moved in a circle keep how long conditions last, and lose what they had to do with the series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bids_dl import shifting
from bids_dl.metrics import Predictions, p_values


def test_shifts_keep_each_course_and_move_repeats_alike():
    values, runs = np.array([0.0, 0, 0, 1, 1, 2, 3, 4, 4, 5]), np.repeat([0, 1], 5)
    twice, folds = np.tile(values, 2), np.repeat([0, 1], 10)
    draws = shifting.shifts(twice, np.tile(runs, 2), np.random.default_rng(0), folds)
    turns = [{tuple(np.roll(values[runs == r], k)) for k in range(5)} for r in (0, 1)]
    for moved in (next(draws) for _ in range(20)):
        assert tuple(moved[:5]) in turns[0]
        assert tuple(moved[5:10]) in turns[1]
        np.testing.assert_array_equal(moved[:10], moved[10:])


def test_chance_of_smooth_labels_and_smooth_predictions_is_not_taken_for_skill():
    generator = np.random.default_rng(0)
    found = []
    for _ in range(40):
        truth, scores = np.repeat(generator.integers(0, 2, 24), 10).astype(float), np.repeat(generator.random(24), 10)
        runs = np.repeat(np.arange(4), 60)
        one = Predictions(truth, np.stack([1 - scores, scores], 1), runs, np.zeros(240, np.intp), 2, runs)
        found.append(
            [p_values(p, n=39, seed=1)["auc"] for p in (one, replace(one, runs=None, participants=np.arange(240)))]
        )
    shifted, exchanged = (np.array(found) <= 0.05).mean(axis=0)
    assert shifted < 0.15 < exchanged
