from dataclasses import replace

import numpy as np
import pytest
from trained import TARGETS, cohort, split_of

from bids_dl import nulls, stacking, training
from bids_dl.settings import Settings


def test_last_row_alone_joins_the_batch_before():
    sizes = [len(b) for b in stacking.batches(np.arange(9), 4, smallest=2)]
    assert sizes == [4, 5]
    assert [len(b) for b in stacking.batches(np.arange(1), 4, smallest=2)] == [1]


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
def test_networks_trained_in_a_stack_are_those_trained_one_by_one(levels):
    data = cohort(levels, effect=0.3)
    split = split_of(data)
    generator = np.random.default_rng(1)
    targets = [replace(data.target, values=generator.permutation(data.target.values)) for _ in range(4)]
    targets = [t for t in targets if not levels or len(set(t.values[split.train])) == len(levels)]
    definition = training.define("mlp", [(60,)], data.target.n_outputs, {"hidden": [8]})
    settings = Settings(n_epochs=9, patience=2, n_members=1, learning_rate=1e-2, device="cpu", seed=3)
    stacked = nulls.null_scores(definition, data, split, ["edges"], settings, targets)
    for target, found in zip(targets, stacked, strict=True):
        one = training.train(definition, replace(data, target=target), split, ["edges"], settings)
        expected = training.predict(one, data, split.test)
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))
