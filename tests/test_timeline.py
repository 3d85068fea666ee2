"""A bundle that decodes tells of new people, volume by volume, what the model told when it was trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seen import LABELS, N_VOLUMES, PERIOD, config_of, filled, write_outputs

from bids_dl import bundle, cli, decoding, fits, prediction, report, written
from bids_dl import config as configuration

NEW = ("sub-09", "sub-10")
MODELS = {
    "lstm": ("timeseries_lstm", "timeseries"),
    "linear": ("timeseries+context_linear", "timeseries+context"),
}
SMALL = {"training": {"n_epochs": 4, "n_members": 2}, "run": {"device": "cpu"}}


def final(made):
    """Everybody but the new people is trained on; these are told apart to see what the training tells of them."""
    owners = np.array(made.columns[decoding.PERSON])
    parts = np.where(np.isin(owners, NEW), "test", np.where(owners == "sub-01", "validation", "train"))
    return pd.DataFrame({"participant_id": made.participant_ids, "final": parts})


def train(bids, out, method, **decodes):
    """Take the steps of the group level that lead to a bundle; returns it, and what the training told of new people."""
    config = config_of(bids, out, **SMALL, decoding=decodes)
    made, _ = filled(config, config.work / "cohort")
    (config.work / "final").mkdir(exist_ok=True)
    final(made).to_csv(config.work / "final" / "events.tsv", sep="\t", index=False)
    name, feature = MODELS[method]
    model = {"id": name, "method": method, "inputs": [feature], "role": "network", "members": [], "parts": []}
    common = {
        "config": configuration.to_mapping(config),
        "target": "events",
        "covariates": [],
        "site": "",
        "groups": decoding.TIES,
    }
    fits.fit(model, "final", **common)
    (out / "group" / "metrics").mkdir(parents=True, exist_ok=True)
    scores = pd.DataFrame({"model": [name], "metric": "auc", "value": 0.9, "ci_low": 0.8, "ci_high": 1.0})
    scores.to_csv(out / "group" / "metrics" / "target-events_metrics.tsv", sep="\t", index=False)
    told = np.load(config.work / "fits" / "events" / name / "final" / "predictions.npz")
    return Path(fits.keep(model, **common)), table_of(told, made, config)


def table_of(told, made, config):
    levels = decoding.target_of(config, made).levels
    return pd.DataFrame(told["scores"], np.array(made.participant_ids)[told["rows"]], [f"score_{v}" for v in levels])


def apply(folder, bids, out, person, **more):
    given = {"bids_dir": str(bids), "output_dir": str(out), "analysis_level": "participant", **more}
    record = json.loads((out / "logs" / "participants" / f"{person}.json").read_text())
    return prediction.predict_participant(folder, configuration.from_mapping(given), person, record)


def in_fresh_process(folder, bids, out, person):
    code = f"""
