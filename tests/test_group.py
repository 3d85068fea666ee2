import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from bids_dl import bundle as bundles
from bids_dl import cli, group, quality, resemblance, synthesis
from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl.bundle import load
from bids_dl.errors import DataError, UsageError
from bids_dl.records import Split, Target

N, N_REGIONS, N_VOLUMES = 16, 6, 40
IDS = [f"sub-{n:02d}" for n in range(1, N + 1)]
CONFIG = """
[targets]
names = ["group", "age", "subtype"]
covariates = ["sex"]
[models]
names = ["linear", "mlp"]
[models.mlp]
hidden = [4]
[splits]
n_folds = 2
[training]
n_epochs = 2
n_members = 1
[metrics]
n_bootstraps = 20
n_permutations = 20
n_retrained = 2
"""
TARGETS = {"group": ("hc", "mdd"), "age": (), "subtype": ("x", "y", "z")}
MODELS = ("confounds_only", "connectivity_linear", "connectivity_mlp", "dummy")


def write_dataset(folder, *, seed=0, name="small"):
    """A derivative dataset with a series a participant; depressed participants' first two regions go together."""
    generator = np.random.default_rng(seed)
    (folder / "atlas").mkdir(parents=True)
    description = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "test"}],
    }
    (folder / "dataset_description.json").write_text(json.dumps(description))
    rows = []
    for number, participant_id in enumerate(IDS):
        depressed = number % 2
        series = generator.normal(size=(N_VOLUMES, N_REGIONS))
        series[:, 1] += 2 * depressed * series[:, 0]
        path = folder / participant_id / "func" / f"{participant_id}_task-rest_atlas-six_timeseries.tsv"
        path.parent.mkdir(parents=True)
        labels = [f"region{r}" for r in range(N_REGIONS)]
        pd.DataFrame(series, columns=labels).to_csv(path, sep="\t", index=False, float_format="%.5f")
        rows.append({
            "participant_id": participant_id, "group": ["hc", "mdd"][depressed], "age": 20 + 3 * number + depressed,
            "sex": "FM"[generator.integers(2)], "subtype": "xyz"[number % 3], "site": ["north", "south"][number // 8],
        })  # fmt: skip
    rows[3]["age"] = "n/a"
    pd.DataFrame(rows).to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def run(bids, out, level, *more):
    return cli.main([str(bids), str(out), level, "--nprocs", "1", "--skip-bids-validation", *map(str, more)])


def tables(out):
    """Digest of every table that the group level wrote."""
    files = sorted(out.glob("group/**/*.tsv"))
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "bids")


@pytest.fixture(scope="module")
def out(bids, config_file, tmp_path_factory):
    """Both levels, run once: three targets in one configuration."""
    folder = tmp_path_factory.mktemp("out")
    assert run(bids, folder, "participant") == 0
    assert run(bids, folder, "group", "--config-file", config_file) == 0
    return folder


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_everybody_with_the_target_is_predicted_once_by_a_model_that_had_not_seen_them(out, target, model):
    predictions = table(out / "group" / "predictions" / f"target-{target}_model-{model}_predictions.tsv")
    splits = table(out / "group" / "splits" / f"target-{target}_splits.tsv").set_index("participant_id")
    people = [i for i in IDS if not (target == "age" and i == "sub-04")]
    assert sorted(predictions["participant_id"]) == people
    assert all(splits.loc[row.participant_id, row.split] == "test" for row in predictions.itertuples())


@pytest.mark.parametrize(("target", "levels"), TARGETS.items())
def test_predictions_are_probabilities_or_quantities(out, target, levels):
    predictions = table(out / "group" / "predictions" / f"target-{target}_model-connectivity_linear_predictions.tsv")
    if levels:
        assert set(predictions["y_true"]) == set(levels)
        assert predictions["y_score"].between(0, 1).all()
    else:
        assert predictions["y_true"].between(20, 70).all()
        assert predictions["y_score"].between(0, 100).all()
    if len(levels) > 2:
        np.testing.assert_allclose(predictions[[f"score_{v}" for v in levels]].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("target", "levels"), TARGETS.items())
def test_every_model_has_every_metric_with_interval_and_p_values(out, target, levels):
    metrics = table(out / "group" / "metrics" / f"target-{target}_metrics.tsv")
    assert Counter(metrics["model"]) == dict.fromkeys(MODELS, 5 if levels else 4)
    assert metrics["p_value"].between(0.0476, 1).all()
    assert (metrics["folds_low"] <= metrics["folds_high"]).equals(metrics["folds_low"].notna())
    assert metrics.loc[metrics["model"] != "dummy", "folds_low"].notna().any()
    assert (metrics["n"] == (N if levels else N - 1)).all()
    retrained = metrics[metrics["model"] != "dummy"]["p_value_retrained"]
    assert retrained.between(0.333, 1).all()


def test_sites_are_scored_by_themselves(out):
    found = table(out / "group" / "metrics" / "target-group_subgroups.tsv")
    sites = found[found["column"] == "site"]
    assert set(sites["level"]) == {"north", "south"}
    assert (sites["n"] == N // 2).all()


def test_thirds_of_age_are_scored_by_themselves(out):
    found = table(out / "group" / "metrics" / "target-group_subgroups.tsv")
    thirds = found[(found["column"] == "age") & (found["model"] == "dummy") & (found["metric"] == "accuracy")]
    assert len(thirds) == 3
    assert thirds["n"].sum() == N - 1


def test_networks_are_compared_with_their_baselines_on_the_same_folds(out):
    found = table(out / "group" / "metrics" / "target-group_comparisons.tsv")
    pairs = set(zip(found["model"], found["other"], strict=True))
    assert ("connectivity_mlp", "connectivity_linear") in pairs
    assert ("connectivity_linear", "confounds_only") in pairs
    known = found[found["p_value"].notna()]  # of two folds that differ by the same there is none
    assert (known["p_holm"] >= known["p_value"]).all()
    assert (found["dof"] == found["n_folds"] - 1).all()


@pytest.mark.parametrize(("target", "levels"), TARGETS.items())
def test_predictions_come_with_a_set_or_an_interval_and_its_coverage(out, target, levels):
    said = table(out / "group" / "metrics" / f"target-{target}_calibration.tsv")
    shown = table(out / "group" / "predictions" / f"target-{target}_model-connectivity_linear_predictions.tsv")
    coverage = said.set_index(["model", "metric"])["value"]["connectivity_linear", "coverage"]
    if levels:
        holds = [str(t) in str(s).split("|") for t, s in zip(shown["y_true"], shown["y_set"], strict=True)]
    else:
        holds = shown["y_true"].between(shown["y_low"], shown["y_high"])
    assert np.mean(holds) == pytest.approx(coverage)


@pytest.mark.parametrize("harmonizer", ["combat", "residualise"])
def test_site_as_target_of_a_harmonised_run_is_refused_before_anything_runs(bids, out, tmp_path, harmonizer, capsys):
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("work", "group"))
    assert run(bids, tmp_path / "out", "group", "--target", "site", "--harmonizers", harmonizer) == 64
    said = capsys.readouterr().err
    assert f"the target 'site' is the column of sites whose differences the harmonizer {harmonizer} removes" in said
    assert "--harmonizers none" in said
    assert not (tmp_path / "out" / "group").exists()


