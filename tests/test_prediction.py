import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bids_dl import bundle, derivatives, prediction, training
from bids_dl import config as configuration
from bids_dl.errors import InvalidDatasetError
from bids_dl.explainers.occlusion import region_members
from bids_dl.fusions.postfusion import fuse
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

LABELS = ("A", "B", "C", "D")
N = 24
SPLIT = Split(np.arange(0, 18), np.arange(18, 24), np.arange(0), "final")
ENTITIES = {"atlas": "four", "stat": "pearsoncorrelation", "task": "rest", "datatype": "func", "suffix": "relmat"}
DESCRIBED = {"feature": "connectivity", "entities": ENTITIES, "labels": list(LABELS), "file_shape": [4, 4], "shape": [6],
             "dims": ["edge"], "directed": False}  # fmt: skip


def trained(levels=("hc", "mdd"), *, confounds=False, ranks=(), model="linear"):
    generator = np.random.default_rng(0)
    named = levels or ranks
    y = generator.permutation(np.arange(N) % len(named)) if named else generator.normal(50, 10, N)
    edges = generator.normal(size=(N, 6)).astype(np.float32)
    known = np.column_stack([generator.normal(40, 10, N), generator.integers(0, 2, N)]).astype(np.float32)
    features = {
        "connectivity": Block(edges, ("edge",), LABELS),
        "confounds": Block(known, ("column",), ("age", "sex=M")),
    }
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    cohort = Cohort(people, features, Target("target", y.astype(float), levels, ranks))
    definition = training.define(model, [(6,)], cohort.target.n_outputs, {})
    settings = Settings(remove_confounds=confounds, device="cpu")
    return training.train(definition, cohort, SPLIT, ["connectivity"], settings), cohort


def save(folder, levels=("hc", "mdd"), *, confounds=False, columns=("age", "sex=M"), ranks=(), model="linear"):
    fitted, cohort = trained(levels, confounds=confounds, ranks=ranks, model=model)
    about = {"features": {"connectivity": DESCRIBED}, "uses_confounds": confounds, "confounds": list(columns),
             "participants": bundle.trained_on(cohort, range(N), ["connectivity"], "old dataset")}  # fmt: skip
    return bundle.save(fitted, folder / "model", about), fitted, cohort


def matrix(edges):
    values = np.zeros((4, 4))
    values[np.triu_indices(4, 1)] = edges
    return values + values.T


@pytest.fixture
def new(tmp_path):
    """A participant of another dataset: writes a connectome, returns configuration and record."""

    def write(
        edges, *, name="new dataset", atlas="four", labels=LABELS, people="participant_id\tage\tsex\nsub-01\t30\tM\n"
    ):
        bids, out = tmp_path / "bids", tmp_path / "out"
        (out / "sub-01" / "func").mkdir(parents=True, exist_ok=True)
        bids.mkdir(exist_ok=True)
        if name:
            (bids / "dataset_description.json").write_text(json.dumps({"Name": name, "BIDSVersion": "1.10.0"}))
        (bids / "participants.tsv").write_text(people)
        record = {"participant_id": "sub-01", "features": [], "problems": []}
        if edges is not None:
            path = f"sub-01/func/sub-01_task-faces_atlas-{atlas}_stat-pearsoncorrelation_relmat.tsv"
            pd.DataFrame(matrix(edges), columns=labels).to_csv(out / path, sep="\t", index=False)
            record["features"].append({"feature": "connectivity", "path": path, "mean_fd": 0.1})
        given = {"bids_dir": str(bids), "output_dir": str(out), "analysis_level": "participant"}
        return configuration.from_mapping(given), record

    return write


EDGES = np.array([0.5, -0.2, 0.1, 1.0, -0.7, 0.3])


def predict(folder, config, record, participant_id="sub-01"):
    return prediction.predict_participant(folder, config, participant_id, record)


