"""Levels with an order, end to end: found where they are planted, not found where they are shuffled, named everywhere."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from bids_dl import bundle, cli

LEVELS = ("none", "mild", "moderate", "severe")
IDS = [f"sub-{n:02d}" for n in range(1, 29)]
CONFIG = """
[targets]
names = ["severity"]
covariates = ["sex"]
kinds = {severity = "ordinal"}
[models]
names = ["linear", "mlp"]
[models.mlp]
hidden = [4]
[splits]
n_folds = 3
[training]
n_epochs = 3
n_members = 1
[metrics]
n_bootstraps = 20
n_permutations = 99
n_retrained = 2
"""


def write_dataset(folder):
    """The higher the severity, the more two of five regions go together; one participant has none."""
    generator = np.random.default_rng(0)
    rows = []
    for number, participant_id in enumerate(IDS):
        severity = number % 4
        series = generator.normal(size=(60, 5))
        series[:, 1] += 0.6 * severity * series[:, 0]
        path = folder / participant_id / "func" / f"{participant_id}_task-rest_atlas-five_timeseries.tsv"
        path.parent.mkdir(parents=True)
        labels = [f"region{r}" for r in range(5)]
        pd.DataFrame(series, columns=labels).to_csv(path, sep="\t", index=False, float_format="%.5f")
        rows.append((participant_id, LEVELS[severity] if number else "n/a", "FM"[generator.integers(2)]))
    table = pd.DataFrame(rows, columns=["participant_id", "severity", "sex"])
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    described = {
        "Name": "ordered",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "test"}],
    }
    (folder / "dataset_description.json").write_text(json.dumps(described))
    (folder / "participants.json").write_text(json.dumps({"severity": {"Levels": dict.fromkeys(LEVELS, "a level")}}))
    return folder


def run(bids, out, level, *more):
    return cli.main([str(bids), str(out), level, "--nprocs", "1", "--skip-bids-validation", *map(str, more)])


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Dataset, output of both levels, and the configuration file."""
    folder = tmp_path_factory.mktemp("ordinal")
    (folder / "config.toml").write_text(CONFIG)
    bids = write_dataset(folder / "bids")
    assert run(bids, folder / "out", "participant") == 0
    assert run(bids, folder / "out", "group", "--config-file", folder / "config.toml") == 0
    return bids, folder / "out", folder / "config.toml"


def features_of(out, folder):
    """Copy what the participant level wrote."""
    return shutil.copytree(out, folder / "out", ignore=shutil.ignore_patterns("work", "group", "bids_dl_group.toml"))


def scores(out):
    found = table(out / "group" / "metrics" / "target-severity_metrics.tsv")
    return found[found["model"] == "connectivity_linear"].set_index("metric")


def test_planted_order_is_found(made):
    found = scores(made[1])
    assert list(found.index) == ["rho", "weighted_kappa", "mae", "accuracy"]
    assert found["value"]["rho"] > 0.8
    assert found["value"]["weighted_kappa"] > 0.6
    assert found["p_value"]["rho"] == pytest.approx(0.01)
    assert set(found["n"]) == {27}


def test_shuffled_order_is_at_chance(made, tmp_path):
    bids, out, config = made
    path = tmp_path / "shuffled.toml"
    path.write_text(config.read_text().replace('["linear", "mlp"]', '["linear"]') + "shuffle_labels = true\n")
    out = features_of(out, tmp_path)
    assert run(bids, out, "group", "--config-file", path) == 0
    found = scores(out)
    assert abs(found["value"]["rho"]) < 0.4
    assert abs(found["value"]["weighted_kappa"]) < 0.4
    assert found["p_value"]["rho"] > 0.05