def test_participant_without_a_target_is_listed_for_it(out):
    excluded = table(out / "group" / "excluded.tsv")
    assert excluded.values.tolist() == [["sub-04", "age", "'age' is n/a"]]


def test_choices_say_what_was_chosen_and_why(out):
    choices = json.loads((out / "group" / "choices.json").read_text())
    assert [t["name"] for t in choices["targets"]] == list(TARGETS)
    assert {t["why"] for t in choices["targets"]} == {"named by the user"}
    assert choices["targets"][0]["positive"] == "mdd"
    assert choices["covariates"] == ["sex"]
    assert any("both sides of the splits" in note for note in choices["notes"])


def test_histories_have_a_row_an_epoch_and_split(out):
    history = table(out / "group" / "histories" / "target-group_model-connectivity_mlp_history.tsv")
    assert len(history) == 4
    assert set(history["epoch"]) == {0, 1}


@pytest.mark.parametrize("target", TARGETS)
def test_networks_and_baselines_are_explained_by_edges_and_regions(out, target):
    folder = out / "group" / "explanations"
    for model, methods in (("linear", ["integratedgradients"]), ("mlp", ["integratedgradients", "occlusion"])):
        for method in methods:
            stem = f"target-{target}_model-connectivity_{model}_feature-connectivity_desc-{method}"
            assert len(table(folder / f"{stem}_edges.tsv")) == N_REGIONS * (N_REGIONS - 1) // 2
            assert set(table(folder / f"{stem}_regions.tsv")["region"]) == {f"region{r}" for r in range(N_REGIONS)}


def test_planted_edge_is_found(out):
    metrics = table(out / "group" / "metrics" / "target-group_metrics.tsv").set_index(["model", "metric"])
    assert metrics.loc[("connectivity_linear", "auc"), "value"] > 0.8
    stem = "target-group_model-connectivity_linear_feature-connectivity_desc-integratedgradients_edges.tsv"
    first = table(out / "group" / "explanations" / stem).iloc[0]
    assert (first["region_a"], first["region_b"]) == ("region0", "region1")


@pytest.mark.parametrize("target", TARGETS)
def test_bundles_were_trained_on_everybody_and_know_what_they_reach(out, target):
    folder = out / "group" / "bundles" / f"target-{target}_model-connectivity_mlp"
    said = json.loads((folder / "configs" / "metadata.json").read_text())["bids_dl"]
    assert said["n_participants"] == (15 if target == "age" else N)
    assert said["scores"]
    assert load(folder).levels == TARGETS[target]


def test_report_is_written(out):
    html = (out / "group.html").read_text()
    assert all(target in html for target in TARGETS)
    assert json.loads((out / "group" / "failed.json").read_text()) == {"failed": [], "reasons": {}}


def test_second_run_trains_nothing_and_writes_the_same_bytes(out, bids, config_file):
    before = tables(out)
    fits = {p: p.stat().st_mtime_ns for p in (out / "work" / "fits").rglob("predictions.npz")}
    assert run(bids, out, "group", "--config-file", config_file) == 0
    assert tables(out) == before
    assert {p: p.stat().st_mtime_ns for p in fits} == fits


def test_same_run_elsewhere_writes_the_same_bytes(out, bids, config_file, tmp_path):
    small = ["--target", "group", "--models", "mlp"]
    for folder in ("one", "two"):
        assert run(bids, tmp_path / folder, "participant") == 0
        assert run(bids, tmp_path / folder, "group", "--config-file", config_file, *small) == 0
    assert tables(tmp_path / "one") == tables(tmp_path / "two")


def test_other_configuration_is_refused_with_the_key_that_differs(out, bids, config_file, capsys):
    before = tables(out)
    assert run(bids, out, "group", "--config-file", config_file, "--random-seed", 1) == 73
    assert "another configuration (different: random_seed)" in capsys.readouterr().err
    assert tables(out) == before


def test_unknown_target_is_refused_with_the_nearest(out, bids, tmp_path, capsys):
    assert run(bids, tmp_path, "group", "--derivatives", f"done={out}", "--target", "grop") == 65
    assert "no column 'grop'; did you mean 'group'" in capsys.readouterr().err