def test_new_participant_is_predicted_from_another_task_with_the_same_atlas(tmp_path, new):
    folder, fitted, cohort = save(tmp_path)
    row = predict(folder, *new(EDGES))["row"]
    one = Cohort(cohort.participants[:1], {"connectivity": Block(EDGES[None], ("edge",))}, cohort.target)
    expected = training.predict(fitted, one, np.array([0]))[0]
    assert row["y_score"] == pytest.approx(expected[1], abs=1e-5)
    assert row["prediction"] == ["hc", "mdd"][int(expected[1] > 0.5)]
    assert row["excluded"] is None


def test_three_classes_have_a_score_each_and_a_quantity_its_unit(tmp_path, new):
    three = predict(save(tmp_path / "three", ("x", "y", "z"))[0], *new(EDGES))["row"]
    assert sum(three[f"score_{level}"] for level in "xyz") == pytest.approx(1)
    assert three["prediction"] == max("xyz", key=lambda level: three[f"score_{level}"])
    quantity = predict(save(tmp_path / "age", ())[0], *new(EDGES))["row"]
    assert quantity["prediction"] == quantity["y_score"]
    assert 0 < quantity["y_score"] < 100


def test_sets_and_intervals_are_those_of_the_models_calibration(tmp_path, new):
    folder, fitted, cohort = save(tmp_path / "two")
    config, record = new(EDGES)
    wide = replace(config, metrics=replace(config.metrics, coverage=0.95))
    one = Cohort(cohort.participants[:1], {"connectivity": Block(EDGES[None], ("edge",))}, cohort.target)
    scores = training.predict(fitted, one, np.array([0]))[0]
    for given in (config, wide):
        reach = fitted.calibration.reach(given.metrics.coverage)
        wanted = "|".join(v for v, p in zip(("hc", "mdd"), scores, strict=True) if 1 - p <= reach) or "none"
        assert predict(folder, given, record)["row"]["y_set"] == wanted
    folder, fitted, _ = save(tmp_path / "age", ())
    row = predict(folder, config, record)["row"]
    assert row["y_high"] - row["y_score"] == pytest.approx(fitted.calibration.reach(0.9))
    assert row["y_score"] - row["y_low"] == pytest.approx(fitted.calibration.reach(0.9))
    sure = replace(config, metrics=replace(config.metrics, coverage=0.999))
    assert predict(folder, sure, record)["row"]["y_low"] is None
    assert {"y_low", "y_high"} <= set(predict(folder, *new(EDGES, atlas="other"))["row"])


def test_ordered_level_is_named_with_its_place_among_all(tmp_path, new):
    folder, fitted, cohort = save(tmp_path, (), ranks=("none", "mild", "severe"))
    row = predict(folder, *new(EDGES))["row"]
    one = Cohort(cohort.participants[:1], {"connectivity": Block(EDGES[None], ("edge",))}, cohort.target)
    place = training.predict(fitted, one, np.array([0]))[0, 0]
    assert row["y_score"] == pytest.approx(place, abs=1e-5)
    assert row["prediction"] == ("none", "mild", "severe")[int(np.clip(round(place), 0, 2))]
    assert row["levels"] == "none < mild < severe"


def test_attribution_of_the_prediction_is_written_as_a_matrix(tmp_path, new):
    config, record = new(EDGES)
    (written,) = predict(save(tmp_path)[0], config, record)["attributions"]
    values = pd.read_csv(config.out / written, sep="\t").to_numpy(float)
    np.testing.assert_allclose(values, values.T)
    assert (np.diag(values) == 0).all()
    assert values.any()


def test_trees_are_explained_by_occlusion(tmp_path, new):
    """No gradient passes them: the whole participant was lost."""
    found = predict(save(tmp_path, model="boosting")[0], *new(EDGES))
    assert found["row"]["excluded"] is None
    assert [path.rpartition("desc-")[2] for path in found["attributions"]] == ["ModelOcclusion_relmat.tsv"]


