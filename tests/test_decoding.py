"""What was going on is decoded from people who were not trained on, from the past alone where that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from seen import N_VOLUMES, PERIOD, N, config_of, filled, held_out, planned, write_outputs

from bids_dl import cli, decoding, group, shifting, splits
from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl.errors import DataError, UsageError
from bids_dl.metrics import p_values, score


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_outputs(tmp_path_factory.mktemp("seen"))


def test_what_was_seen_is_decoded_in_new_people_and_shifted_labels_give_chance(dataset, tmp_path):
    config = config_of(*dataset)
    _, cohort = filled(config, tmp_path / "cohort")
    found = held_out(config, cohort, "lstm")
    assert score(found)["auc"][0] > 0.8
    assert p_values(found, n=99, seed=0)["auc"] == 0.01
    shuffled = replace(cohort, target=shifting.shifted_target(cohort.target, list(cohort.participants["run"]), 3))
    assert 0.3 < score(held_out(config, shuffled, "lstm"))["auc"][0] < 0.7


def test_windows_as_columns_are_decoded_by_a_linear_model(dataset, tmp_path):
    config = config_of(*dataset)
    _, cohort = filled(config, tmp_path / "cohort")
    assert score(held_out(config, cohort, "linear", "timeseries+context"))["auc"][0] > 0.8


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


def test_all_sessions_and_runs_of_a_participant_are_rows_on_one_side(tmp_path):
    config = config_of(*write_outputs(tmp_path, n=4, sessions=("_ses-1", "_ses-2"), runs=("_run-1", "_run-2")))
    made, cohort = filled(config, tmp_path / "cohort")
    rows = [i for i in made.participant_ids if i.startswith("sub-01@")]
    parts = {f"ses-{s}_task-see_run-{r}" for s in (1, 2) for r in (1, 2)}
    assert {i.partition("@")[2].rpartition("_")[0] for i in rows} == parts
    assert set(made.columns[decoding.RUN][: len(rows)]) == {f"sub-01 {part}" for part in parts}
    assert np.isfinite(cohort.features["timeseries"].values[:]).all()
    for split in splits.make(
        cohort.target, made.participant_ids, config.splits, seed=0, groups=made.columns[decoding.TIES]
    ):
        assert len({made.columns[decoding.PERSON][r] for r in split.test}) == 2


def test_who_has_no_site_is_listed_where_sites_are_left_out(tmp_path):
    bids, out = write_outputs(tmp_path, n=6)
    people = pd.read_csv(bids / "participants.tsv", sep="\t")
    people.loc[0, "site"] = None
    people.to_csv(bids / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    config = config_of(bids, out, splits={"kind": "leave-site-out"})
    plan = planned(config)
    names = [split.name for split in group._choose(config, plan).splits["events"]]
    assert names == ["site-A", "site-B", "site-C"]
    assert ("sub-01", "no site, and whole sites are left out in turn") in [
        (e["participant_id"], e["reason"]) for e in plan.excluded
    ]


def test_a_longer_delay_moves_the_conditions_later(dataset):
    soon, late = (planned(config_of(*dataset, decoding={"delay_s": d})) for d in (5.0, 9.0))
    first, second = (dict(zip(p.participant_ids, p.columns["events"], strict=True)) for p in (soon, late))
    moved = {f"{i[:-4]}{int(i[-4:]) + 2:04d}": c for i, c in first.items()}
    shared = moved.keys() & second.keys()
    assert len(shared) > 100
    assert all(moved[i] == second[i] for i in shared)


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


def test_a_run_without_events_leaves_the_other_runs_of_its_participant(tmp_path):
    bids, out = write_outputs(tmp_path, n=4, runs=("_run-1", "_run-2"))
    whole = planned(config_of(bids, out))
    events_of(out, "sub-02", "_run-1").unlink()
    for run in ("_run-1", "_run-2"):
        events_of(out, "sub-03", run).unlink()
    made, cohort = filled(config_of(bids, out), tmp_path / "cohort")
    assert set(made.columns[decoding.PERSON]) == {"sub-01", "sub-02", "sub-04"}
    kept = [run for run in whole.columns[decoding.RUN] if run != "sub-02 task-see_run-1" and "sub-03" not in run]
    assert made.columns[decoding.RUN] == kept
    assert np.isfinite(cohort.features["timeseries"].values[:]).all()
    assert [e["participant_id"] for e in made.excluded] == ["sub-03"]
    assert any("they have no events: 1. sub-02_task-see_run-1" in note for note in made.notes)


def events_of(out, person, run=""):
    return out / person / "func" / f"{person}_task-see{run}_desc-alignedevents_timeseries.tsv"


def test_what_is_not_known_is_left_out_and_no_rest(tmp_path):
    bids, out = write_outputs(tmp_path, n=4)
    table = pd.read_csv(events_of(out, "sub-02"), sep="\t").astype(float)
    table.loc[40:44] = None
    table.to_csv(events_of(out, "sub-02"), sep="\t", index=False, na_rep="n/a")
    made = planned(config_of(bids, out, decoding={"rest": "rest"}))
    assert not {f"sub-02@t{k:04d}" for k in range(40, 45)} & set(made.participant_ids)
    assert {"sub-02@t0039", "sub-02@t0045", "sub-01@t0042"} <= set(made.participant_ids)
    assert "5 volumes because what was on is not known" in " ".join(made.notes)


def test_events_that_come_sooner_tell_nothing_of_the_last_volumes(dataset):
    made = planned(config_of(*dataset, decoding={"rest": "rest", "delay_s": 1.0}))
    volumes = [int(i[-4:]) for i in made.participant_ids]
    assert max(volumes) == N_VOLUMES - 3
    late = planned(config_of(*dataset, decoding={"rest": "rest", "delay_s": 9.0}))
    assert max(int(i[-4:]) for i in late.participant_ids) == N_VOLUMES - 1


def test_a_delay_that_whole_volumes_do_not_allow_is_said(dataset):
    assert "Events count 9 s late, as" in " ".join(planned(config_of(*dataset, decoding={"delay_s": 9.0})).notes)
    said = " ".join(planned(config_of(*dataset, decoding={"delay_s": 6.4})).notes)
    assert "Events count 7 s (asked for: 6.4 s, which whole volumes do not allow; set features.events.delay_s" in said


def test_runs_of_one_participant_that_differ_in_repetition_time_are_named(tmp_path):
    bids, out = write_outputs(tmp_path, n=4, runs=("_run-1", "_run-2"))
    for person in ("sub-01", "sub-02", "sub-03", "sub-04"):
        events_of(out, person, "_run-2").with_suffix(".json").write_text(
            '{"HaemodynamicDelay": 5.0, "RepetitionTime": 1.0}'
        )
    with pytest.raises(DataError, match=r"differ: 1 s in sub-01 task-see_run-2, 2 s in sub-04 task-see_run-1"):
        planned(config_of(bids, out))


def test_events_after_the_end_of_a_scan_are_said(tmp_path):
    bids, out = write_outputs(tmp_path, n=4)
    assert "after the end of their scan" not in " ".join(planned(config_of(bids, out)).notes)
    for person, n_late in (("sub-01", 2), ("sub-04", 1)):
        said = {"HaemodynamicDelay": 5.0, "RepetitionTime": PERIOD, "LateEvents": n_late}
        events_of(out, person).with_suffix(".json").write_text(json.dumps(said))
    assert "after the end of their scan, and tell of no volume: 3." in " ".join(planned(config_of(bids, out)).notes)


def test_a_file_of_splits_may_name_participants(dataset, tmp_path):
    parts = pd.DataFrame(
        {"participant_id": [f"sub-{k + 1:02d}" for k in range(N)], "one": ["train"] * 6 + ["test"] * 4}
    )
    parts.to_csv(tmp_path / "splits.tsv", sep="\t", index=False)
    config = config_of(*dataset, splits={"kind": "file", "file": str(tmp_path / "splits.tsv")})
    made = planned(config)
    (split,) = group._choose(config, made).splits["events"]
    owners = np.array(made.columns[decoding.PERSON])
    assert set(owners[split.test]) == {f"sub-{k:02d}" for k in range(7, 11)}
    assert set(owners[split.pool]) == {f"sub-{k:02d}" for k in range(1, 7)}
    assert not set(owners[split.train]) & set(owners[split.validation])


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
