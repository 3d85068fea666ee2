"""What was going on is decoded from people who were not trained on, from the past alone where that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from seen import N_VOLUMES, PERIOD, N, config_of, filled, held_out, planned, write_outputs

from bids_dl import cli, decoding, splits
from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl.errors import DataError, UsageError
from bids_dl.metrics import Predictions, p_values, score


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_outputs(tmp_path_factory.mktemp("seen"))


def test_what_was_seen_is_decoded_in_new_people_and_shifted_labels_give_chance(dataset, tmp_path):
    config = config_of(*dataset)
    _, cohort = filled(config, tmp_path / "cohort")
    found = held_out(config, cohort, "lstm")
    assert score(found)["auc"][0] > 0.8
    assert p_values(found, n=99, seed=0)["auc"] == 0.01
    shuffled = replace(cohort, target=decoding.shifted_target(cohort.target, list(cohort.participants["run"]), 3))
    assert 0.3 < score(held_out(config, shuffled, "lstm"))["auc"][0] < 0.7


def test_windows_as_columns_are_decoded_by_a_linear_model(dataset, tmp_path):
    config = config_of(*dataset)
    _, cohort = filled(config, tmp_path / "cohort")
    assert score(held_out(config, cohort, "linear", "timeseries+context"))["auc"][0] > 0.8


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
    windows = decoding.Windows(series, starts, 4)
    flat = windows.reshape(4, -1)
    for key in (1, slice(1, 3), np.array([3, 0]), np.array([True, False, True, False])):
        np.testing.assert_array_equal(windows[key], whole[key])
        np.testing.assert_array_equal(flat[key], whole.reshape(4, -1)[key])
        np.testing.assert_array_equal(flat[key, 2:7], whole.reshape(4, -1)[key, 2:7])
    np.testing.assert_array_equal(np.asarray(windows), whole)
    assert (windows.shape, flat.shape, len(flat)) == ((4, 4, 3), (4, 12), 4)


def test_no_participant_is_on_both_sides_and_what_is_left_out_is_counted(dataset):
    made = planned(config_of(*dataset))
    people = made.columns[decoding.PERSON]
    target = cohorts.make_target("events", made.columns["events"])
    for split in splits.make(
        target, made.participant_ids, configuration.Splits(n_folds=5), seed=0, groups=made.columns[decoding.TIES]
    ):
        sides = [{people[r] for r in rows} for rows in (split.train, split.validation, split.test)]
        assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    said = " ".join(made.notes)
    n_left = sum(
        int(part.split()[0].replace(",", "")) for part in said.split("Left out: ")[1].split(".")[0].split("; ")
    )
    assert n_left + len(made.participant_ids) == N * N_VOLUMES
    assert "face, house" in said
    assert "5 s late" in said


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


def test_a_longer_delay_moves_the_conditions_later(dataset):
    soon, late = (planned(config_of(*dataset, decoding={"delay_s": d})) for d in (5.0, 9.0))
    first, second = (dict(zip(p.participant_ids, p.columns["events"], strict=True)) for p in (soon, late))
    moved = {f"{i[:-4]}{int(i[-4:]) + 2:04d}": c for i, c in first.items()}
    shared = moved.keys() & second.keys()
    assert len(shared) > 100
    assert all(moved[i] == second[i] for i in shared)


def test_shifts_keep_each_course_and_move_repeats_alike():
    values, runs = np.array([0.0, 0, 0, 1, 1, 2, 3, 4, 4, 5]), np.repeat([0, 1], 5)
    twice, folds = np.tile(values, 2), np.repeat([0, 1], 10)
    draws = decoding.shifts(twice, np.tile(runs, 2), np.random.default_rng(0), folds)
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


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"decoding": {"context": 0}}, UsageError, "decoding.context.*choose 1 volume"),
        ({"decoding": {"baseline_s": -1}}, UsageError, "decoding.baseline_s.*0 seconds"),
        ({"decoding": {"conditions": ["faec"]}}, DataError, "no run has the condition 'faec'.*face"),
        ({"decoding": {"context": 200}}, DataError, "no volume is left.*beyond the run.*shorten decoding.context"),
        ({"targets": {"names": ["events", "age"]}}, UsageError, "events beside others"),
        ({"targets": {"names": ["age"]}}, UsageError, "nothing is decoded"),
        ({"targets": {"covariates": ["age"]}}, UsageError, "age.*same at every time point"),
        ({"harmonizers": {"names": ["combat"]}}, UsageError, "leave harmonizers out"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(dataset, more, error, message):
    with pytest.raises(error, match=message):
        planned(config_of(*dataset, **more))


def test_series_without_events_are_named(tmp_path):
    bids, out = write_outputs(tmp_path, n=2)
    for path in out.rglob("*alignedevents*.tsv"):
        path.unlink()
    with pytest.raises(DataError, match="sub-01_task-see.*no events beside it"):
        planned(config_of(bids, out))


CONFIG = """
[targets]
names = ["events"]
[features]
names = ["timeseries", "events"]
[decoding]
context = 6
baseline_s = 16.0
[models]
names = ["lstm"]
[splits]
n_folds = 2
[training]
n_epochs = 12
n_members = 1
[metrics]
n_bootstraps = 20
n_permutations = 99
[explainers]
names = ["integrated_gradients"]
"""


@pytest.mark.slow
def test_the_command_line_decodes_and_the_report_says_what(tmp_path):
    bids, out = write_outputs(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    options = ["--nprocs", "1", "--skip-bids-validation", "--config-file", str(tmp_path / "config.toml")]
    assert cli.main([str(bids), str(out), "group", *options]) == 0
    found = pd.read_csv(out / "group" / "metrics" / "target-events_metrics.tsv", sep="\t", na_values="n/a")
    auc = found[found["metric"] == "auc"].set_index("model")
    assert auc.loc["timeseries_lstm", "value"] > 0.8
    assert auc.loc["timeseries+context_linear", "value"] > 0.8
    assert auc.loc["confounds_only", "value"] < 0.65
    assert (auc["n"] == N).all()
    report = (out / "group.html").read_text()
    assert "Decoded: which of face, house was on" in report
    assert f"volumes of {N} participants" in report
    assert "circular shifts" in report
