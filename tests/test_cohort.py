import itertools
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl import derivatives, normalization
from bids_dl.errors import DataError, NothingSelectedError
from bids_dl.records import Target

LABELS = ("A", "B", "C", "D")
ATLAS = "task-rest_atlas-four_stat-pearsoncorrelation"


class Folders:
    """A dataset with participants.tsv, and an output in which the participant level seems to have run."""

    def __init__(self, root):
        self.bids, self.out = root / "bids", root / "out"
        self.bids.mkdir()
        (self.bids / "dataset_description.json").write_text('{"Name": "small", "BIDSVersion": "1.10.0"}')
        self.rows, self.entries = {}, {}

    def person(self, participant_id, **cells):
        self.rows[participant_id] = cells
        (self.bids / participant_id).mkdir()
        self.entries.setdefault(participant_id, [])

    def matrix(self, participant_id, values, *, labels=LABELS, middle=ATLAS, session="", **noted):
        folder = self.out / participant_id / "func"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{participant_id}_{session}{middle}_relmat.tsv"
        pd.DataFrame(values, columns=labels).to_csv(path, sep="\t", index=False, na_rep="n/a")
        self.note(participant_id, {"feature": "connectivity", "path": str(path.relative_to(self.out)), **noted})

    def volume(self, participant_id, values, affine):
        folder = self.out / participant_id / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{participant_id}_space-MNI_T1w.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
        self.note(participant_id, {"feature": "t1w", "path": str(path.relative_to(self.out))})

    def note(self, participant_id, *entries, problems=()):
        self.entries.setdefault(participant_id, []).extend(entries)
        path = self.out / "logs" / "participants" / f"{participant_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "participant_id": participant_id,
            "features": self.entries[participant_id],
            "problems": list(problems),
        }
        path.write_text(json.dumps(record))

    def config(self, **more):
        table = pd.DataFrame([{"participant_id": i, **cells} for i, cells in self.rows.items()])
        table.to_csv(self.bids / "participants.tsv", sep="\t", index=False, na_rep="n/a")
        given = {"bids_dir": str(self.bids), "output_dir": str(self.out), "analysis_level": "group", **more}
        return configuration.from_mapping(given)


def matrix(seed):
    values = np.random.default_rng(seed).normal(size=(4, 4))
    values = values + values.T
    np.fill_diagonal(values, 0)
    return values


def upper(values):
    return np.array([values[i, j] for i in range(4) for j in range(i + 1, 4)])


@pytest.fixture
def folders(tmp_path):
    """Three participants with a connectome each."""
    made = Folders(tmp_path)
    for number, group in enumerate(["hc", "mdd", "hc"], 1):
        made.person(f"sub-0{number}", group=group, age=20 + number, site="north" if number < 3 else "south")
        made.matrix(f"sub-0{number}", matrix(number))
    return made


def built(config):
    """Plan, write, fill and load, as the group level does."""
    plan = cohorts.plan(config)
    folder = config.work / "cohort"
    cohorts.write(plan, folder)
    refused = cohorts.fill(str(folder), 0, len(plan.participant_ids))
    return plan, refused, cohorts.load(folder, Target("age", np.zeros(len(plan.participant_ids))), ["age", "site"])