def test_dry_run_says_what_was_chosen_and_writes_no_result(out, bids, tmp_path, capsys):
    assert run(bids, tmp_path, "group", "--derivatives", f"done={out}", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "target: group (hc, mdd): no target was named" in said
    assert "16 participants, 0 left out" in said
    assert not (tmp_path / "group").exists()


def test_left_out_sites_are_tested_by_the_others(out, bids, tmp_path):
    text = CONFIG.replace("n_folds = 2", 'kind = "leave-site-out"').replace('["group", "age", "subtype"]', '["group"]')
    (tmp_path / "sites.toml").write_text(text)
    given = ["--derivatives", f"done={out}", "--models", "linear", "--config-file", tmp_path / "sites.toml"]
    assert run(bids, tmp_path / "out", "group", *given) == 0
    splits = table(tmp_path / "out" / "group" / "splits" / "target-group_splits.tsv")
    assert splits.columns.tolist() == ["participant_id", "site-north", "site-south"]
    assert (splits["site-north"][:8] == "test").all()
    assert not (splits["site-north"][8:] == "test").any()


BUNDLES = [f"target-{target}_model-connectivity_{model}" for target in TARGETS for model in ("linear", "mlp")]


@pytest.fixture(scope="module")
def applied(out, bids, tmp_path_factory):
    """All bundles on another dataset, in which one participant is an old one under a new name."""
    root = tmp_path_factory.mktemp("new")
    new = write_dataset(root / "bids", seed=1, name="other people")
    series = "func/{0}_task-rest_atlas-six_timeseries.tsv"
    (new / IDS[2] / series.format(IDS[2])).write_bytes((bids / IDS[5] / series.format(IDS[5])).read_bytes())
    code = run(new, root / "out", "participant", "--bundle", *(out / "group" / "bundles" / b for b in BUNDLES))
    return code, root / "out"


def test_start_from_a_bundle_that_has_seen_these_participants_is_refused(out, bids, tmp_path, capsys):
    given = out / "group" / "bundles" / "target-group_model-connectivity_mlp"
    (tmp_path / "tune.toml").write_text(
        f'[training]\nstart_from = "{given}"\n[models]\nnames = ["mlp"]\n[models.mlp]\nhidden = [4]\n'
    )
    assert run(bids, tmp_path / "out", "participant") == 0
    assert run(bids, tmp_path / "out", "group", "--config-file", tmp_path / "tune.toml") == 65
    assert f"was trained on {N} of these participants" in capsys.readouterr().err


def test_start_from_a_bundle_of_another_model_is_refused(out, bids, tmp_path, capsys):
    given = out / "group" / "bundles" / "target-group_model-connectivity_mlp"
    (tmp_path / "tune.toml").write_text(f'[training]\nstart_from = "{given}"\n[models]\nnames = ["linear"]\n')
    assert run(bids, tmp_path / "out", "participant") == 0
    assert run(bids, tmp_path / "out", "group", "--config-file", tmp_path / "tune.toml") == 64
    assert "holds a mlp, and this run trains none" in capsys.readouterr().err
    linear = str(given).replace("_mlp", "_linear")
    (tmp_path / "tune.toml").write_text(f'[training]\nstart_from = "{linear}"\n[models]\nnames = ["linear"]\n')
    assert run(bids, tmp_path / "out", "group", "--config-file", tmp_path / "tune.toml") == 64
    assert "connectivity_linear was not trained epoch by epoch" in capsys.readouterr().err


TUNE = """
[targets]
names = ["group"]
covariates = ["sex"]
[models]
names = ["mlp"]
[models.mlp]
hidden = [4]
[splits]
n_folds = 2
[training]
n_epochs = 2
n_members = 1
start_from = "{0}"
frozen = ["first"]
[metrics]
n_bootstraps = 20
n_permutations = 20
n_retrained = -1
[explainers]
names = ["integrated_gradients"]
"""


def tune(bids, folder, start):
    folder.mkdir(exist_ok=True)
    (folder / "tune.toml").write_text(TUNE.format(start))
    assert run(bids, folder / "out", "participant") == 0
    return run(bids, folder / "out", "group", "--config-file", folder / "tune.toml", "--overwrite"), folder / "out"


def test_a_model_that_started_from_a_bundle_knows_whom_that_had_seen_and_follows_it(out, bids, tmp_path):
    start = shutil.copytree(out / "group" / "bundles" / "target-group_model-connectivity_mlp", tmp_path / "start")
    code, tuned = tune(write_dataset(tmp_path / "other", seed=5, name="other"), tmp_path / "tune", start)
    assert code == 0
    made = tuned / "group" / "bundles" / "target-group_model-connectivity_mlp"
    before, after = (set(bundles.about(one)["participants"]) for one in (start, made))
    assert before < after
    linear = bundles.about(tuned / "group" / "bundles" / "target-group_model-connectivity_linear")
    assert not before & set(linear["participants"])
    methods = (tuned / "logs" / "CITATION.md").read_text()
    assert (
        "Networks of the same kind began with the weights of the model 'start', trained on other participants; of these, first stayed"
        in methods
    )
    weights = load_file(made / "models" / "model.safetensors")["first.weight"]
    changed = bundles.load(start)
    changed.module.first.weight.data += 1
    said = bundles.about(start)
    bundles.save(changed, start, said)
    assert tune(tmp_path / "other", tmp_path / "tune", start)[0] == 0
    torch.testing.assert_close(load_file(made / "models" / "model.safetensors")["first.weight"], weights + 1)


def test_a_pretrained_bundle_knows_participants_without_a_target_and_a_linear_one_does_not(tmp_path):
    data = write_dataset(tmp_path / "bids", name="few labels")
    people = table(data / "participants.tsv")
    people.loc[people["participant_id"] == IDS[4], "group"] = None
    people.to_csv(data / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    text = TUNE.replace('start_from = "{0}"\nfrozen = ["first"]', 'pretrain = "masked"')
    (tmp_path / "masked.toml").write_text(text)
    assert run(data, tmp_path / "out", "participant") == 0
    assert run(data, tmp_path / "out", "group", "--config-file", tmp_path / "masked.toml") == 0
    folder, unlabelled = tmp_path / "out" / "group" / "bundles", bundles.identity("few labels", IDS[4])
    mlp, linear = (bundles.about(folder / f"target-group_model-connectivity_{m}") for m in ("mlp", "linear"))
    assert unlabelled in mlp["participants"]
    assert unlabelled not in linear["participants"]
    assert mlp["n_participants"] == linear["n_participants"] == N - 1
    assert "first learned to reconstruct hidden values" in (tmp_path / "out" / "logs" / "CITATION.md").read_text()


def test_weights_of_the_same_scans_or_of_other_regions_are_refused(out, bids, tmp_path):
    start = out / "group" / "bundles" / "target-group_model-connectivity_mlp"
    other = write_dataset(tmp_path / "same", name="the same under another name")
    code, tuned = tune(other, tmp_path / "seen", start)
    reasons = json.loads((tuned / "group" / "failed.json").read_text())["reasons"]
    assert code == 1
    assert any(
        "was trained on scans of participants that are tested in repeat-1_fold-1" in why for why in reasons.values()
    )
    other = write_dataset(tmp_path / "regions", seed=5, name="other")
    for path in other.rglob("*_timeseries.tsv"):
        path.write_text(path.read_text().replace("region0", "region9"))
    code, tuned = tune(other, tmp_path / "unlike", start)
    reasons = json.loads((tuned / "group" / "failed.json").read_text())["reasons"]
    assert code == 1
    assert any(
        "was trained on other regions or columns than connectivity has (region0, " in why for why in reasons.values()
    )


def test_scan_under_two_names_is_listed(bids, tmp_path):
    folder = shutil.copytree(bids, tmp_path / "bids")
    name = "{0}/func/{0}_task-rest_atlas-six_timeseries.tsv"
    shutil.copy(folder / name.format("sub-03"), folder / name.format("sub-05"))
    (tmp_path / "small.toml").write_text(HARMONIZED.replace('names = ["combat"]', ""))
    assert run(folder, tmp_path / "out", "participant") == 0
    assert run(folder, tmp_path / "out", "group", "--config-file", tmp_path / "small.toml") == 0
    found = table(tmp_path / "out" / "group" / "duplicates.tsv")
    assert found.values.tolist() == [["sub-05", "sub-03", "connectivity"]]
    assert "The same scan under two names" in (tmp_path / "out" / "group.html").read_text()


DESCRIBED = """
[targets]
names = ["group"]
[features]
names = ["timeseries", "dynamic_connectivity"]
[features.dynamic_connectivity]
window = 10
step = 3
[models]
names = ["dynamic_states", "rnn_ica", "bilstm"]
[models.dynamic_states]
n_states = 2
[models.rnn_ica]
n_sources = 3
n_pretraining = 10
hidden = 4
[fusions]
names = ["postfusion"]
[explainers]
names = ["occlusion"]
[splits]
n_folds = 2
[training]
n_epochs = 2
n_members = 2
[metrics]
n_bootstraps = 20
n_permutations = 20
n_retrained = -1
"""


@pytest.fixture(scope="module")
def described(bids, tmp_path_factory):
    """Both levels, with a model that has states and one that has sources."""
    folder = tmp_path_factory.mktemp("described")
    (folder / "config.toml").write_text(DESCRIBED)
    for level in ("participant", "group"):
        assert run(bids, folder / "out", level, "--config-file", folder / "config.toml") == 0
    return folder / "out"


def test_states_are_described_by_level_and_shown(described):
    stem = described / "group" / "descriptions" / "target-group_model-dynamic_connectivity_dynamic_states"
    states = table(stem.with_name(f"{stem.name}_states.tsv"))
    occupied = states[states["measure"] == "occupancy"]
    assert set(zip(occupied["level"], occupied["n"], strict=True)) == {("hc", N // 2), ("mdd", N // 2)}
    shares = occupied.groupby("level", sort=False)["mean"]
    assert list(shares.groups) == ["hc", "mdd"]
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-5)
    centroids = table(stem.with_name(f"{stem.name}_centroids.tsv")).set_index(["region_a", "region_b"])
    assert np.ptp(centroids.loc[("region0", "region1")]) > 0.5  # the planted edge sets the states apart
    tested = table(stem.with_name(f"{stem.name}_differences.tsv"))
    assert set(tested["measure"]) == {"occupancy", "dwell"}
    assert (tested.loc[tested["measure"] == "occupancy", "n"] == N).all()
    visited = (
        table(stem.with_name(f"{stem.name}_participants.tsv")).query("measure == 'dwell'").groupby("state")["value"]
    )
    assert list(tested.loc[tested["measure"] == "dwell", "n"]) == list(visited.count())
    page = (described / "group.html").read_text()
    assert "part of the variance" in page
    assert "dynamic_connectivity_dynamic_states: occupancy" in page
    assert "<h3>States</h3>" in page


def test_everybody_gets_courses_and_maps_of_their_own_by_a_model_that_had_not_seen_them(described):
    splits = table(described / "group" / "splits" / "target-group_splits.tsv").set_index("participant_id")
    for participant_id in IDS:
        stem = described / participant_id / "func" / f"{participant_id}_task-rest_atlas-six_desc-GroupTimeseriesRnnIca"
        assert table(stem.with_name(f"{stem.name}_mixing.tsv")).shape == (N_VOLUMES, 3)
        assert table(stem.with_name(f"{stem.name}_components.tsv")).shape == (3, N_REGIONS)
        said = json.loads(stem.with_name(f"{stem.name}_mixing.json").read_text())
        assert splits.loc[participant_id, said["Split"]] == "test"


def test_nobody_is_listed_twice_where_all_scans_differ(out):
    assert table(out / "group" / "duplicates.tsv").empty
    assert "The same scan under two names" not in (out / "group.html").read_text()


HARMONIZED = """
[targets]
names = ["group"]
[harmonizers]
names = ["combat"]
[harmonizers.combat]
protect = ["age"]
[models]
names = ["linear"]
[explainers]
names = ["integrated_gradients"]
[splits]
n_folds = 3
[metrics]
n_bootstraps = 20
n_permutations = 20
n_retrained = -1
"""


@pytest.fixture(scope="module")
def harmonized(bids, tmp_path_factory):
    """One target, with the sites brought together."""
    folder = tmp_path_factory.mktemp("harmonized")
    (folder / "combat.toml").write_text(HARMONIZED)
    assert run(bids, folder / "out", "participant") == 0
    assert run(bids, folder / "out", "group", "--config-file", folder / "combat.toml") == 0
    return folder / "out"


def test_harmonisation_says_what_it_did_to_site_and_target(harmonized):
    found = table(harmonized / "group" / "metrics" / "target-group_harmonization.tsv")
    assert found[["feature", "predicted", "metric"]].values.tolist() == [
        ["connectivity", "site", "balanced_accuracy"], ["connectivity", "target", "balanced_accuracy"],
    ]  # fmt: skip
    assert found["n"].tolist() == [N, N]
    page = (harmonized / "group.html").read_text()
    assert "Before and after harmonisation" in page
    assert (
        "removed from the features by the harmonizer &#39;combat&#39; (Johnson et al., 2007; Fortin et al., 2018)"
        in page
    )


def test_what_a_harmonizer_leaves_as_it_is_is_said_before_anything_runs(harmonized, bids, tmp_path, capsys):
    (tmp_path / "both.toml").write_text("[normalization]\nremove_confounds = true")
    given = ["-d", f"done={harmonized}", "--features", "connectivity", "timeseries", "--models", "mean_mlp", "--dry-run",
             "--config-file", tmp_path / "both.toml", "--target", "group"]  # fmt: skip
    assert run(bids, tmp_path / "out", "group", *given, "--harmonizers", "combat") == 0
    said = capsys.readouterr().out
    assert (
        "timeseries is not harmonised (combat) nor freed of confounds: only features without a time axis are." in said
    )
    (tmp_path / "both.toml").write_text("")
    assert run(bids, tmp_path / "out", "group", *given) == 0
    assert "not harmonised" not in capsys.readouterr().out


def test_harmonised_bundle_takes_participants_of_a_new_site_as_they_are(harmonized, tmp_path):
    other = write_dataset(tmp_path / "other", seed=5, name="other")
    people = pd.read_csv(other / "participants.tsv", sep="\t").assign(site="west", age=30)
    people.to_csv(other / "participants.tsv", sep="\t", index=False)
    given = harmonized / "group" / "bundles" / "target-group_model-connectivity_linear"
    assert run(other, tmp_path / "out", "participant", "--bundle", given) == 0
    learned = load(given).normalization["connectivity"].harmonization
    assert learned.known.tolist() == [True, True]
    said = table(tmp_path / "out" / "phenotype" / "target-group_model-connectivity_linear.tsv")
    assert said["y_score"].between(0, 1).all()
    assert len(said) == N


def judging(harmonized, config, other):
    """Ask for models of the harmonised run's features that are judged on another dataset too."""
    return ["-d", f"done={harmonized}", "--config-file", config, "--test-dataset", other]


REFUSING = HARMONIZED.replace("[harmonizers.combat]", "[harmonizers.combat]\nunseen = 'refuse'")


def test_sites_without_training_participants_are_refused_by_name_and_the_rest_goes_on(harmonized, tmp_path, capsys):
    """Somebody whose site is his alone is never trained on when tested; nor is anybody of the other dataset's sites."""
    bids, other = write_dataset(tmp_path / "bids"), write_dataset(tmp_path / "other", seed=5, name="other")
    for folder, sites in ((bids, {0: "islet", 1: "n/a"}), (other, {2: "south", 3: "north", 4: "south", 5: "north"})):
        people = pd.read_csv(folder / "participants.tsv", sep="\t")
        people["site"] = [sites.get(k, "west" if folder == other else people["site"][k]) for k in range(N)]
        people.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    assert run(other, tmp_path / "done", "participant") == 0
    (tmp_path / "refusing.toml").write_text(REFUSING.replace("n_folds = 3", "n_folds = 2"))
    given = judging(harmonized, tmp_path / "refusing.toml", tmp_path / "done")
    out = tmp_path / "out"
    assert run(bids, out, "group", *given) == 0
    said = capsys.readouterr().err
    assert "12 participants are not predicted: site 'west' has no training participants" in said
    assert "choose 'pooled' or 'adapt' to predict them" in said
    excluded = table(out / "group" / "excluded.tsv").set_index("participant_id")["reason"]
    assert excluded["sub-01"] == "site 'islet' has no training participants, and harmonizers.combat.unseen is 'refuse'"
    assert excluded["sub-02"] == "no site is known, and harmonizers.combat.unseen is 'refuse'"
    for model in ("dummy", "connectivity_linear"):
        name = out / "group" / "predictions" / f"target-group_model-{model}_predictions.tsv"
        assert set(IDS) - set(table(name)["participant_id"]) == {"sub-01", "sub-02"}
        tested = table(name.with_name(name.name.replace("predictions.tsv", "test.tsv")))
        assert tested["participant_id"].tolist() == ["sub-03", "sub-04", "sub-05", "sub-06"]
    assert len(table(out / "group" / "test_excluded.tsv")) == 12
    assert "site &#39;west&#39; has no training participants" in (out / "group.html").read_text()


def test_test_dataset_of_refused_sites_alone_leaves_cross_validation_and_the_reasons(harmonized, bids, tmp_path):
    other = write_dataset(tmp_path / "other", seed=5, name="other")
    people = pd.read_csv(other / "participants.tsv", sep="\t").assign(site="west")
    people.to_csv(other / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    assert run(other, tmp_path / "done", "participant") == 0
    (tmp_path / "refusing.toml").write_text(REFUSING)
    given = judging(harmonized, tmp_path / "refusing.toml", tmp_path / "done")
    out = tmp_path / "out"
    assert run(bids, out, "group", *given) == 0
    assert len(table(out / "group" / "test_excluded.tsv")) == N
    assert len(table(out / "group" / "metrics" / "target-group_metrics.tsv"))
    assert not (out / "group" / "metrics" / "target-group_test.tsv").exists()
    assert "No model was judged on &#39;other&#39;." in (out / "group.html").read_text()


def test_sites_of_a_test_dataset_are_adapted_to_or_left_as_they_are_and_the_log_says_which(
    harmonized, bids, tmp_path, capsys
):
    other = write_dataset(tmp_path / "other", seed=5, name="other")
    people = pd.read_csv(other / "participants.tsv", sep="\t").assign(site="west")
    people.to_csv(other / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    assert run(other, tmp_path / "done", "participant") == 0
    scores = {}
    for unseen, said in (
        ("pooled", "their values stay as they are"),
        ("adapt", "learned from their own features, unlabelled"),
    ):
        (tmp_path / "asked.toml").write_text(REFUSING.replace("refuse", unseen))
        given = judging(harmonized, tmp_path / "asked.toml", tmp_path / "done")
        out = tmp_path / unseen
        capsys.readouterr()
        assert run(bids, out, "group", *given) == 0
        assert "16 participants are of sites that were not trained on ('west'): " in (log := capsys.readouterr().err)
        assert said in log
        assert said in (out / "group.html").read_text()
        scores[unseen] = table(out / "group" / "predictions" / "target-group_model-connectivity_linear_test.tsv")[
            "y_score"
        ]
    assert not np.allclose(scores["pooled"], scores["adapt"], atol=1e-3)


def test_leaving_sites_out_and_refusing_them_is_refused_before_anything_runs(harmonized, bids, tmp_path, capsys):
    (tmp_path / "refusing.toml").write_text(REFUSING.replace("n_folds = 3", 'kind = "leave-site-out"'))
    given = ["-d", f"done={harmonized}", "--config-file", tmp_path / "refusing.toml"]
    assert run(bids, tmp_path / "out", "group", *given) == 64
    assert "harmonizers.combat.unseen is 'refuse', and no test participant has a site" in capsys.readouterr().err


def test_harmonizer_without_a_column_of_sites_is_refused(bids, tmp_path):
    folder = shutil.copytree(bids, tmp_path / "bids")
    people = pd.read_csv(folder / "participants.tsv", sep="\t").drop(columns="site")
    people.to_csv(folder / "participants.tsv", sep="\t", index=False)
    (tmp_path / "combat.toml").write_text(HARMONIZED)
    assert run(folder, tmp_path / "out", "participant") == 0
    assert run(folder, tmp_path / "out", "group", "--config-file", tmp_path / "combat.toml") == 65


JUDGED = HARMONIZED.replace('names = ["combat"]', "").replace('["group"]', '["group", "age"]\ncovariates = ["sex"]')


@pytest.fixture(scope="module")
def judged(bids, out, tmp_path_factory):
    """Linear models judged on other people, one of whom has a scan of the training dataset; also without them."""
    root = tmp_path_factory.mktemp("judged")
    other = write_dataset(root / "bids", seed=7, name="other")
    series = "func/{0}_task-rest_atlas-six_timeseries.tsv"
    (other / IDS[2] / series.format(IDS[2])).write_bytes((bids / IDS[5] / series.format(IDS[5])).read_bytes())
    people = pd.read_csv(other / "participants.tsv", sep="\t").assign(site="west")
    people.loc[0, "group"] = "mania"
    people.to_csv(other / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    (root / "judged.toml").write_text(JUDGED)
    given = ["--derivatives", f"done={out}", "--config-file", root / "judged.toml"]
    assert run(other, root / "other", "participant") == 0
    assert run(bids, root / "out", "group", *given, "--test-dataset", root / "other") == 0
    assert run(bids, root / "alone", "group", *given) == 0
    return root / "out", root / "alone", given


def test_models_of_one_dataset_find_the_planted_effect_in_another(judged):
    found = table(judged[0] / "group" / "metrics" / "target-group_test.tsv").set_index(["model", "metric"])
    linear, dummy = (found.loc[(model, "auc")] for model in ("connectivity_linear", "dummy"))
    assert linear["value"] > 0.8
    assert linear["ci_low"] <= linear["value"] <= linear["ci_high"]
    assert linear["p_value"] < 0.1
    assert dummy["value"] == 0.5
    assert ("confounds_only", "auc") in found.index


def test_models_are_compared_on_the_other_dataset_too(judged):
    path = judged[0] / "group" / "metrics" / "target-group_testcomparisons.tsv"
    found = table(path)
    assert found[["model", "other", "metric", "n"]].values.tolist() == [
        ["connectivity_linear", "confounds_only", "auc", N - 2]
    ]
    scores = table(path.with_name("target-group_test.tsv")).set_index(["model", "metric"])["value"]
    assert found["difference"][0] == pytest.approx(
        scores["connectivity_linear", "auc"] - scores["confounds_only", "auc"], abs=1e-4
    )
    assert found["p_holm"].between(found["p_value"], 1).all()
    page = (judged[0] / "group.html").read_text()
    assert "both are scored on the same draws of these participants" in page


def test_calibration_and_subgroups_are_told_of_the_other_dataset_too(judged):
    folder = judged[0] / "group" / "metrics"
    sure = table(folder / "target-group_testcalibration.tsv").set_index(["model", "metric"])
    assert (sure["n"] == N - 2).all()
    assert sure.loc[("connectivity_linear", "coverage"), "promised"] == 0.9
    levels = table(folder / "target-group_testsubgroups.tsv")
    sexes = levels[
        (levels["column"] == "sex") & (levels["metric"] == "auc") & (levels["model"] == "connectivity_linear")
    ]
    assert sexes["n"].sum() == N - 2
    page = (judged[0] / "group.html").read_text()
    assert "as learned from the training dataset" in page
    assert "in its subgroups" in page


def test_participants_of_both_datasets_are_left_out_and_listed(judged):
    excluded = table(judged[0] / "group" / "test_excluded.tsv")
    assert sorted(excluded[["participant_id", "reason"]].itertuples(index=False, name=None)) == [
        ("sub-01", "'group' is none of the classes trained on: mania"),
        ("sub-03", "has the same scan as sub-06 of the training dataset"),
        ("sub-04", "'age' is n/a"),
    ]
    told = {}
    for target in ("group", "age"):
        said = table(judged[0] / "group" / "predictions" / f"target-{target}_model-connectivity_linear_test.tsv")
        told[target] = set(IDS) - set(said["participant_id"])
    assert told == {"group": {"sub-01", "sub-03"}, "age": {"sub-03", "sub-04"}}


def test_a_test_dataset_changes_nothing_that_is_learned_or_cross_validated(judged):
    with_test, alone = (tables(folder) for folder in judged[:2])
    assert {k: v for k, v in with_test.items() if "test" not in k} == alone
    bundles = [
        {p.relative_to(out): p.read_bytes() for p in sorted((out / "group" / "bundles").rglob("*.safetensors"))}
        for out in judged[:2]
    ]
    assert bundles[0] == bundles[1] != {}


def test_predictions_on_another_dataset_are_those_of_the_bundle(judged, tmp_path):
    name = "target-age_model-connectivity_linear"
    said = table(judged[0] / "group" / "predictions" / f"{name}_test.tsv").set_index("participant_id")
    other = judged[0].parent / "bids"
    assert run(other, tmp_path, "participant", "--bundle", judged[0] / "group" / "bundles" / name) == 0
    bundled = table(tmp_path / "phenotype" / f"{name}.tsv").set_index("participant_id")
    np.testing.assert_allclose(said["y_score"], bundled.loc[said.index, "y_score"], rtol=1e-5)


def test_report_and_methods_tell_of_the_other_dataset(judged):
    page = (judged[0] / "group.html").read_text()
    assert "On another dataset" in page
    assert "has the same scan as sub-06" in page
    assert "judged once on the dataset &#39;other&#39;" in page or "judged once on the dataset 'other'" in page
    assert "On another dataset" not in (judged[1] / "group.html").read_text()


def test_the_training_dataset_as_test_dataset_is_refused(judged, bids, out, tmp_path, capsys):
    assert run(bids, tmp_path / "out", "group", *judged[2], "--test-dataset", out) == 18
    assert "everybody in it takes part in the training dataset 'small'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda p: p.rename(columns={"group": "diagnosis"}), 65, "has no column 'group'; rename the column"),
        (lambda p: p.assign(group="mdd"), 65, "its column 'group' has nobody of class 'hc'"),
        (lambda p: p.drop(columns="sex"), 65, "has no 'sex', which the models are trained with"),
        (lambda p: p.assign(age="old"), 65, "its column 'age' has 0 participants with a number"),
    ],
)
def test_test_dataset_whose_table_does_not_fit_is_refused_in_a_sentence(
    judged, bids, tmp_path, capsys, change, code, said
):
    other = shutil.copytree(judged[0].parent / "other", tmp_path / "other", ignore=shutil.ignore_patterns("work"))
    people = pd.read_csv(judged[0].parent / "bids" / "participants.tsv", sep="\t", dtype=str)
    change(people).to_csv(other / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    assert run(bids, tmp_path / "out", "group", *judged[2], "--test-dataset", other) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "group").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("region0", "other0"), "region 'other0' stands where the others have 'region0'"),
        (lambda text: text.replace("\tregion5", ""), "5×5 values where the others have 6×6"),
    ],
)
def test_other_regions_in_the_test_dataset_are_refused_once(judged, bids, tmp_path, capsys, change, said):
    other = write_dataset(tmp_path / "bids", seed=8, name="other regions")
    for path in other.rglob("*_timeseries.tsv"):
        lines = path.read_text().splitlines()
        n = len(change(lines[0]).split("\t"))
        path.write_text("\n".join([change(lines[0]), *("\t".join(line.split("\t")[:n]) for line in lines[1:])]) + "\n")
    assert run(other, tmp_path / "other", "participant") == 0
    capsys.readouterr()
    assert run(bids, tmp_path / "out", "group", *judged[2], "--test-dataset", tmp_path / "other") == 65
    assert said in capsys.readouterr().err


def test_test_dataset_without_the_participant_level_is_refused(judged, bids, tmp_path, capsys):
    assert run(bids, tmp_path / "out", "group", *judged[2], "--test-dataset", bids) == 66
    assert "is no output of the participant level" in capsys.readouterr().err


def test_learning_curve_trains_on_parts_and_ends_with_the_scores_of_everybody(bids, out, tmp_path, monkeypatch):
    monkeypatch.setattr(group, "FEWEST_IN_PART", 3)
    text = JUDGED.replace("n_folds = 3", "n_folds = 4").replace('["group", "age"]', '["group"]')
    (tmp_path / "curve.toml").write_text(text.replace("[metrics]", "[metrics]\nlearning_curve = [0.1, 0.8, 0.6]"))
    given = ["--derivatives", f"done={out}", "--config-file", tmp_path / "curve.toml"]
    assert run(bids, tmp_path / "out", "group", *given) == 0
    folder = tmp_path / "out" / "group" / "metrics"
    found, whole = table(folder / "target-group_learningcurve.tsv"), table(folder / "target-group_metrics.tsv")
    assert set(found["model"]) == {"confounds_only", "connectivity_linear"}
    mine = found[(found["model"] == "connectivity_linear") & (found["metric"] == "auc")]
    measured = mine[mine["kind"] == "measured"]
    assert measured["n_train"].tolist() == [7, 9, 12]
    assert (
        measured["value"].iloc[-1] == whole.set_index(["model", "metric"]).loc[("connectivity_linear", "auc"), "value"]
    )
    assert "What more participants would bring" in (tmp_path / "out" / "group.html").read_text()


SYNTHETIC = """
[targets]
names = ["group"]
[models]
names = ["mlp", "kernel"]
[splits]
n_folds = 2
[training]
n_epochs = 2
n_members = 1
synthetic = "vae"
n_synthetic = 2.0
[metrics]
n_bootstraps = 20
n_permutations = 20
n_retrained = -1
[explainers]
names = ["integrated_gradients"]
"""


def with_synthetic(bids, out, folder, text):
    """Run the group level alone, on features that are there."""
    (folder / "synthetic.toml").write_text(text)
    return run(
        bids, folder / "out", "group", "--derivatives", f"done={out}", "--config-file", folder / "synthetic.toml"
    )


def test_synthetic_participants_are_compared_with_real_ones_and_the_report_says_so(bids, out, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis, "N_STEPS", 5)
    monkeypatch.setattr(resemblance, "FEWEST", 2)
    monkeypatch.setattr(resemblance, "N_FOLDS", 2)
    assert with_synthetic(bids, out, tmp_path, SYNTHETIC) == 0
    found = table(tmp_path / "out" / "group" / "metrics" / "target-group_synthetic.tsv")
    assert set(found["rows"]) == {"synthetic", "train"}
    assert found["split"].nunique() == 2
    drawn, real = (found[(found["level"] == "all") & (found["rows"] == r)] for r in ("synthetic", "train"))
    assert (drawn["n"].to_numpy() == 2 * real["n"].to_numpy()).all()
    assert json.loads((tmp_path / "out/group/metrics/target-group_synthetic.json").read_text()).keys() >= set(found)
    page = (tmp_path / "out" / "group.html").read_text()
    assert "Synthetic participants</h3>" in page
    assert "join the training rows of connectivity_mlp; connectivity_kernel, baselines are trained without" in page
    assert "Kingma" in (tmp_path / "out" / "logs" / "CITATION.bib").read_text()
    before = tables(tmp_path / "out")
    assert with_synthetic(bids, out, tmp_path, SYNTHETIC) == 0
    assert tables(tmp_path / "out") == before


def test_synthetic_participants_that_no_model_takes_are_refused(bids, out, tmp_path, capsys):
    assert with_synthetic(bids, out, tmp_path, SYNTHETIC.replace('["mlp", "kernel"]', '["kernel"]')) == 64
    assert "no model of this run" in capsys.readouterr().err


def test_parts_that_leave_too_few_of_a_class_are_not_trained_on():
    config = settings(metrics={"learning_curve": [0.5, 0.125, 0.25]})
    values = np.repeat([0.0, 1.0], [30, 50])
    split = Split(np.arange(10, 60), np.arange(60, 70), np.arange(70, 80), "one")
    target = Target("y", values, ("a", "b"))
    chosen = group.Choices(((target, ""),), (), (), {"y": [split]}, {}, "", "", ())
    assert group.parts_of(config, chosen, target) == [0.25, 0.5]


@pytest.mark.parametrize("parts", [[0.5, 1.0], [0.0], [0.5, 0.5]])
def test_parts_that_are_no_parts_are_refused(parts):
    with pytest.raises(UsageError, match="list parts of the training participants between 0 and 1, each once"):
        settings(metrics={"learning_curve": parts})


@pytest.mark.parametrize("bundle", BUNDLES)
def test_bundle_predicts_new_participants_and_names_the_one_it_knows(applied, bundle):
    code, folder = applied
    assert code == 0
    predictions = table(folder / "phenotype" / f"{bundle}.tsv").set_index("participant_id")
    assert sorted(predictions.index) == IDS
    assert "sub-03 was among the participants this bundle was trained on" in predictions.loc["sub-03", "excluded"]
    others = predictions.drop("sub-03")
    assert predictions.loc["sub-03", ["y_score", "prediction"]].isna().all()
    assert others["excluded"].isna().all()
    assert others["y_score"].notna().all()


def test_bundle_finds_the_planted_effect_in_new_participants(applied):
    predictions = table(applied[1] / "phenotype" / "target-group_model-connectivity_linear.tsv").set_index(
        "participant_id"
    )
    right = [predictions.loc[i, "prediction"] == ["hc", "mdd"][n % 2] for n, i in enumerate(IDS) if i != "sub-03"]
    assert np.mean(right) > 0.8


def test_each_prediction_is_explained_beside_the_features(applied):
    maps = list((applied[1] / "sub-01" / "func").glob("*desc-Target*Integratedgradients*relmat.tsv"))
    assert len(maps) == len(BUNDLES)
    matrix = table(maps[0]).select_dtypes("number").to_numpy()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert not list((applied[1] / "sub-03" / "func").glob("*desc-Target*"))


def test_bundle_refuses_everybody_it_was_trained_on(out, bids, tmp_path):
    bundle = "target-age_model-connectivity_mlp"
    run(bids, tmp_path, "participant", "--bundle", out / "group" / "bundles" / bundle)
    predictions = table(tmp_path / "phenotype" / f"{bundle}.tsv").set_index("participant_id")
    refused = predictions["excluded"].str.contains("was among the participants", na=False)
    assert refused[refused].index.tolist() == [i for i in IDS if i != "sub-04"]
    assert np.isfinite(predictions.loc["sub-04", "y_score"])


def plan(**columns):
    """A plan of three participants with connectomes."""
    variant = cohorts.Variant("connectivity", "connectivity", {}, {"sub-01": ("x",)}, kind="edge")
    return cohorts.Plan(("sub-01", "sub-02", "sub-03"), (variant,), columns)


def settings(**more):
    return configuration.from_mapping({"bids_dir": "a", "output_dir": "b", "analysis_level": "group", **more})


def test_each_model_is_put_on_the_features_it_suits():
    models = group.choose_models(settings(), plan(), has_confounds=True)
    assert {m.id: m.role for m in models} == {
        "dummy": "baseline", "confounds_only": "baseline", "connectivity_linear": "baseline", "connectivity_mlp": "network",
    }  # fmt: skip
    assert "confounds_only" not in {m.id for m in group.choose_models(settings(), plan(), has_confounds=False)}


def test_model_that_suits_no_feature_is_refused():
    with pytest.raises(
        UsageError, match=r"'cnn3d' suits none of the features \(connectivity\); it takes volumes \(t1w, "
    ):
        group.choose_models(settings(models={"names": ["cnn3d"]}), plan(), has_confounds=True)


@pytest.mark.parametrize("stat", ["logcorrelation", "covariance"])
def test_connectome_that_is_no_correlation_does_not_suit_the_tangent_space(stat):
    """It was taken for one: logarithms have edges between -1 and 1 too."""
    variants = [
        cohorts.Variant(name, "connectivity", {"stat": kind}, {"sub-01": ("x",)}, kind="edge")
        for name, kind in (("one", "pearsoncorrelation"), ("other", stat))
    ]
    wanted = settings(models={"names": ["tangent_linear"]})
    models = group.choose_models(wanted, replace(plan(), variants=tuple(variants)), has_confounds=False)
    assert [m.id for m in models] == ["dummy", "one_linear", "other_linear", "one_tangent_linear"]
    with pytest.raises(UsageError, match=r"suits none .*, but no covariance or logcorrelation"):
        group.choose_models(wanted, replace(plan(), variants=tuple(variants[1:])), has_confounds=False)


def test_fusion_of_one_feature_is_refused():
    with pytest.raises(UsageError, match="a fusion needs networks on at least two features; there is connectivity"):
        group.choose_models(settings(fusions={"names": ["postfusion"]}), plan(), has_confounds=True)


def test_a_model_that_solves_is_no_member_of_a_fusion():
    both = replace(plan(), variants=(plan().variants[0], replace(plan().variants[0], name="series", kind="sequence")))
    chosen = settings(models={"names": ["kernel", "mlp", "mean_mlp"]})
    fused = [m.members for m in group.choose_models(chosen, both, has_confounds=True) if m.role == "fusion"]
    assert fused == [("connectivity_mlp", "series_mean_mlp")]
    several = settings(models={"names": ["mlp", "gcn", "mean_mlp"]})
    fused = next(m for m in group.choose_models(several, both, has_confounds=True) if m.role == "fusion")
    assert (fused.inputs, fused.parts[:2]) == (
        ("connectivity", "series"),
        (("connectivity", "mlp"), ("connectivity", "gcn")),
    )
    alone = settings(models={"names": ["kernel", "mean_mlp"]})
    assert not [m for m in group.choose_models(alone, both, has_confounds=True) if m.role == "fusion"]
    asked = settings(models={"names": ["kernel", "mean_mlp"]}, fusions={"names": ["postfusion"]})
    with pytest.raises(UsageError, match=r"there is series \(kernel cannot be fused: no training row is new to them\)"):
        group.choose_models(asked, both, has_confounds=True)


def test_participant_without_a_family_is_tied_to_nobody():
    assert group._cells(plan(family=["a", np.nan, "a"]), "family") == ("a", "alone-sub-02", "a")


def test_leaving_sites_out_without_a_column_of_sites_is_refused():
    with pytest.raises(DataError, match="leave-site-out needs a column of sites; participants.tsv has age"):
        group._column(plan(age=["1", "2", "3"]), "", quality.SITE_COLUMNS, needed="leave-site-out")


def test_an_edited_phenotype_table_or_its_levels_begin_anew(tmp_path):
    """The cohort reads the table itself; its name alone would call stale fits up to date."""
    table = tmp_path / "answers.tsv"
    table.write_text("participant_id\tscore\nsub-01\t3\n")
    made = replace(plan(), variants=(), tables={"phenotype": str(table)})
    first = group._digest(made)
    assert group._digest(made) == first
    table.with_suffix(".json").write_text("{}")
    second = group._digest(made)
    table.write_text("participant_id\tscore\nsub-01\t-17\n")
    assert len({first, second, group._digest(made)}) == 3


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["site-a.1", "site-a-1"], "'site-a-1' cannot be told from 'site-a.1' by letters and digits"),
        (["one", "final"], "'final' cannot be told from this program's own 'final'"),
    ],
)
def test_splits_that_would_share_their_steps_and_files_are_refused(names, said):
    with pytest.raises(DataError, match=f"of the splits, {said}"):
        group._refuse_alike("splits", names, ("final", "test"))
    group._refuse_alike("splits", ["site-a.1", "site-a.2"], ("final", "test"))


def test_a_run_that_is_killed_while_it_lays_out_begins_anew(tmp_path):
    def killed():
        folder.mkdir()
        raise KeyboardInterrupt

    folder = tmp_path / "cohort"
    with pytest.raises(KeyboardInterrupt):
        group._renew(folder, "a", killed)
    group._renew(folder, "a", folder.mkdir)
    assert (folder / "fresh").is_file()


@pytest.mark.parametrize(("n", "n_tasks"), [(33, 2), (8000, 250), (40_001, 249)])
def test_tasks_that_fill_the_cohort_take_everybody_once_and_stay_few(tmp_path, n, n_tasks):
    given = [task.arguments for task in group._fills("fill", "f", tmp_path, n, "")]
    rows = [row for one in given for row in range(one["start"], min(one["stop"], n))]
    assert rows == list(range(n))
    assert len(given) == n_tasks
