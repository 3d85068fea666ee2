"""A row is the context of its volume: a place in the series, which are laid out once."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from seen import N_VOLUMES, PERIOD, config_of, filled, write_outputs

from bids_dl import cohort as cohorts
from bids_dl import windows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_outputs(tmp_path_factory.mktemp("seen"))


@pytest.mark.parametrize("causal", [True, False])
def test_a_row_is_the_context_of_its_volume_as_a_loop_says(dataset, tmp_path, causal):
    bids, out = dataset
    config = config_of(bids, out, decoding={"causal": causal, "stride": 3})
    made, cohort = filled(config, tmp_path / "cohort")
    before = 5 if causal else 3
    rows = 0
    for person in made.stored.participant_ids:
        stem = out / person / "func" / f"{person}_task-see"
        on = pd.read_csv(f"{stem}_desc-alignedevents_timeseries.tsv", sep="\t").to_numpy()
        x = pd.read_csv(f"{stem}_atlas-five_stat-mean_timeseries.tsv", sep="\t").to_numpy()
        for t in range(0, N_VOLUMES, 3):
            start = t - before
            if start < (8 if causal else 0) or start + 6 > N_VOLUMES or on[t].sum() != 1:
                continue
            assert made.participant_ids[rows] == f"{person}@t{t:04d}"
            assert cohort.target.levels[int(cohort.target.values[rows])] == ["face", "house"][int(on[t, 1])]
            past = [x[: s + 1] if causal else x for s in range(start, start + 6)]
            wanted = [
                (x[s] - p.mean(axis=0)) / p.std(axis=0) for s, p in zip(range(start, start + 6), past, strict=True)
            ]
            np.testing.assert_allclose(cohort.features["timeseries"].values[rows], wanted, rtol=1e-4, atol=1e-4)
            rows += 1
    assert rows == len(made.participant_ids) > 100


def test_altering_later_volumes_changes_no_causal_row_before_them(tmp_path):
    bids, out = write_outputs(tmp_path, n=2)
    config = config_of(bids, out)
    made, cohort = filled(config, tmp_path / "one")
    path = out / "sub-01" / "func" / "sub-01_task-see_atlas-five_stat-mean_timeseries.tsv"
    table = pd.read_csv(path, sep="\t")
    table.iloc[60:] = np.random.default_rng(1).normal(size=table.iloc[60:].shape) * 1e3
    table.to_csv(path, sep="\t", index=False)
    _, altered = filled(config, tmp_path / "two")
    volumes = np.array([int(i.rpartition("t")[2]) for i in made.participant_ids])
    early = np.array([i.startswith("sub-01") for i in made.participant_ids]) & (volumes < 60)
    one, two = (c.features["timeseries"].values for c in (cohort, altered))
    assert early.sum() > 10
    np.testing.assert_array_equal(one[early], two[early])
    assert not np.array_equal(one[volumes >= 60], two[volumes >= 60])


def test_windows_are_indexed_like_the_array_they_stand_for():
    series = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    starts = np.array([0, 5, 6, 30])
    whole = np.stack([series[s : s + 4] for s in starts])
    cut = windows.Windows(series, starts, 4)
    flat = cut.reshape(4, -1)
    for key in (1, slice(1, 3), np.array([3, 0]), np.array([True, False, True, False])):
        np.testing.assert_array_equal(cut[key], whole[key])
        np.testing.assert_array_equal(flat[key], whole.reshape(4, -1)[key])
        np.testing.assert_array_equal(flat[key, 2:7], whole.reshape(4, -1)[key, 2:7])
    np.testing.assert_array_equal(np.asarray(cut), whole)
    assert (cut.shape, flat.shape, len(flat)) == ((4, 4, 3), (4, 12), 4)


def test_runs_do_not_flow_into_one_another_and_censored_volumes_keep_their_place(tmp_path):
    bids, out = write_outputs(tmp_path, n=2, runs=("_run-1", "_run-2"))
    path = out / "sub-01" / "func" / "sub-01_task-see_run-1_atlas-five_stat-mean_timeseries.tsv"
    series = pd.read_csv(path, sep="\t").drop(index=[40, 41])
    series.to_csv(path, sep="\t", index=False)
    path.with_suffix(".json").write_text(json.dumps({"RepetitionTime": PERIOD, "CensoredVolumes": [40, 41]}))
    config = config_of(bids, out, decoding={"rest": "rest"})
    made, cohort = filled(config, tmp_path / "cohort")
    assert not {f"sub-01@task-see_run-1_t00{t}" for t in (40, 41)} & set(made.participant_ids)
    row = made.participant_ids.index("sub-01@task-see_run-1_t0042")
    assert np.isnan(cohort.features["timeseries"].values[row]).all(axis=1).tolist() == [0, 0, 0, 1, 1, 0]
    assert min(int(i[-4:]) for i in made.participant_ids) == 13
    assert cohort.target.levels == ("face", "house", "rest")
    assert len(made.participant_ids) == 4 * (N_VOLUMES - 13) - 2


def test_one_run_under_two_names_is_seen_beside_others_of_their_own(tmp_path):
    bids, out = write_outputs(tmp_path, n=3, runs=("_run-1", "_run-2"))
    name = "{0}/func/{0}_task-see_run-{1}_atlas-five_stat-mean_timeseries.tsv"
    (out / name.format("sub-03", 2)).write_text((out / name.format("sub-01", 1)).read_text())
    filled(config_of(bids, out), tmp_path / "cohort")
    found = cohorts.duplicates(tmp_path / "cohort")
    assert found == [{"participant_id": "sub-03", "same_as": "sub-01", "feature": "timeseries"}]