def two_volumes(folder):
    """A bundle that fuses two volumes on one grid, and a configuration and a record of somebody who has both."""
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(N) % 2).astype(float)
    affine = np.diag([40.0, 40, 40, 1])
    names = {"t1w": "T1w", "grey_matter": "probseg"}
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    features = {
        name: Block(generator.normal(size=(N, 4, 4, 4)).astype(np.float32), ("x", "y", "z"), affine=affine) for name in names
    }  # fmt: skip
    cohort, settings = Cohort(people, features, Target("target", y, ("hc", "mdd"))), Settings(device="cpu")
    definition = training.define("linear", [(4, 4, 4)], 1, {})
    fitted = fuse(
        [training.train(definition, cohort, SPLIT, [name], settings) for name in names], cohort, SPLIT, settings
    )
    shared = {
        "labels": [],
        "file_shape": [4, 4, 4],
        "shape": [4, 4, 4],
        "dims": ["x", "y", "z"],
        "affine": affine.tolist(),
    }
    entities = {"space": "MNI", "res": "40", "datatype": "anat"}
    record = {"participant_id": "sub-01", "features": [], "problems": []}
    for name, suffix in names.items():
        path = f"sub-01/anat/sub-01_space-MNI_res-40_{suffix}.nii.gz"
        derivatives.write_image(folder / "out" / path, generator.normal(size=(4, 4, 4)), affine)
        record["features"].append({"feature": name, "path": path})
    about = {"features": {name: {"feature": name, "entities": {**entities, "suffix": suffix}, **shared} for name, suffix in names.items()},
             "uses_confounds": False, "confounds": [], "participants": []}  # fmt: skip
    (folder / "bids").mkdir()
    (folder / "bids" / "dataset_description.json").write_text(json.dumps({"Name": "new", "BIDSVersion": "1.10.0"}))
    (folder / "bids" / "participants.tsv").write_text("participant_id\nsub-01\n")
    given = {"bids_dir": str(folder / "bids"), "output_dir": str(folder / "out"), "analysis_level": "participant"}
    return bundle.save(fitted, folder / "model", about), configuration.from_mapping(given), record


def test_each_of_several_features_has_a_map_of_its_own(tmp_path):
    """Two volumes in one space had one name: the second lay where the first was said to be."""
    written = predict(*two_volumes(tmp_path))["attributions"]
    assert [path.rpartition("desc-")[2].split("_")[0] for path in written] == [
        "ModelT1wIntegratedgradients",
        "ModelGreyMatterIntegratedgradients",
    ]
    assert all((tmp_path / "out" / path).is_file() for path in written)


def test_attention_of_one_participant_is_a_course_in_seconds(tmp_path):
    generator = np.random.default_rng(0)
    block = Block(generator.normal(size=(N, 9, 4)).astype(np.float32), ("time", "roi"), LABELS)
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    cohort = Cohort(people, {"timeseries": block}, Target("target", np.arange(N) % 2.0, ("hc", "mdd")))
    definition = training.define("attention_rnn", [(9, 4)], 1, {})
    settings = Settings(n_epochs=1, n_members=2, device="cpu")
    fitted = training.train(definition, cohort, SPLIT, ["timeseries"], settings)
    entities = {"task": "rest", "atlas": "four", "datatype": "func", "suffix": "timeseries"}
    described = {"feature": "timeseries", "entities": entities, "labels": list(LABELS), "file_shape": [0, 4], "shape": [9, 4],
                 "dims": ["time", "roi"]}  # fmt: skip
    about = {"features": {"timeseries": described}, "uses_confounds": False, "confounds": [], "participants": []}
    folder = bundle.save(fitted, tmp_path / "model", about)
    path = "sub-01/func/sub-01_task-rest_atlas-four_timeseries.tsv"
    derivatives.write_matrix(tmp_path / "out" / path, generator.normal(size=(12, 4)), LABELS)
    derivatives.write_json(
        derivatives.sidecar_path(tmp_path / "out" / path), {"RepetitionTime": 2.0, "CensoredVolumes": [3]}
    )
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text(json.dumps({"Name": "new", "BIDSVersion": "1.10.0"}))
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\nsub-01\n")
    given = {"bids_dir": str(tmp_path / "bids"), "output_dir": str(tmp_path / "out"), "analysis_level": "participant",
             "explainers": {"names": ["attention"]}}  # fmt: skip
    record = {"participant_id": "sub-01", "features": [{"feature": "timeseries", "path": path}], "problems": []}
    (written,) = predict(folder, configuration.from_mapping(given), record)["attributions"]
    assert written == "sub-01/func/sub-01_task-rest_atlas-four_desc-ModelAttention_attention.tsv"
    table = pd.read_csv(tmp_path / "out" / written, sep="\t")
    assert table["onset"].tolist() == [0, 2, 4, 8, 10, 12, 14, 16, 18, 20, 22, 24]
    assert table["share"].sum() == pytest.approx(1, abs=1e-5)
    assert "Part of the network's attention" in (tmp_path / "out" / written).with_suffix(".json").read_text()


