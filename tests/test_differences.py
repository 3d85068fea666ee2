"""A difference between levels is found where it was planted; where labels were shuffled, p-values are spread evenly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from bids_dl import comparison, descriptions, differences
from bids_dl.descriptions import Told
from bids_dl.models.dynamic_states import build

N, N_WINDOWS, N_STATES = 60, 80, 3
LEVELS = ["hc", "mdd"] * (N // 2)
SPLITS = np.repeat(["one", "two", "three"], N // 3)


def chain(generator, stay):
    """Visit states one after another: each is left with the probability that remains."""
    state, found = 0, []
    for _ in range(N_WINDOWS):
        if generator.random() > stay[state]:
            state = (state + generator.integers(1, N_STATES)) % N_STATES
        found.append(state)
    return np.array(found)


def told(stays, seed=0):
    """What the model of states tells of participants who stay in each state as long as ``stays`` says of them."""
    generator = np.random.default_rng(seed)
    module = build([(N_WINDOWS, N_STATES)], 1, n_states=N_STATES)
    module.centroids.copy_(torch.eye(N_STATES))
    visited = np.stack([chain(generator, stay) for stay in stays])
    windows = np.eye(N_STATES)[visited] + 0.1 * generator.normal(size=(len(stays), N_WINDOWS, N_STATES))
    found = module.describe(torch.tensor(windows, dtype=torch.float32))
    dims = {name: kept for name, (_, kept) in found.items()}
    return [Told(k, SPLITS[k], {m: v[k].numpy() for m, (v, _) in found.items()}, dims) for k in range(len(stays))]


def written(given, levels, folder):
    ids = [f"sub-{k:02d}" for k in range(len(given))]
    paths = descriptions.write_figures(given, ids, levels, folder / "m", "state", n_permutations=499)
    return pd.read_csv(paths[-1], sep="\t", na_values="n/a").set_index(["measure", "state"])


def test_states_that_one_group_stays_longer_in_are_found_and_adjusted(tmp_path):
    found = written(told([(0.7, 0.7, 0.85 if level == "mdd" else 0.7) for level in LEVELS]), LEVELS, tmp_path)
    assert set(found.index) == {(m, k) for m in ("occupancy", "dwell") for k in (1, 2, 3)}
    assert found.loc[("dwell", 3), "p_holm"] < 0.05
    assert found.loc[("occupancy", 3), "p_holm"] < 0.05
    assert found["share"].idxmax()[1] == 3
    np.testing.assert_allclose(found["p_holm"], comparison.holm(list(found["p_value"])), rtol=1e-5)
    assert (found["n"] == N).all()


def test_groups_that_are_alike_do_not_differ(tmp_path):
    assert written(told([(0.7, 0.7, 0.7)] * N), LEVELS, tmp_path)["p_holm"].min() > 0.05


def test_shuffled_levels_spread_p_values_evenly():
    generator = np.random.default_rng(0)
    p_values = []
    for seed in range(300):
        values = generator.gamma(2, size=(N, 1)) + (SPLITS == "two")[:, None]
        levels = generator.permutation(LEVELS)
        p_values.append(differences.between(values, levels, SPLITS, n_permutations=199, seed=seed)[1][0])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.085


def test_among_many_figures_holm_keeps_false_alarms_rare():
    generator, alarms = np.random.default_rng(0), []
    for seed in range(200):
        p = differences.between(generator.normal(size=(N, 10)), LEVELS, SPLITS, n_permutations=399, seed=seed)[1]
        alarms.append((min(comparison.holm(list(p))) <= 0.05, p.min() <= 0.05))
    adjusted, bare = np.mean(alarms, axis=0)
    assert adjusted <= 0.085 < 0.3 < bare


def test_share_is_that_of_an_analysis_of_variance():
    values, levels = np.random.default_rng(0).normal(size=(N, 1)), np.repeat(["a", "b", "c"], N // 3)
    share, p = differences.between(values, levels, ["one"] * N, n_permutations=1999, seed=0)
    f, expected = stats.f_oneway(*(values[levels == level, 0] for level in "abc"))
    assert share[0] == pytest.approx(2 * f / (2 * f + N - 3))
    assert p[0] == pytest.approx(expected, abs=0.03)


def test_a_difference_between_splits_is_none_between_levels():
    levels = np.where(SPLITS == "two", "mdd", "hc")
    values = np.random.default_rng(0).normal(size=(N, 1)) + 5 * (SPLITS == "two")[:, None]
    assert differences.between(values, levels, SPLITS, n_permutations=199, seed=0)[1][0] == 1


def test_what_does_not_vary_and_a_single_level_are_not_tested():
    values = np.column_stack([np.full(N, 0.1), np.arange(N)])
    share, p = differences.between(values, LEVELS, SPLITS, n_permutations=99, seed=0)
    assert np.isnan([share[0], p[0]]).all()
    assert np.isfinite([share[1], p[1]]).all()
    assert np.isnan(differences.between(values, ["hc"] * N, SPLITS, n_permutations=9, seed=0)[1]).all()


def test_permutations_taken_a_few_at_a_time_are_the_same_test(monkeypatch):
    values = np.random.default_rng(0).normal(size=(N, 3))
    whole = differences.between(values, LEVELS, SPLITS, n_permutations=99, seed=3)
    monkeypatch.setattr(differences, "TOGETHER", 7 * N)
    parts = differences.between(values, LEVELS, SPLITS, n_permutations=99, seed=3)
    np.testing.assert_array_equal(whole, parts)
