from dataclasses import replace

import numpy as np
import pytest
import sequences
import torch
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from bids_dl import training
from bids_dl.errors import DataError, UsageError
from bids_dl.models.dynamic_states import build
from bids_dl.records import Split
from bids_dl.settings import Settings

N, N_EDGES, DIMS = 120, 10, ("window", "edge")
SPLIT = Split(np.arange(0, 60), np.arange(60, 80), np.arange(80, N), "one")
CORNERS = {sequences.in_order: sequences.CORNERS, sequences.by_share: sequences.OPPOSITE}


def trained(data, **options):
    definition = training.define("dynamic_states", [data.features["sequence"].shape], 1, {"n_states": 3, **options})
    return training.train(definition, data, SPLIT, ["sequence"], Settings(device="cpu"))


def auc(fitted, data):
    return roc_auc_score(data.target.values[SPLIT.test], training.predict(fitted, data, SPLIT.test)[:, 1])


def with_centroids(centroids, n_outputs=1):
    module = build([(0, centroids.shape[1])], n_outputs, n_states=len(centroids))
    module.centroids = torch.as_tensor(centroids, dtype=torch.float32)
    return module.eval()


@pytest.mark.parametrize("draw", [sequences.in_order, sequences.by_share])
def test_states_are_found_and_tell_what_the_mean_does_not(draw):
    windows, truth, y = sequences.visited(draw, CORNERS[draw])
    data = sequences.cohort(windows, y, DIMS)
    fitted = trained(data)
    found = fitted.module.states(training.inputs_of(fitted, data, SPLIT.test)[0]).numpy()
    there = truth[SPLIT.test] >= 0
    assert adjusted_rand_score(truth[SPLIT.test][there], found[there]) > 0.98
    assert (found[~there] == -1).all()
    assert auc(fitted, data) > 0.95


@pytest.mark.parametrize("draw", [sequences.in_order, sequences.by_share])
def test_mean_connectivity_of_the_planted_states_tells_nothing(draw):
    windows, _, y = sequences.visited(draw, CORNERS[draw])
    data = sequences.cohort(windows, y, DIMS)
    mean = sequences.mean_window(data.features["sequence"])
    data = replace(data, features={"sequence": mean})
    definition = training.define("linear", [mean.shape], 1, {"n_penalties": 3})
    fitted = training.train(definition, data, SPLIT, ["sequence"], Settings(device="cpu"))
    assert 0.3 < auc(fitted, data) < 0.7


def by_the_book(states, k):
    """Walk along the windows; -1 is a window that is missing."""
    visits, follows, last = [], np.zeros((k, k)), -1
    for state in states:
        if state == -1:
            last = -1
            continue
        if state == last:
            visits[-1][1] += 1
        else:
            visits.append([state, 1])
        if last != -1:
            follows[last, state] += 1
        last = state
    lengths = [[length for state, length in visits if state == one] for one in range(k)]
    n = sum(map(sum, lengths))
    share = [sum(mine) / n for mine in lengths]
    dwell = [np.mean(mine) if mine else np.nan for mine in lengths]
    parts = [row / row.sum() if row.sum() else row * np.nan for row in follows]
    return np.array(share), np.array(dwell), np.array(parts)


def test_occupancy_dwell_times_and_transitions_are_those_of_a_walk_along_the_windows():
    generator = np.random.default_rng(3)
    centroids = generator.normal(size=(4, 6))
    states = generator.integers(3, size=(5, 20)).repeat(2, axis=1)[:, 3:30]  # the fourth is never visited
    states[1, 20:], states[2, 7], states[2, 15:17], states[3, 1:] = -1, -1, -1, -1
    x = torch.tensor(np.where(states[..., None] >= 0, centroids[states], np.nan), dtype=torch.float32)
    module = with_centroids(centroids)
    np.testing.assert_array_equal(module.states(x), states)
    found = module.describe(x)
    for row, walked in enumerate(states):
        for (values, _), expected in zip(found.values(), by_the_book(walked, 4), strict=True):
            np.testing.assert_allclose(values[row], expected, atol=1e-6)
    assert [dims for _, dims in found.values()] == [("state",), ("state",), ("state", "state")]
    assert torch.isfinite(module.embed(x)).all()  # nobody visits the fourth: the model still needs a number


def test_altered_test_rows_and_labels_leave_the_states_unchanged():
    windows, _, y = sequences.visited(sequences.in_order, sequences.CORNERS)
    before = trained(sequences.cohort(windows, y, DIMS))
    altered, other = windows.copy(), y.copy()
    altered[SPLIT.test] = 100 * altered[SPLIT.test] + 7
    other[SPLIT.train] = np.roll(other[SPLIT.train], 1)
    after = trained(sequences.cohort(altered, other, DIMS))
    torch.testing.assert_close(after.module.centroids, before.module.centroids, rtol=0, atol=0)
    assert not torch.equal(after.module.head.weight, before.module.head.weight)


def test_states_stand_in_the_order_of_their_windows():
    windows, _, y = sequences.visited(sequences.by_share, sequences.OPPOSITE)
    data = sequences.cohort(windows, y, DIMS)
    fitted = trained(data)
    found = fitted.module.states(training.inputs_of(fitted, data, SPLIT.pool)[0])
    counts = np.bincount(found[found >= 0])
    assert (np.diff(counts) <= 0).all()


def test_windows_that_do_not_fit_into_memory_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr("bids_dl.models.dynamic_states.MOST_VALUES", 3 * 2 * 4)  # 3 windows of each of 2 rows
    x = torch.arange(40.0).reshape(2, 5, 4)
    x[1, 4] = torch.nan
    module = with_centroids(np.zeros((2, 4)))
    found = module._windows(lambda at: (x[at],), 2)
    np.testing.assert_array_equal(found, np.concatenate([x[0, [0, 2, 4]], x[1, [0, 1, 3]]]))


def test_more_people_than_windows_fit_into_memory_take_no_more_of_it(monkeypatch):
    monkeypatch.setattr("bids_dl.models.dynamic_states.MOST_VALUES", 5 * 4)
    x = torch.arange(9.0)[:, None, None].expand(9, 6, 4)
    found = with_centroids(np.zeros((2, 4)))._windows(lambda at: (x[at],), 9)
    assert found[:, 0].tolist() == [0, 2, 4, 6, 8]


def test_padding_changes_nothing():
    windows, _, y = sequences.visited(sequences.in_order, sequences.CORNERS)
    fitted = trained(sequences.cohort(windows, y, DIMS))
    x = training.inputs_of(fitted, sequences.cohort(windows, y, DIMS), np.arange(4))[0]
    padded = torch.cat([x, torch.full((4, 6, N_EDGES), torch.nan)], dim=1)
    torch.testing.assert_close(fitted.module(padded), fitted.module(x))


def test_one_state_is_refused():
    with pytest.raises(UsageError, match=r"dynamic_states.n_states is 1; give at least 2"):
        build([(7, 15)], 1, n_states=1)


def test_fewer_windows_than_states_are_refused():
    windows, _, y = sequences.visited(sequences.in_order, sequences.CORNERS)
    with pytest.raises(DataError, match="80 windows of the training rows cannot be sorted into 81 states; lower"):
        trained(sequences.cohort(windows[:, :1], y, DIMS), n_states=81)