def test_directed_connectome_stays_one(tmp_path, new):
    """Occluded as an undirected one, its edges were those of other regions."""
    described = {**DESCRIBED, "directed": True, "shape": [12]}
    fitted, _ = trained()
    one = prediction._block_of_one(fitted, described, "connectivity", *new(EDGES)[:1], "sub-01", new(EDGES)[1])
    assert next(iter(region_members(one, "aal"))).tolist() == [0, 1, 2, 3, 6, 9]


def test_participant_it_was_trained_on_is_refused_by_name(tmp_path, new):
    folder, _, _ = save(tmp_path)
    row = predict(folder, *new(EDGES, name="old dataset"))["row"]
    assert (
        "sub-01 was among the participants this bundle was trained on (the dataset of both is called 'old"
        in row["excluded"]
    )
    assert row["y_score"] is None


def test_participant_it_was_trained_on_is_refused_under_another_name(tmp_path, new):
    folder, _, cohort = save(tmp_path)
    row = predict(folder, *new(cohort.features["connectivity"].values[7]))["row"]
    assert "was among the participants this bundle was trained on (the features are the same)" in row["excluded"]


@pytest.mark.parametrize("given", [{"edges": None}, {"edges": EDGES, "atlas": "other"}])
def test_participant_without_the_feature_is_listed(tmp_path, new, given):
    row = predict(save(tmp_path, ("x", "y", "z"))[0], *new(**given))["row"]
    assert "sub-01 has none of the features that the bundle takes (connectivity)" in row["excluded"]
    assert {"score_x", "score_y", "score_z"} <= set(row)


def test_participant_with_other_regions_is_listed(tmp_path, new):
    row = predict(save(tmp_path)[0], *new(EDGES, labels=("A", "X", "C", "D")))["row"]
    assert "region 'X' stands where the others have 'B'" in row["excluded"]