def test_predictions_name_levels_and_the_sets_cover_what_is_written(made):
    shown = table(made[1] / "group" / "predictions" / "target-severity_model-connectivity_linear_predictions.tsv")
    said = table(made[1] / "group" / "metrics" / "target-severity_calibration.tsv")
    said = said.set_index(["model", "metric"])["value"]["connectivity_linear"]
    places = np.clip(np.floor(shown["y_score"] + 0.5), 0, 3).astype(int)
    assert shown["y_pred"].tolist() == [LEVELS[k] for k in places]
    assert set(shown["y_true"]) == set(LEVELS)
    sets = [str(s).split("|") if isinstance(s, str) else [] for s in shown["y_set"]]
    assert np.mean([t in s for t, s in zip(shown["y_true"], sets, strict=True)]) == pytest.approx(said["coverage"])
    assert np.mean([len(s) for s in sets]) == pytest.approx(said["size"], abs=1e-4)


def test_models_are_compared_by_their_order(made):
    found = table(made[1] / "group" / "metrics" / "target-severity_comparisons.tsv")
    assert set(found["metric"]) == {"rho"}


def test_page_tells_the_levels_in_their_order_and_how_they_were_taken_for_another(made):
    page = (made[1] / "group.html").read_text(encoding="utf-8")
    assert "Regression on the ordered levels of 27 participants: levels from low to high: none 6, mild 7" in page
    assert "the part predicted at each level" in page
    assert "Spearman&#39;s rho" in page or "Spearman's rho" in page
    methods = (made[1] / "logs" / "CITATION.md").read_text(encoding="utf-8")
    assert "'severity' was predicted by regression on its ordered levels in 27 participants (6 none, 7 mild" in methods
    assert "scored by Spearman's rho, quadratic weighted kappa" in methods
    assert "consistent rank logits [@Cao2020]" in methods


def test_bundle_knows_the_levels(made):
    fitted = bundle.load(made[1] / "group" / "bundles" / "target-severity_model-connectivity_linear")
    assert fitted.ranks == LEVELS
    assert not fitted.levels


def test_networks_have_thresholds_and_are_explained(made):
    fitted = bundle.load(made[1] / "group" / "bundles" / "target-severity_model-connectivity_mlp")
    assert fitted.module.biases.shape == (1, 3)
    assert list((made[1] / "group" / "explanations").glob("target-severity_model-connectivity_mlp*"))


def test_words_without_a_listed_order_stop_the_run_before_anything_is_trained(made, tmp_path, capsys):
    bids = write_dataset(tmp_path / "bids")
    (bids / "participants.json").unlink()
    out = features_of(made[1], tmp_path)
    assert run(bids, out, "group", "--config-file", made[2]) == 65
    assert "list its Levels from low to high in participants.json" in capsys.readouterr().err
    assert not (out / "group").exists()


def test_bundle_names_the_level_of_new_participants(made, tmp_path):
    bids = write_dataset(tmp_path / "bids")
    described = json.loads((bids / "dataset_description.json").read_text())
    (bids / "dataset_description.json").write_text(json.dumps(described | {"Name": "other"}))
    for number, path in enumerate(sorted(bids.glob("sub-*/func/*.tsv"))):
        if number > 4:
            shutil.rmtree(path.parents[1])
            continue
        series = np.random.default_rng(number).normal(size=(60, 5))
        series[:, 1] += 0.6 * number * series[:, 0]
        pd.DataFrame(series, columns=[f"region{r}" for r in range(5)]).to_csv(path, sep="\t", index=False)
    folder = made[1] / "group" / "bundles" / "target-severity_model-connectivity_linear"
    assert run(bids, tmp_path / "out", "participant", "--bundle", folder, "--participant-label", "01", "05") == 0
    found = table(tmp_path / "out" / "phenotype" / f"{folder.name}.tsv").set_index("participant_id")
    assert found["excluded"].isna().all()
    assert found["y_score"]["sub-05"] > found["y_score"]["sub-01"] + 1
    assert found["prediction"].tolist() == [LEVELS[int(np.clip(np.floor(s + 0.5), 0, 3))] for s in found["y_score"]]
    assert set(found["levels"]) == {"none < mild < moderate < severe"}