import json
from pathlib import Path
from bids_dl import config, prediction
given = config.from_mapping({{"bids_dir": r"{bids}", "output_dir": r"{out}", "analysis_level": "participant"}})
record = json.loads(Path(r"{out}/logs/participants/{person}.json").read_text())
print(json.dumps(prediction.predict_participant(Path(r"{folder}"), given, "{person}", record)))
"""
    return json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def read(out, said):
    return [pd.read_csv(out / path, sep="\t", na_values="n/a") for path in said["series"]]


@pytest.fixture(scope="module", params=[("lstm", True), ("linear", False)], ids=lambda p: f"{p[0]}-causal-{p[1]}")
def trained(request, tmp_path_factory):
    method, causal = request.param
    bids, out = write_outputs(tmp_path_factory.mktemp("seen"), runs=("_run-1", "_run-2"))
    folder, told = train(bids, out, method, causal=causal)
    return bids, out, folder, told, causal


@pytest.fixture
def one(tmp_path):
    bids, out = write_outputs(tmp_path)
    return bids, out, train(bids, out, "linear")[0]


def series_of(out, person, run=""):
    return out / person / "func" / f"{person}_task-see{run}_atlas-five_stat-mean_timeseries.tsv"


def test_a_fresh_process_tells_what_the_training_told_of_the_same_volumes(trained):
    bids, out, folder, told, _ = trained
    for run, table in zip(("run-1", "run-2"), read(out, in_fresh_process(folder, bids, out, "sub-09")), strict=True):
        assert len(table) == N_VOLUMES
        mine = told[told.index.str.startswith(f"sub-09@task-see_{run}_")]
        volumes = [int(i[-4:]) for i in mine.index]
        assert len(volumes) > 30
        np.testing.assert_allclose(table.loc[volumes, mine.columns], mine, atol=1e-6, rtol=0)


def test_every_volume_with_its_context_is_decoded_and_no_other(trained):
    bids, out, folder, _, causal = trained
    said = apply(folder, bids, out, "sub-10")
    without = [*range(13)] if causal else [0, 1, 2, N_VOLUMES - 2, N_VOLUMES - 1]
    for table in read(out, said):
        assert np.flatnonzero(table["prediction"].isna()).tolist() == without
        known = table.dropna()
        np.testing.assert_allclose(known[["score_face", "score_house"]].sum(axis=1), 1, atol=2e-6)
        assert (known["prediction"] == np.where(known["score_face"] > 0.5, "face", "house")).all()
    row = said["row"]
    assert (row["n_volumes"], row["n_decoded"]) == (2 * N_VOLUMES, 2 * (N_VOLUMES - len(without)))
    assert row["part_face"] + row["part_house"] == pytest.approx(1)
    assert row["excluded"] is None


def test_what_a_new_participant_saw_is_decoded(one):
    bids, out, folder = one
    (table,) = read(out, apply(folder, bids, out, "sub-09"))
    on = pd.read_csv(out / "sub-09" / "func" / "sub-09_task-see_desc-alignedevents_timeseries.tsv", sep="\t")
    truth = np.where(on["face"] == 1, "face", "house")
    known = table["prediction"].notna() & (on.sum(axis=1) == 1)
    assert (table["prediction"] == truth)[known].mean() > 0.75


def test_the_table_is_named_and_described_as_a_derivative(trained):
    bids, out, folder, _, causal = trained
    said = apply(folder, bids, out, "sub-10")
    word = "TargetEventsModel" + ("TimeseriesLstm" if causal else "TimeseriesContextLinear")
    wanted = [f"sub-10/func/sub-10_task-see_run-{k}_desc-{word}_timeseries.tsv" for k in (1, 2)]
    assert said["series"] == wanted
    sidecar = json.loads((out / wanted[0]).with_suffix(".json").read_text())
    assert sidecar["Sources"] == [f"bids::{series_of(out, 'sub-10', '_run-1').relative_to(out)}"]
    assert (sidecar["RepetitionTime"], sidecar["Causal"], sidecar["HaemodynamicDelay"]) == (PERIOD, causal, 5.0)
    assert set(sidecar) >= {"prediction", "score_face", "score_house", "Model", "Description"}


def test_who_was_trained_on_is_refused_by_name_and_by_series(trained):
    bids, out, folder, _, _ = trained
    assert apply(folder, bids, out, "sub-03")["row"] == {
        "n_volumes": None, "n_decoded": None, "part_face": None, "part_house": None,
        "excluded": "sub-03 was among the participants this bundle was trained on (the dataset of both is called 'seen'); its "
        "prediction would be too good.",
    }  # fmt: skip
    for run in ("_run-1", "_run-2"):
        kept = series_of(out, "sub-10", run).read_text()
        shutil.copy(series_of(out, "sub-03", run), series_of(out, "sub-10", run))
        assert "was among the participants" in apply(folder, bids, out, "sub-10")["row"]["excluded"]
        series_of(out, "sub-10", run).write_text(kept)
    assert apply(folder, bids, out, "sub-10")["row"]["excluded"] is None
    people = bundle.about(folder)["participants"]
    assert len(people) == 8 * 3
    assert bundle.about(folder)["n_participants"] == 8


def test_later_volumes_change_no_earlier_prediction_of_a_causal_bundle(one):
    bids, out, folder = one
    before = read(out, apply(folder, bids, out, "sub-09"))[0]
    table = pd.read_csv(series_of(out, "sub-09"), sep="\t")
    table.iloc[60:] = np.random.default_rng(1).normal(size=table.iloc[60:].shape) * 1e3
    table.to_csv(series_of(out, "sub-09"), sep="\t", index=False)
    after = read(out, apply(folder, bids, out, "sub-09"))[0]
    pd.testing.assert_frame_equal(before[:60], after[:60])
    assert not np.allclose(before["score_face"][60:], after["score_face"][60:], atol=0.01)


def test_a_censored_volume_is_not_decoded_and_the_others_keep_their_place(one):
    bids, out, folder = one
    before = read(out, apply(folder, bids, out, "sub-09"))[0]
    path = series_of(out, "sub-09")
    pd.read_csv(path, sep="\t").drop(index=[80, 81]).to_csv(path, sep="\t", index=False)
    path.with_suffix(".json").write_text(json.dumps({"RepetitionTime": PERIOD, "CensoredVolumes": [80, 81]}))
    after = read(out, apply(folder, bids, out, "sub-09"))[0]
    assert len(after) == N_VOLUMES
    assert np.flatnonzero(after["prediction"].isna()).tolist() == [*range(13), 80, 81]
    pd.testing.assert_frame_equal(before[:80], after[:80])


@pytest.mark.parametrize(
    ("sidecar", "columns", "n", "reason"),
    [
        (
            {"RepetitionTime": 0.8},
            LABELS,
            N_VOLUMES,
            "a repetition time of 0.8 s, and the bundle decodes volumes of 2 s",
        ),
        ({}, LABELS, N_VOLUMES, "no RepetitionTime in its sidecar"),
        ({"RepetitionTime": PERIOD}, ["x", *LABELS[1:]], N_VOLUMES, "other regions"),
        ({"RepetitionTime": PERIOD}, LABELS, 13, "sub-09: no volume can be decoded; a run needs more than 13 volumes"),
    ],
)
def test_series_that_do_not_fit_are_listed_with_the_reason(one, sidecar, columns, n, reason):
    bids, out, folder = one
    path = series_of(out, "sub-09")
    values = pd.read_csv(path, sep="\t").to_numpy()[:n]
    pd.DataFrame(values, columns=columns).to_csv(path, sep="\t", index=False)
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    assert reason in apply(folder, bids, out, "sub-09")["row"]["excluded"]


def test_a_participant_without_series_is_listed_with_the_reason(one):
    bids, out, folder = one
    given = configuration.from_mapping({"bids_dir": str(bids), "output_dir": str(out), "analysis_level": "participant"})
    said = prediction.predict_participant(folder, given, "sub-09", {"features": []})
    assert "none of the features that the bundle takes (timeseries, atlas five)" in said["row"]["excluded"]


CONFIG = """
[targets]
names = ["events"]
[features]
names = ["timeseries", "events"]
[decoding]
context = 6
baseline_s = 16.0
[models]
names = ["mean_mlp"]
[splits]
kind = "leave-site-out"
[training]
n_epochs = 2
n_members = 1
[metrics]
n_bootstraps = 20
n_permutations = 20
n_retrained = -1
[explainers]
names = ["integrated_gradients"]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A group level that leaves sites out, and its bundle applied to a dataset of series of one old and two new people."""
    root = tmp_path_factory.mktemp("sites")
    bids, out = write_outputs(root)
    (root / "config.toml").write_text(CONFIG)
    options = ["--nprocs", "1", "--skip-bids-validation"]
    people = [f"{k:02d}" for k in range(1, 9)]
    given = ["group", *options, "--config-file", str(root / "config.toml"), "--participant-label", *people]
    assert cli.main([str(bids), str(out), *given]) == 0
    new = root / "new"
    for person in ("sub-01", *NEW):
        (new / person / "func").mkdir(parents=True)
        for end in (".tsv", ".json"):
            path = series_of(out, person).with_suffix(end)
            shutil.copy(path, new / person / "func" / path.name)
    about = {"Name": "new", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "test"}]}
    (new / "dataset_description.json").write_text(json.dumps(about))
    shutil.copy(bids / "participants.tsv", new / "participants.tsv")
    bundles = sorted((out / "group" / "bundles").iterdir())
    given = ["participant", *options, "--features", "timeseries", "--bundle", *map(str, bundles)]
    assert cli.main([str(new), str(root / "applied"), *given]) == 0
    return out, root / "applied", bundles


def test_sites_are_left_out_whole(run):
    out, _, _ = run
    rows = pd.read_csv(out / "group" / "participants.tsv", sep="\t")
    table = pd.read_csv(out / "group" / "splits" / "target-events_splits.tsv", sep="\t")
    assert list(table.columns[1:]) == ["site-A", "site-B", "site-C"]
    for name in table.columns[1:]:
        assert set(rows["site"][table[name] == "test"]) == {name[-1]}
        assert name[-1] not in set(rows["site"][table[name].isin(["train", "validation"])])
        sides = [set(rows["participant"][table[name] == part]) for part in ("train", "validation")]
        assert sides[0]
        assert sides[1]
        assert not sides[0] & sides[1]
    found = pd.read_csv(out / "group" / "metrics" / "target-events_metrics.tsv", sep="\t", na_values="n/a")
    assert (found["n"] == 8).all()


def test_the_report_counts_people_where_rows_are_moments(run):
    out, _, _ = run
    n = len(pd.read_csv(out / "group" / "participants.tsv", sep="\t"))
    choices = written.read_choices(out)
    assert dict(map(reversed, report._summary(out, choices)["tiles"]))["participants"] == "8"
    assert (f"{n:,}", "volumes") in report._summary(out, choices)["tiles"]
    who, data, splits = (make(out, choices) for make in (report._who, report._data, report._splits))
    assert [(row["found"], row["out"], row["used"]) for row in who["flow"]] == [(8, 0, 8)]
    assert sorted(int(row[1]) for row in who["sites"]["rows"]) == [2, 3, 3]
    assert {text for _, _, text in data["available"]} == {"8 of 8"}
    assert all(sum(map(int, row[2:])) == 8 for row in splits["counts"]["rows"])
    assert splits["pictures"][0]["n"] == 8
    regions = data["features"]["columns"].index("regions") if "regions" in data["features"]["columns"] else None
    assert regions is None or {row[regions] for row in data["features"]["rows"]} == {"5"}
    page = (out / "group.html").read_text()
    assert "p: circular shifts of each run" in page
    assert "part of the held-out volumes" in page


def test_the_participant_level_applies_every_bundle_of_a_decoding_run(run):
    _, applied, bundles = run
    assert [b.name for b in bundles] == [
        "target-events_model-timeseries+context_linear",
        "target-events_model-timeseries_mean_mlp",
    ]
    for folder in bundles:
        table = pd.read_csv(applied / "phenotype" / f"{folder.name}.tsv", sep="\t", na_values="n/a").set_index(
            "participant_id"
        )
        assert table["excluded"].isna().to_dict() == {"sub-01": False, "sub-09": True, "sub-10": True}
        assert (table.loc[list(NEW), "n_decoded"] == N_VOLUMES - 13).all()
        said = json.loads((applied / "phenotype" / f"{folder.name}.json").read_text())
        assert said["part_face"]["Description"] == "Part of the decoded volumes that are 'face'"
    assert not list((applied / "sub-01").rglob("*_desc-TargetEvents*"))
    assert len(list((applied / "sub-10" / "func").glob("*_task-see_desc-TargetEvents*_timeseries.tsv"))) == 2
    assert f"{N_VOLUMES - 13} of {N_VOLUMES} volumes" in (applied / "sub-10.html").read_text()
    assert "No prediction: sub-01 was among" in (applied / "sub-01.html").read_text()


def test_a_run_that_goes_on_from_a_bundle_of_the_same_people_is_refused(run, tmp_path, capsys):
    out, _, bundles = run
    (tmp_path / "config.toml").write_text(
        CONFIG.replace("n_members = 1", f'n_members = 1\nstart_from = "{bundles[1]}"')
    )
    given = [str(out.parent / "bids"), str(out), "group", "--config-file", str(tmp_path / "config.toml"), "--overwrite"]
    assert cli.main([*given, "--dry-run"]) == 65
    assert "was trained on 8 of these participants (sub-01, sub-02, sub-03" in capsys.readouterr().err