def test_removed_confounds_are_read_from_participants_tsv(tmp_path, new):
    folder, fitted, cohort = save(tmp_path, confounds=True)
    row = predict(folder, *new(EDGES))["row"]
    features = {"connectivity": Block(EDGES[None], ("edge",)), "confounds": Block(np.array([[30.0, 1.0]]), ("column",))}
    expected = training.predict(fitted, Cohort(cohort.participants[:1], features, cohort.target), np.array([0]))[0, 1]
    assert row["y_score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("people", ["participant_id\tsex\nsub-01\tM\n", "participant_id\tage\tsex\nsub-01\tn/a\tM\n"])
def test_confound_that_is_missing_is_named(tmp_path, new, people):
    folder, _, _ = save(tmp_path, confounds=True)
    row = predict(folder, *new(EDGES, people=people))["row"]
    assert row["excluded"] == "sub-01 has no 'age' in participants.tsv, which this bundle needs."


def test_confound_that_is_no_number_is_named(tmp_path, new):
    folder, _, _ = save(tmp_path, confounds=True)
    row = predict(folder, *new(EDGES, people="participant_id\tage\tsex\nsub-01\t89+\tM\n"))["row"]
    assert row["excluded"] == "sub-01 has '89+' as 'age' in participants.tsv, and this bundle needs a number."


def test_level_of_a_confound_that_nobody_trained_on_had_is_named(tmp_path, new):
    """It would count as the level that has no column of its own."""
    fitted = trained(confounds=True)[0]
    about = {"features": {"connectivity": DESCRIBED}, "uses_confounds": True, "confounds": ["age", "sex=M"], "participants": [],
             "confound_levels": {"sex": ["F", "M"]}}  # fmt: skip
    folder = bundle.save(fitted, tmp_path / "model", about)
    row = predict(folder, *new(EDGES, people="participant_id\tage\tsex\nsub-01\t30\tmale\n"))["row"]
    assert row["excluded"] == "sub-01 has 'male' as 'sex' in participants.tsv, and this bundle knows F, M."


def note(config, record, edges, *, session="", task="faces", run=""):
    path = f"sub-01/func/sub-01{session}_task-{task}{run}_atlas-four_stat-pearsoncorrelation_relmat.tsv"
    pd.DataFrame(matrix(edges), columns=LABELS).to_csv(config.out / path, sep="\t", index=False)
    record["features"].append({"feature": "connectivity", "path": path, "mean_fd": 0.1})


def test_runs_of_the_first_session_are_averaged_as_at_the_group_level(tmp_path, new):
    folder, _, _ = save(tmp_path)
    config, record = new(None)
    for k, (session, run) in enumerate((("_ses-2", ""), ("_ses-1", "_run-1"), ("_ses-1", "_run-2"))):
        note(config, record, EDGES + k, session=session, run=run)
    first = predict(folder, config, record)["row"]["y_score"]
    assert first == pytest.approx(predict(folder, *new(EDGES + 1.5))["row"]["y_score"], abs=1e-5)


def test_the_task_that_was_trained_on_goes_before_others_and_several_others_are_refused(tmp_path, new):
    folder, _, _ = save(tmp_path)
    alone = predict(folder, *new(EDGES))["row"]["y_score"]
    config, record = new(EDGES + 1)
    note(config, record, EDGES - 1, task="nback")
    excluded = predict(folder, config, record)["row"]["excluded"]
    assert "sub-01 has the feature 'connectivity' more than once (task-faces; task-nback)" in excluded
    assert "trained on task-rest; choose by --task-id" in excluded
    note(config, record, EDGES, task="rest")
    assert predict(folder, config, record)["row"]["y_score"] == pytest.approx(alone, abs=1e-5)


def test_features_made_by_other_options_are_refused(tmp_path, new):
    fitted, _ = trained()
    wanted = {"names": ["connectivity"], "timeseries": {"atlas": "/elsewhere/four.nii.gz", "confounds": "none"}}
    about = {"features": {"connectivity": DESCRIBED}, "uses_confounds": False, "confounds": [], "participants": [],
             "feature_options": wanted}  # fmt: skip
    folder = bundle.save(fitted, tmp_path / "model", about)
    config, record = new(EDGES)
    excluded = predict(folder, config, record)["row"]["excluded"]
    assert "sub-01: features.timeseries.confounds is 'simple', not 'none' as in the training of this bundle" in excluded
    alike = replace(config, features=replace(config.features, options={"timeseries": {"confounds": "none"}}))
    assert predict(folder, alike, record)["row"]["excluded"] is None


def test_motion_is_taken_from_the_scans_where_the_table_has_none(tmp_path, new):
    folder, _, _ = save(tmp_path, confounds=True, columns=("age", "mean_fd"))
    assert predict(folder, *new(EDGES))["row"]["excluded"] is None


def test_invalid_dataset_stops_the_run(tmp_path, new):
    with pytest.raises(InvalidDatasetError, match=r"has no dataset_description\.json"):
        predict(save(tmp_path)[0], *new(EDGES, name=""))