def test_edges_stand_in_the_order_of_the_upper_triangle(folders):
    _, refused, cohort = built(folders.config())
    assert not refused
    np.testing.assert_allclose(cohort.features["connectivity"].values[1], upper(matrix(2)), rtol=1e-6)
    assert cohort.features["connectivity"].labels == LABELS
    first, second = cohorts.edge_index(4)
    assert list(zip(first, second, strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_directed_connectome_keeps_both_directions(folders):
    directed = np.arange(16.0).reshape(4, 4)
    for number in (1, 2, 3):
        folders.matrix(f"sub-0{number}", directed, middle="task-rest_atlas-four_stat-granger")
    _, _, cohort = built(folders.config())
    block = cohort.features["connectivity+granger"]
    assert block.values[0].tolist() == [v for i in range(4) for j in range(4) if i != j for v in [directed[i, j]]]
    assert block.entities["directed"] == "true"


def test_features_stay_on_disk(folders):
    _, _, cohort = built(folders.config())
    assert isinstance(cohort.features["connectivity"].values, np.memmap)


def test_runs_of_a_participant_are_averaged_and_missing_cells_filled_by_the_other_run(folders):
    other = matrix(10)
    other[0, 1] = other[1, 0] = np.nan
    folders.matrix("sub-01", other, middle=f"task-rest_run-2_{ATLAS.removeprefix('task-rest_')}")
    _, _, cohort = built(folders.config())
    expected = np.nanmean([upper(matrix(1)), upper(other)], axis=0)
    np.testing.assert_allclose(cohort.features["connectivity"].values[0], expected, rtol=1e-6)


def test_one_run_under_two_names_is_seen_beside_others_of_their_own(folders):
    large = {name: np.random.default_rng(seed).normal(size=(5, 5)) for seed, name in enumerate("abc")}
    names = tuple(map(str, range(5)))
    for person, one in (("sub-01", "a"), ("sub-02", "b"), ("sub-03", "a")):
        folders.matrix(person, large[one] + large[one].T, labels=names, middle="task-rest_run-1_atlas-five_stat-x")
        folders.matrix(person, large["c"] * int(person[-1]), labels=names, middle="task-rest_run-2_atlas-five_stat-x")
    config = folders.config()
    built(config)
    found = cohorts.duplicates(config.work / "cohort")
    assert [(one["participant_id"], one["same_as"]) for one in found] == [("sub-03", "sub-01")]


def test_first_session_speaks_for_a_participant(folders):
    folders.person("sub-04", group="mdd", age=30, site="south")
    folders.matrix("sub-04", matrix(40), session="ses-02_")
    folders.matrix("sub-04", matrix(41), session="ses-01_")
    _, _, cohort = built(folders.config())
    np.testing.assert_allclose(cohort.features["connectivity"].values[3], upper(matrix(41)), rtol=1e-6)
    asked = folders.config(select={"session_label": ["02"]})
    assert cohorts.plan(asked).participant_ids == ("sub-04",)


def test_participant_with_other_regions_is_named_and_the_others_stay(folders):
    folders.person("sub-04", group="mdd", age=30, site="south")
    folders.matrix("sub-04", matrix(4), labels=("A", "B", "X", "D"))
    folders.person("sub-05", group="mdd", age=31, site="south")
    folders.matrix("sub-05", matrix(5)[:3, :3], labels=("A", "B", "C"))
    _, refused, cohort = built(folders.config())
    reasons = {r["participant_id"]: r["reason"] for r in refused}
    assert "region 'X' stands where the others have 'C'" in reasons["sub-04"]
    assert "3×3 values where the others have 4×4" in reasons["sub-05"]
    known = np.isfinite(cohort.features["connectivity"].values).all(axis=1)
    assert known.tolist() == [True, True, True, False, False]


def test_shape_of_most_participants_counts_not_the_first_ones(folders):
    folders.person("sub-00", group="mdd", age=30, site="south")
    folders.matrix("sub-00", matrix(0)[:3, :3], labels=("A", "B", "C"))
    _, refused, cohort = built(folders.config())
    assert [r["participant_id"] for r in refused] == ["sub-00"]
    assert cohort.features["connectivity"].shape == (6,)


def test_grid_of_most_participants_counts_not_the_first_ones(folders):
    shifted = np.eye(4)
    shifted[0, 3] = 5
    for number in (1, 2, 3):
        folders.volume(f"sub-0{number}", np.full((2, 2, 2), number), shifted if number == 1 else np.eye(4))
    _, refused, cohort = built(folders.config(features={"names": ["t1w"]}))
    assert [r["participant_id"] for r in refused] == ["sub-01"]
    assert "another grid" in refused[0]["reason"]
    assert (cohort.features["t1w"].values[2] == 3).all()
    np.testing.assert_array_equal(cohort.features["t1w"].affine, np.eye(4))


NETWORKS = ("dmn", "salience", "visual")


def mapped(folders, participant_id, values, *, networks=NETWORKS, run="", of=("network_maps", ""), edge_mm=3.0):
    """Write a participant's maps of networks, (x, y, z, …, network), as the participant level does."""
    name = f"{participant_id}_{run}atlas-three_stat-dualregression{of[1]}_boldmap.nii.gz"
    path = folders.out / participant_id / "func" / name
    derivatives.write_image(path, values, np.diag([edge_mm] * 3 + [1]))
    derivatives.write_json(derivatives.sidecar_path(path), {"Networks": networks})
    entry = {"feature": of[0], "path": str(path.relative_to(folders.out)), "shape": list(values.shape)}
    folders.note(participant_id, entry)


def test_maps_of_networks_stand_before_space_and_runs_are_averaged(folders):
    one, two, three = np.random.default_rng(0).normal(size=(3, 4, 5, 6, 3))
    mapped(folders, "sub-01", one, run="run-1_")
    mapped(folders, "sub-01", two, run="run-2_")
    mapped(folders, "sub-02", three)
    plan, refused, cohort = built(folders.config(features={"names": ["network_maps"]}))
    assert [(v.name, v.kind) for v in plan.variants] == [("network_maps", "maps")]
    block = cohort.features["network_maps"]
    assert not refused
    assert (block.shape, block.dims, block.labels) == ((3, 4, 5, 6), cohorts.MAPS, NETWORKS)
    for network in range(3):
        np.testing.assert_allclose(block.values[0, network], (one + two)[..., network] / 2, atol=1e-6)
        np.testing.assert_allclose(block.values[1, network], three[..., network], atol=1e-6)
    np.testing.assert_array_equal(block.affine, np.diag([3, 3, 3, 1]))


@pytest.mark.parametrize(("networks", "said"), [
    (("dmn", "visual", "salience"), "region 'visual' stands where the others have 'salience'"),
    ((), "0 names where the others have 3"),
])  # fmt: skip
def test_maps_of_other_networks_are_refused_by_name(folders, networks, said):
    for number in (1, 2, 3):
        mapped(
            folders,
            f"sub-0{number}",
            np.full((2, 2, 2, 3), 1.0 * number),
            networks=networks if number == 2 else NETWORKS,
        )
    _, refused, _ = built(folders.config(features={"names": ["network_maps"]}))
    assert [r["participant_id"] for r in refused] == ["sub-02"]
    assert said in refused[0]["reason"]


MOVING = ("dynamic_network_maps", "_desc-slidingwindow")


def test_maps_of_windows_stand_before_networks_and_space_padded_to_the_longest_and_runs_end_to_end(folders):
    one, two, three = (np.random.default_rng(n).normal(size=(4, 5, 6, n, 3)) for n in (1, 3, 2))
    mapped(folders, "sub-01", one, run="run-1_", of=MOVING)
    mapped(folders, "sub-01", two, run="run-2_", of=MOVING)
    mapped(folders, "sub-02", three, of=MOVING)
    plan, refused, cohort = built(
        folders.config(features={"names": ["dynamic_network_maps"]}, models={"names": ["cnn_ica"]})
    )
    assert [(v.name, v.kind, v.n_steps) for v in plan.variants] == [("dynamic_network_maps", "moving_maps", 4)]
    block = cohort.features["dynamic_network_maps"]
    assert not refused
    assert (block.shape, block.dims, block.labels) == ((4, 3, 4, 5, 6), cohorts.MOVING, NETWORKS)
    assert block.is_sequence
    joined = np.concatenate([one, two], axis=3)
    for window, network in np.ndindex(4, 3):
        np.testing.assert_allclose(block.values[0, window, network], joined[..., window, network], atol=1e-6)
    np.testing.assert_allclose(block.values[1, :2], np.moveaxis(three, (3, 4), (0, 1)), atol=1e-6)
    assert np.isnan(block.values[1, 2:]).all()
    np.testing.assert_array_equal(block.affine, np.diag([3, 3, 3, 1]))
    found = normalization.fit(block.values, np.array([0, 1]), steps=True)
    both = np.concatenate([joined, three], axis=3)
    np.testing.assert_allclose(found.mean, np.moveaxis(both.mean(axis=3), -1, 0), atol=1e-5)
    normalised = found.apply(np.asarray(block.values))
    assert np.isnan(normalised[1, 2:]).all()
    np.testing.assert_allclose(np.nanstd(normalised.reshape(-1, 3, 120), axis=0), 1, atol=1e-4)


@pytest.mark.parametrize(("change", "said"), [
    ({"networks": NETWORKS[::-1]}, "region 'visual' stands where the others have 'dmn'"),
    ({"shape": (2, 2, 3, 4, 3)}, "2×2×3×4×3 values where the others have 2×2×2×4×3"),
    ({"edge_mm": 4.0}, "lies on another grid"),
])  # fmt: skip
def test_maps_of_windows_of_other_networks_or_places_are_refused_by_name(folders, change, said):
    for number in (1, 2, 3):
        own = change if number == 2 else {}
        values = np.full(own.get("shape", (2, 2, 2, 4, 3)), 1.0 * number)
        mapped(
            folders,
            f"sub-0{number}",
            values,
            networks=own.get("networks", NETWORKS),
            of=MOVING,
            edge_mm=own.get("edge_mm", 3.0),
        )
    config = folders.config(features={"names": ["dynamic_network_maps"]}, models={"names": ["cnn_ica"]})
    _, refused, _ = built(config)
    assert [r["participant_id"] for r in refused] == ["sub-02"]
    assert said in refused[0]["reason"]


def test_one_variant_has_the_features_name_and_siblings_differ_by_what_differs(folders):
    assert [v.name for v in cohorts.plan(folders.config()).variants] == ["connectivity"]
    folders.matrix("sub-01", matrix(9), middle="task-nback_atlas-four_stat-pearsoncorrelation")
    variants = cohorts.plan(folders.config()).variants
    assert [v.name for v in variants] == ["connectivity+nback", "connectivity+rest"]
    assert [len(v.files) for v in variants] == [1, 3]
    asked = cohorts.plan(folders.config(select={"task_id": ["rest"]})).variants
    assert [v.name for v in asked] == ["connectivity"]


def test_participant_without_a_row_is_listed(folders):
    config = folders.config()
    folders.matrix("sub-09", matrix(9))
    (folders.bids / "sub-09").mkdir()
    plan = cohorts.plan(config)
    assert plan.participant_ids == ("sub-01", "sub-02", "sub-03")
    assert [(e["participant_id"], e["reason"]) for e in plan.excluded] == [("sub-09", "no row in participants.tsv")]


def test_participant_that_was_not_extracted_is_listed(folders):
    folders.person("sub-04", group="hc", age=40, site="north")
    (excluded,) = cohorts.plan(folders.config()).excluded
    assert excluded["participant_id"] == "sub-04"
    assert "participant level has not been run" in excluded["reason"]


def test_who_has_no_site_is_listed_where_sites_are_left_out(folders):
    for k, (participant_id, cells) in enumerate(folders.rows.items()):
        cells["site"] = "n/a" if k == 1 else "ab"[k % 2]
        folders.matrix(participant_id, np.eye(4))
    plan = cohorts.plan(folders.config(splits={"kind": "leave-site-out"}))
    assert [(e["participant_id"], e["reason"]) for e in plan.excluded] == [
        ("sub-02", "no site, and whole sites are left out in turn")
    ]
    assert "sub-02" in cohorts.plan(folders.config()).participant_ids


def test_participant_whose_scans_all_failed_is_listed_with_the_reason(folders):
    folders.person("sub-04", group="hc", age=40, site="north")
    folders.note("sub-04", problems=[{"scan": "x", "feature": "t1w", "reason": "the file is truncated."}])
    plan = cohorts.plan(folders.config())
    assert "sub-04" not in plan.participant_ids
    assert plan.excluded[0]["reason"] == "the file is truncated."


def test_output_without_features_says_what_to_run(tmp_path):
    made = Folders(tmp_path)
    made.person("sub-01", group="hc")
    with pytest.raises(NothingSelectedError, match=r"run `bids_dl .* participant` first"):
        cohorts.plan(made.config())


def test_plan_is_read_back_equal(folders):
    config = folders.config()
    plan, _, _ = built(config)
    assert cohorts.read_plan(config.work / "cohort") == plan


def test_motion_of_the_scans_becomes_a_column(folders):
    for number in (1, 2, 3):
        folders.entries[f"sub-0{number}"][0]["mean_fd"] = number / 10
        folders.note(f"sub-0{number}")
    folders.entries["sub-03"].append({**folders.entries["sub-03"][0], "mean_fd": 0.5})
    folders.note("sub-03")
    config = folders.config()
    plan = cohorts.plan(config)
    assert list(map(float, plan.columns["mean_fd"])) == pytest.approx([0.1, 0.2, 0.4])
    assert cohorts.choose_covariates(config, plan.columns) == ["age", "site", "mean_fd"]


@pytest.mark.parametrize(("column", "site"), [("site", ""), ("assessment", "assessment")])
def test_sites_called_by_numbers_are_no_quantity(column, site):
    people = pd.DataFrame({column: ["11025", "11026", np.nan, "11027"], "age": ["1", "2", "3", "4"]})
    block = cohorts.confounds_block(people, ["age", column], site)
    assert block.labels == ("age", f"{column}=11025", f"{column}=11026", f"{column}=11027")
    np.testing.assert_array_equal(block.values[:, 1:], [[1, 0, 0], [0, 1, 0], [np.nan] * 3, [0, 0, 1]])


def test_confounds_are_numbers_and_columns_a_level():
    people = pd.DataFrame({"age": ["20", "30", None], "sex": ["F", "M", "F"], "site": ["a", "b", "c"]}, dtype=object)
    block = cohorts.confounds_block(people, ["age", "sex", "site"])
    assert block.labels == ("age", "sex=M", "site=a", "site=b", "site=c")
    expected = [[20, 0, 1, 0, 0], [30, 1, 0, 1, 0], [np.nan, 0, 0, 0, 1]]
    np.testing.assert_array_equal(block.values, np.array(expected, np.float32))


def test_target_is_no_confound_of_itself(folders):
    _, _, cohort = built(folders.config())
    assert cohort.features["confounds"].labels == ("site=south",)


def test_phenotype_table_is_a_feature_where_it_is_asked_for(folders):
    (folders.bids / "phenotype").mkdir()
    table = "participant_id\tiq\tsmoker\nsub-01\t100\tyes\nsub-03\t120\tno\n"
    (folders.bids / "phenotype" / "tests.tsv").write_text(table)
    assert "phenotype" not in built(folders.config())[2].features
    _, _, cohort = built(folders.config(features={"names": ["connectivity", "phenotype"]}))
    block = cohort.features["phenotype"]
    assert block.labels == ("iq", "smoker=yes")
    np.testing.assert_array_equal(block.values, np.array([[100, 1], [np.nan] * 2, [120, 0]], np.float32))


COLUMNS = {"handedness": ["L", "R", "R"], "age": ["20", "30", "40"], "Diagnosis": ["hc", "mdd", "hc"]}


def test_target_is_chosen_with_the_reason(folders):
    ((name, why),) = cohorts.choose_targets(folders.config(), COLUMNS)
    assert name == "Diagnosis"
    assert "no target was named" in why
    ((name, _),) = cohorts.choose_targets(folders.config(), {"age": ["20", "30"], "diagnosis": ["hc", "hc"]})
    assert name == "age"


def test_named_target_is_taken_and_an_unknown_one_refused_with_the_nearest(folders):
    config = folders.config(targets={"names": ["handedness"]})
    assert cohorts.choose_targets(config, COLUMNS) == [("handedness", "named by the user")]
    config = replace(config, targets=replace(config.targets, names=("diagnosi",)))
    with pytest.raises(DataError, match="no column 'diagnosi'; did you mean 'Diagnosis'"):
        cohorts.choose_targets(config, COLUMNS)


def test_nothing_to_predict_says_what_is_looked_for(folders):
    with pytest.raises(DataError, match=r"no column to predict among diagnosis, .* name one with --target"):
        cohorts.choose_targets(folders.config(), {"shoe": ["40", "41"]})


def test_unknown_covariate_is_refused_with_the_nearest(folders):
    config = folders.config(targets={"covariates": ["agee"]})
    with pytest.raises(DataError, match="covariate 'agee' is not in participants.tsv; did you mean 'age'"):
        cohorts.choose_covariates(config, COLUMNS)


@pytest.mark.parametrize(
    ("cells", "levels"),
    [
        (["patient", "control", "patient"], ("control", "patient")),
        (["F", "M", "M"], ("M", "F")),
        (["1", "0", "1"], ("0", "1")),
        (["c", "a", "b"], ("a", "b", "c")),
        (["asd", "hc", np.nan], ("hc", "asd")),
        (list("123451"), ("1", "2", "3", "4", "5")),
    ],
)
def test_classes_stand_in_their_order_with_the_positive_one_last(cells, levels):
    assert cohorts.make_target("x", cells).levels == levels


def test_values_of_a_class_are_the_numbers_of_its_level():
    target = cohorts.make_target("x", ["patient", np.nan, "control"])
    np.testing.assert_array_equal(target.values, [1, np.nan, 0])


def test_named_positive_class_comes_last_and_an_unknown_one_is_refused():
    assert cohorts.make_target("x", ["a", "b"], positive="a").levels == ("b", "a")
    with pytest.raises(DataError, match="targets.positive.x is 'patien'; did you mean 'patient'"):
        cohorts.make_target("x", ["patient", "control"], positive="patien")


def test_numbers_with_many_values_are_a_quantity_unless_they_are_called_classes():
    cells = list("123456")
    assert not cohorts.make_target("x", cells).is_class
    assert cohorts.make_target("x", cells, kind="classification").is_class
    assert not cohorts.make_target("x", list("122"), kind="regression").is_class


@pytest.mark.parametrize(
    ("cells", "kind", "reason"),
    [
        ([np.nan, np.nan], "", "is n/a for everybody"),
        (["a", "a", np.nan], "", r"has 1 class \(a\)"),
        ([f"text {n}" for n in range(20)], "", "has 20 classes"),
        (["a", "b"], "regression", "holds text"),
        ([*map(str, range(20)), "34y"], "", "holds '34y' among numbers; mend the cell, or write n/a"),
        (["HC", "hc", "mdd"], "", "has the classes 'HC' and 'hc', which differ only in how they are written"),
        (["1", "1.0", "2"], "", "has the classes '1' and '1.0', which differ only in how they are written"),
        (["7", "7"], "regression", "has one value"),
    ],
)
def test_target_that_cannot_be_predicted_is_named(cells, kind, reason):
    with pytest.raises(DataError, match=f"target 'x' {reason}"):
        cohorts.make_target("x", cells, kind=kind)


def test_columns_named_twice_count_once_and_one_that_no_file_can_be_called_after_is_refused():
    columns = {"age": ["1", "2"], "IQ/verbal": ["3", "4"]}
    config = configuration.from_mapping({
        "bids_dir": "a", "output_dir": "b", "analysis_level": "group",
        "targets": {"names": ["age", "age"], "covariates": ["age", "age"]},
    })  # fmt: skip
    assert cohorts.choose_targets(config, columns) == [("age", "named by the user")]
    assert cohorts.choose_covariates(config, columns) == ["age"]
    with pytest.raises(DataError, match="target 'IQ/verbal' has a '/'"):
        cohorts.choose_targets(replace(config, targets=replace(config.targets, names=("IQ/verbal",))), columns)


def test_word_among_the_numbers_of_a_covariate_is_named_but_for_sites():
    """It would turn every age into a level of its own."""
    cells = [*map(str, range(20, 40)), "34y"]
    config = configuration.Config("bids", "out", "group")
    with pytest.raises(DataError, match="covariate 'age' holds '34y' among numbers; mend the cell, or write n/a"):
        cohorts.choose_covariates(config, {"age": cells})
    assert cohorts.choose_covariates(config, {"site": cells}) == ["site"]


def test_ordered_levels_have_the_places_that_the_table_lists_or_their_numbers_give():
    listed = cohorts.make_target(
        "x", ["mild", np.nan, "severe", "mild"], kind="ordinal", order=("none", "mild", "severe")
    )
    np.testing.assert_array_equal(listed.values, [1, np.nan, 2, 1])
    assert (listed.kind, listed.ranks, listed.n_outputs, listed.is_class) == (
        "ordinal", ("none", "mild", "severe"), 1, False,
    )  # fmt: skip
    numbers = cohorts.make_target("x", ["10", "0.5", "2", "2.0", np.nan], kind="ordinal")
    np.testing.assert_array_equal(numbers.values, [2, 0, 1, 1, np.nan])
    assert numbers.ranks == ("0.5", "2", "10")


@pytest.mark.parametrize(
    ("cells", "order", "reason"),
    [
        (
            ["low", "high", "mid"],
            (),
            "holds words, whose order is unknown; list its Levels from low to high in participants.json",
        ),
        (
            ["low", "hihg"],
            ("low", "mid", "high"),
            r"holds 'hihg', which is not among its Levels .*\(low, mid, high\); mend the cell",
        ),
        (["0", "1", "1"], (), "has 2 levels, 2 of them in use; an ordinal target needs 3 to 12"),
        (["a", "a"], ("a", "b", "c"), "has 3 levels, 1 of them in use"),
        ([str(n) for n in range(13)], (), "has 13 levels"),
    ],
)
def test_levels_without_an_order_are_refused_with_what_to_do(cells, order, reason):
    with pytest.raises(DataError, match=f"target 'x' {reason}"):
        cohorts.make_target("x", cells, kind="ordinal", order=order)


def test_order_of_levels_stands_in_the_plan_as_participants_json_lists_it(folders):
    levels = {"none": "no sign", "mild": {"Description": "some"}, "severe": "many", "n/a": "not seen"}
    (folders.bids / "participants.json").write_text(json.dumps({"severity": {"Levels": levels}, "stage": {}}))
    kinds = {"severity": "ordinal", "stage": "ordinal", "group": "classification"}
    made = cohorts.plan(folders.config(targets={"kinds": kinds}))
    assert made.orders == {"severity": ["none", "mild", "severe"]}


def test_shuffled_labels_are_the_same_labels_in_another_order(folders):
    config = folders.config(metrics={"shuffle_labels": True}, targets={"kinds": {"age": "regression"}})
    plan = cohorts.plan(config)
    many = replace(plan, columns={"age": [*map(str, range(20, 50)), np.nan]})
    shuffled = cohorts.target_of(config, many, "age").values
    assert sorted(shuffled[:-1]) == list(range(20, 50))
    assert shuffled[:-1].tolist() != list(range(20, 50))
    assert np.isnan(shuffled[-1])


def vector(folders, participant_id, values, labels, feature="morphometry"):
    folder = folders.out / participant_id / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{participant_id}_morphometry.tsv"
    pd.DataFrame([values], columns=labels).to_csv(path, sep="\t", index=False, na_rep="n/a")
    folders.note(participant_id, {"feature": feature, "path": str(path.relative_to(folders.out))})


def opened(folders):
    config = folders.config()
    made = cohorts.plan(config)
    described = cohorts.write(made, folders.out / "cohort")
    refused = cohorts.fill(str(folders.out / "cohort"), 0, len(made.participant_ids))
    return cohorts.load(folders.out / "cohort", Target("age", np.zeros(3)), []), described, refused


def test_a_row_of_measures_becomes_columns(tmp_path):
    folders = Folders(tmp_path)
    for number in (1, 2, 3):
        folders.person(f"sub-0{number}", age=number)
        vector(
            folders, f"sub-0{number}", [number, np.nan, 2.5], ["lh_a", "lh_b", "icv"] if number < 3 else ["x", "y", "z"]
        )
    cohort, described, refused = opened(folders)
    assert described["morphometry"]["dims"] == ["column"]
    assert cohort.features["morphometry"].labels == ("lh_a", "lh_b", "icv")
    np.testing.assert_array_equal(cohort.features["morphometry"].values[1], np.float32([2, np.nan, 2.5]))
    assert [(r["participant_id"], "'x' stands" in r["reason"]) for r in refused] == [("sub-03", True)]


def test_columns_are_matched_by_name_and_one_that_a_participant_lacks_is_missing(tmp_path):
    folders = Folders(tmp_path)
    for number in (1, 2):
        folders.person(f"sub-0{number}", age=number)
        vector(folders, f"sub-0{number}", [number, 2, 3], ["lh_a", "lh_b", "icv"])
    folders.person("sub-03", age=3)
    vector(folders, "sub-03", [30, 7, 10], ["icv", "new", "lh_a"])
    cohort, _, refused = opened(folders)
    assert not refused
    np.testing.assert_array_equal(cohort.features["morphometry"].values[2], np.float32([10, np.nan, 30]))


def test_an_array_of_genotypes_becomes_columns(tmp_path):
    folders = Folders(tmp_path)
    for number in (1, 2, 3):
        folders.person(f"sub-0{number}", age=number)
        folder = folders.out / f"sub-0{number}" / "genetics"
        folder.mkdir(parents=True)
        np.save(folder / f"sub-0{number}_desc-chip_snp.npy", np.float32([0, 1, number % 3]))
        said = {"Dimensions": ["variant"], "Labels": ["rs1", "rs2", "rs3"]}
        (folder / f"sub-0{number}_desc-chip_snp.json").write_text(json.dumps(said))
        path = f"sub-0{number}/genetics/sub-0{number}_desc-chip_snp.npy"
        folders.note(f"sub-0{number}", {"feature": "morphometry", "path": path})
    cohort, described, _ = opened(folders)
    assert described["morphometry"]["dims"] == ["column"]
    assert cohort.features["morphometry"].labels == ("rs1", "rs2", "rs3")
    np.testing.assert_array_equal(cohort.features["morphometry"].values[:, 2], [1, 2, 0])


def noted(folders, feature, path, shape):
    for number in (1, 2, 3):
        path_of_one = f"sub-0{number}/func/sub-0{number}_{path}"
        folders.note(f"sub-0{number}", {"feature": feature, "path": path_of_one, "shape": shape})


UNTAKEN = [
    ("timeseries", "atlas-four_timeseries.tsv", [100, 4]),
    ("dynamic_connectivity", "atlas-four_edges.tsv", [20, 6]),
    ("slices", "desc-axial_T1w.npy", [20, 60, 72]),
]


@pytest.mark.parametrize(("feature", "path", "shape"), UNTAKEN)
def test_feature_that_unfolds_is_refused_alone_and_passed_over_beside_others(folders, feature, path, shape):
    noted(folders, feature, path, shape)
    with pytest.raises(DataError, match=f"no model of this run takes the feature '{feature}'"):
        cohorts.plan(folders.config(features={"names": [feature]}))
    made = cohorts.plan(folders.config(features={"names": [feature, "connectivity"]}))
    assert [v.feature for v in made.variants] == ["connectivity"]
    assert [v.feature for v in cohorts.plan(folders.config()).variants] == ["connectivity"]


def course(folders, participant_id, values, *, run="", labels=LABELS):
    folder = folders.out / participant_id / "func"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{participant_id}_task-rest_{run}atlas-four_timeseries.tsv"
    pd.DataFrame(values, columns=labels).to_csv(path, sep="\t", index=False, na_rep="n/a")
    entry = {"feature": "timeseries", "path": str(path.relative_to(folders.out)), "shape": list(values.shape)}
    folders.note(participant_id, entry)


def laid_out(folders):
    made = cohorts.plan(folders.config(features={"names": ["timeseries"]}, models={"names": ["mean_mlp"]}))
    cohorts.write(made, folders.out / "cohort")
    refused = cohorts.fill(str(folders.out / "cohort"), 0, 8)
    target = Target("group", np.array([0.0, 1, 0]), ("hc", "mdd"))
    return cohorts.load(folders.out / "cohort", target, ()), refused


def test_sequences_are_standardised_by_run_joined_and_padded_to_the_longest(folders):
    generator = np.random.default_rng(0)
    one, two, three = (generator.normal(5, 3, (n, 4)) for n in (6, 5, 9))
    course(folders, "sub-01", one, run="run-1_")
    course(folders, "sub-01", two, run="run-2_")
    course(folders, "sub-02", three)
    loaded, refused = laid_out(folders)
    values = loaded.features["timeseries"].values
    assert not refused
    assert values.shape == (3, 11, 4)
    standard = [(v - v.mean(axis=0)) / v.std(axis=0) for v in (one, two, three)]
    np.testing.assert_allclose(values[0], np.concatenate(standard[:2]), atol=1e-5)
    np.testing.assert_allclose(values[1, :9], standard[2], atol=1e-5)
    assert np.isnan(values[1, 9:]).all()
    assert np.isnan(values[2]).all()
    assert "connectivity" in loaded.features


def test_censored_time_points_leave_a_sequence_and_lost_regions_stay_missing(folders):
    values = np.random.default_rng(1).normal(size=(8, 4))
    values[[2, 3]] = np.nan
    values[:, 1] = np.nan
    course(folders, "sub-01", values)
    loaded, _ = laid_out(folders)
    found = loaded.features["timeseries"].values[0]
    assert np.isfinite(found[:6, [0, 2, 3]]).all()
    assert np.isnan(found[:, 1]).all()
    assert np.isnan(found[6:]).all()


def test_a_window_that_censoring_took_keeps_its_place(tmp_path):
    values = np.random.default_rng(3).normal(size=(5, 6)).astype(np.float32)
    values[2] = np.nan
    names = [f"{a}~{b}" for a, b in itertools.combinations("abcd", 2)]
    np.save(tmp_path / "sub-1_edges.npy", values)
    (tmp_path / "sub-1_edges.json").write_text(json.dumps({"Labels": names}))
    described = {"dims": ["window", "edge"], "labels": names, "file_shape": [0, 6]}
    np.testing.assert_array_equal(cohorts.steps_of(tmp_path / "sub-1_edges.npy", described), values)


def test_a_missing_window_lies_between_runs(folders):
    """Else a state that ends one run and begins the next was one visit, or a transition that nobody made."""
    names = [f"{a}~{b}" for a, b in itertools.combinations("abcd", 2)]
    generator = np.random.default_rng(4)
    made = {("sub-01", 1): 3, ("sub-01", 2): 2, ("sub-02", 1): 5}
    for (person, run), n in made.items():
        made[person, run] = generator.normal(size=(n, 6)).astype(np.float32)
        path = folders.out / person / "func" / f"{person}_task-rest_run-{run}_atlas-four_edges.npy"
        np.save(path, made[person, run])
        path.with_suffix(".json").write_text(json.dumps({"Labels": names}))
        entry = {"feature": "dynamic_connectivity", "path": str(path.relative_to(folders.out)), "shape": [n, 6]}
        folders.note(person, entry)
    plan, refused, cohort = built(
        folders.config(features={"names": ["dynamic_connectivity"]}, models={"names": ["dynamic_states"]})
    )
    assert not refused
    assert {v.name: v.n_steps for v in plan.variants}["dynamic_connectivity"] == 6
    values = cohort.features["dynamic_connectivity"].values
    expected = np.concatenate([made["sub-01", 1], np.full((1, 6), np.nan), made["sub-01", 2]])
    np.testing.assert_array_equal(values[0], expected)
    np.testing.assert_array_equal(values[1, :5], made["sub-02", 1])
    assert np.isnan(values[1, 5:]).all()


def test_sequence_of_other_regions_is_refused_by_name(folders):
    generator = np.random.default_rng(2)
    course(folders, "sub-01", generator.normal(size=(8, 4)))
    course(folders, "sub-02", generator.normal(size=(8, 4)))
    course(folders, "sub-03", generator.normal(size=(8, 4)), labels=("A", "B", "C", "E"))
    _, refused = laid_out(folders)
    assert refused[0]["participant_id"] == "sub-03"
    assert "region 'E' stands where the others have 'D'" in refused[0]["reason"]


def test_kind_of_a_feature_is_what_it_looks_like_to_a_model(folders):
    noted(folders, "fa", "space-MNI_param-fa_dwimap.nii.gz", [46, 54, 46])
    noted(folders, "structural_connectivity", "atlas-four_stat-streamlinecount_relmat.tsv", [4, 4])
    noted(folders, "snp", "snp.npy", [3_000_000])
    kinds = {v.name: v.kind for v in cohorts.plan(folders.config()).variants}
    assert kinds == {"connectivity": "edge", "fa": "volume", "snp": "column", "structural_connectivity": "edge"}


def test_feature_that_is_extracted_only_when_named_is_modelled_only_when_named(folders):
    noted(folders, "regional", "atlas-four_regions.tsv", [4])
    assert "regional" not in [v.name for v in cohorts.plan(folders.config()).variants]
    made = cohorts.plan(folders.config(features={"names": ["regional"]}))
    assert [v.name for v in made.variants] == ["regional"]


def test_wide_row_is_read_as_the_general_reader_reads_it(tmp_path):
    from bids_dl import query

    values = np.random.default_rng(0).normal(size=50)
    values[[0, 7, 49]] = np.nan
    path = derivatives.write_matrix(tmp_path / "x.tsv", values[None], [f"column {k}" for k in range(50)])
    labels, expected = query.read_matrix(path)
    found, names, affine = cohorts.read(path)
    np.testing.assert_array_equal(found, expected[0])
    assert (names, affine) == (labels, None)


def test_regions_called_by_numbers_are_no_values(tmp_path):
    folders, numbers = Folders(tmp_path), ("1", "2", "3", "4")
    values = np.arange(16.0).reshape(4, 4) / 100
    for number in range(3):
        folders.person(f"sub-{number}")
        folders.matrix(f"sub-{number}", values + values.T + number, labels=numbers)
    found = cohorts.plan(folders.config())
    described = cohorts.describe(found.variants[0])
    assert (described["labels"], described["shape"]) == (list(numbers), [6])
    assert cohorts.joined(found.variants[0].files["sub-2"], described)[0] == pytest.approx(2.05)


def test_columns_of_another_table_are_encoded_as_those_that_were_trained_on(tmp_path):
    table = tmp_path / "answers.tsv"
    table.write_text("participant_id\tscore\tsex\thand\nsub-1\t3\tF\tleft\nsub-2\tn/a\tF\tn/a\nsub-3\tmany\tF\tright\n")
    found = cohorts.columns_as(table, ["sub-2", "sub-1", "sub-9"], ("score", "sex=M", "hand=left", "hand=right", "old"))
    nan = np.nan
    wanted = [[nan, 0, nan, nan, nan], [3, 0, 1, 0, nan], [nan] * 5]
    np.testing.assert_array_equal(found.values, np.array(wanted, np.float32))


def test_onsets_pass_over_censored_volumes_and_begin_anew_with_a_run(tmp_path):
    files = []
    for run, (n, said) in enumerate(
        [(4, {"RepetitionTime": 2.0, "CensoredVolumes": [1, 2]}), (3, {"RepetitionTime": 3.0})]
    ):
        values = np.ones((n, 2), np.float32)
        values[0] = np.nan if run else 1  # a step without any value is none
        files.append(derivatives.write_matrix(tmp_path / f"run-{run}_timeseries.tsv", values, ["A", "B"]))
        derivatives.write_json(derivatives.sidecar_path(files[-1]), said)
    assert cohorts.onsets(files).tolist() == [0, 6, 8, 10, 3, 6]
    derivatives.write_json(derivatives.sidecar_path(files[0]), {})
    assert np.isnan(cohorts.onsets(files)[:4]).all()
