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


def test_what_a_confound_explains_is_no_difference_and_may_hide_one():
    generator = np.random.default_rng(0)
    patient = np.array(LEVELS) == "mdd"
    motion = patient + 0.5 * generator.normal(size=N)
    noise = 0.5 * generator.normal(size=(2, N))
    values = np.column_stack([3 * motion, patient - 3 * motion]) + noise.T
    bare = differences.between(values, LEVELS, SPLITS, n_permutations=999, seed=0)[1]
    freed = differences.between(values, LEVELS, SPLITS, motion[:, None], n_permutations=999, seed=0)[1]
    assert bare[0] < 0.01 < 0.05 < freed[0]
    assert freed[1] < 0.01
    unknown = np.column_stack([motion, np.full(N, np.nan)])
    np.testing.assert_array_equal(
        differences.between(values, LEVELS, SPLITS, unknown, n_permutations=999, seed=0)[1], freed
    )


def test_confounds_leave_p_values_of_shuffled_levels_even():
    generator = np.random.default_rng(0)
    p_values = []
    for seed in range(300):
        confounds = generator.normal(size=(N, 3)) + (SPLITS == "two")[:, None]
        levels = np.where(confounds[:, 0] + generator.normal(size=N) > 0, "hc", "mdd")
        values = generator.gamma(2, size=(N, 1)) + confounds[:, :1] - 2 * confounds[:, 1:2]
        p_values.append(differences.between(values, levels, SPLITS, confounds, n_permutations=199, seed=seed)[1][0])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.085


def test_share_beside_confounds_is_that_of_a_partial_correlation():
    generator = np.random.default_rng(0)
    confounds, values = generator.normal(size=(N, 2)), generator.normal(size=(N, 1))
    design = np.column_stack([np.ones(N), confounds])
    left = [y - design @ np.linalg.lstsq(design, y, rcond=None)[0] for y in (values[:, 0], np.array(LEVELS) == "mdd")]
    share, _ = differences.between(values, LEVELS, ["one"] * N, confounds, n_permutations=9, seed=0)
    assert share[0] == pytest.approx(np.corrcoef(left)[0, 1] ** 2)


def test_who_lacks_a_figure_is_left_out_of_that_one_alone():
    values = np.random.default_rng(0).normal(size=(N, 3))
    values[:20, 1], values[:, 2] = np.nan, np.nan
    found = np.array(differences.between(values, LEVELS, SPLITS, n_permutations=99, seed=0))
    for figure, people in ((0, slice(None)), (1, slice(20, None))):
        alone = differences.between(values[people, [figure]], LEVELS[people], SPLITS[people], n_permutations=99, seed=0)
        np.testing.assert_allclose(found[:, [figure]], alone)
    assert np.isnan(found[:, 2]).all()


def test_more_confounds_than_people_leave_nothing_to_test():
    generator = np.random.default_rng(0)
    values, confounds = generator.normal(size=(6, 1)), generator.normal(size=(6, 6))
    found = differences.between(values, LEVELS[:6], ["one"] * 6, confounds, n_permutations=9, seed=0)
    assert np.isnan(found).all()


def test_a_state_that_somebody_never_visits_has_no_dwell_time_and_tests_the_others(tmp_path):
    given = told([(0.7, 0.7, 0.85 if level == "mdd" else 0.7) for level in LEVELS])
    dwell = given[3].values["dwell"].copy()
    dwell[2] = np.nan
    given[3] = Told(3, given[3].split, {**given[3].values, "dwell": dwell}, given[3].dims)
    found = written(given, LEVELS, tmp_path)
    assert found.loc[("dwell", 3), "n"] == N - 1
    assert (found["n"].drop(("dwell", 3)) == N).all()
    everybody = pd.read_csv(tmp_path / "m_participants.tsv", sep="\t", na_values="n/a")
    lacking = everybody[everybody["value"].isna()]
    assert list(lacking[["participant_id", "measure", "state"]].itertuples(index=False, name=None)) == [
        ("sub-03", "dwell", 3)
    ]
    groups = pd.read_csv(tmp_path / "m_states.tsv", sep="\t", na_values="n/a")
    assert groups[(groups["measure"] == "dwell") & (groups["state"] == 3)]["n"].sum() == N - 1


def test_confounds_of_the_rows_that_were_told_are_taken_off(tmp_path):
    patient = np.array(LEVELS) == "mdd"
    given = told([(0.7, 0.7, 0.85 if one else 0.7) for one in patient])
    order = np.random.default_rng(0).permutation(N)
    ids = [f"sub-{k:02d}" for k in range(N)]
    paths = descriptions.write_figures(
        [given[k] for k in order], ids, LEVELS, tmp_path / "m", "state", confounds=patient[:, None], n_permutations=99
    )
    assert (pd.read_csv(paths[-1], sep="\t", na_values="n/a")["p_value"] == 1).all()


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
