import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from bids_dl import descriptions, training
from bids_dl.descriptions import Told
from bids_dl.normalization import Normalization
from bids_dl.records import Block, Cohort, FittedModel, Split, Target

GENERATOR = np.random.default_rng(0)
LABELS = tuple(f"region{n}" for n in range(5))


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", keep_default_na=False)


class Teller(torch.nn.Module):
    """Three sources of five regions, each course the series times its map; and how large each is."""

    def __init__(self, maps):
        super().__init__()
        self.maps = torch.as_tensor(maps, dtype=torch.float32)

    def parts(self):
        return self.maps

    def describe(self, x):
        return {
            "courses": (x @ self.maps.T, ("time", "source")),
            "size": (torch.nan_to_num(x @ self.maps.T).square().sum(dim=1), ("source",)),
            "maps": (self.maps.expand(len(x), -1, -1), ("source", "roi")),
        }


def fitted(maps, scale=1.0):
    nobody = np.array([], np.intp)
    normalization = {"input": Normalization(np.zeros(5, np.float32), np.full(5, scale, np.float32))}
    return FittedModel(Teller(maps), {}, ("input",), normalization, Split(nobody, nobody, nobody, "x"), "target")


MAPS = GENERATOR.normal(size=(3, 5))
SERIES = GENERATOR.normal(size=(4, 6, 5)).astype(np.float32)
SERIES[1, 4:] = np.nan
COHORT = Cohort(
    pd.DataFrame({"participant_id": [f"sub-{n}" for n in range(4)]}),
    {"input": Block(SERIES, ("time", "roi"), LABELS)},
    Target("target", np.arange(4) % 2.0, ("a", "b")),
)


def split(name, test):
    rest = np.setdiff1d(np.arange(4), test)
    return Split(rest[:1], rest[1:], np.array(test), name)


def told():
    """Two splits whose models have the same sources in another order, one of them turned round; row 0 is tested twice."""
    turned = -MAPS[[2, 0, 1]]
    models = [(fitted(MAPS), split("first", [0, 1])), (fitted(turned), split("second", [0, 2, 3]))]
    return list(descriptions.held_out(models, COHORT, fitted(MAPS), "source"))


def test_sources_are_paired_whatever_their_order_and_sign():
    order, sign = np.array([2, 0, 1]), np.array([-1.0, 1, -1])
    matching = descriptions.match(2 * (sign[:, None] * MAPS)[order] + 0.01, MAPS, "source")
    np.testing.assert_array_equal(order[matching.order], [0, 1, 2])
    np.testing.assert_array_equal(matching.sign, sign)


def test_states_are_paired_by_their_distance_and_keep_their_sign():
    places = np.array([[0.0, 0], [1, 0], [-1, 0]])  # the last two correlate with one another like a source turned round
    matching = descriptions.match(places[[1, 2, 0]] + 0.1, places, "state")
    np.testing.assert_array_equal(matching.order, [2, 0, 1])
    np.testing.assert_array_equal(matching.sign, 1)


def test_every_axis_of_parts_is_rearranged_and_no_other():
    matching = descriptions.Matching(np.array([1, 0]), np.array([1.0, 1.0]))
    values = np.arange(4.0).reshape(2, 2)
    np.testing.assert_array_equal(matching.apply(values, ("state", "state"), "state"), [[3, 2], [1, 0]])
    np.testing.assert_array_equal(matching.apply(values, ("time", "state"), "state"), [[1, 0], [3, 2]])


def test_each_participant_is_described_once_by_the_first_model_that_had_not_seen_them():
    assert [(one.row, one.split) for one in told()] == [(0, "first"), (1, "first"), (2, "second"), (3, "second")]


def test_parts_have_the_order_and_signs_of_the_model_of_everybody_in_every_split():
    for one in told():
        np.testing.assert_allclose(one.values["courses"], SERIES[one.row] @ MAPS.T, atol=1e-5)
        np.testing.assert_allclose(one.values["maps"], MAPS, atol=1e-6)


def test_maps_have_the_features_unit_and_what_never_varied_is_at_its_mean():
    model = fitted(MAPS, scale=3.0)
    np.testing.assert_allclose(descriptions.parts_of(model, "source"), 3 * MAPS, rtol=1e-6)
    scale = np.array([2, 2, 2, 2, np.inf], np.float32)
    model.normalization["input"] = Normalization(np.full(5, 7, np.float32), scale)
    expected = 7 + 2 * MAPS * [1, 1, 1, 1, 0]
    np.testing.assert_allclose(descriptions.parts_of(model, "state"), expected, rtol=1e-6)


def test_ensemble_describes_by_its_first_member():
    head = torch.nn.Linear(2, 1)
    members = [Teller(MAPS), Teller(-MAPS)]
    for one in members:
        one.head = head
    ensemble = training.Ensemble(members)
    assert descriptions.teller(FittedModel(ensemble, {}, ("input",), {}, split("x", [0]), "t")) is members[0]


def test_parcellation_is_rearranged_and_keeps_its_sign():
    matching = descriptions.Matching(np.array([1, 0]), np.array([-1.0, 1.0]))
    values = np.arange(16.0).reshape(2, 2, 2, 2)
    dims = ("source", "x", "y", "z")
    np.testing.assert_array_equal(matching.apply(values, dims, "source", signed=False), values[::-1])
    np.testing.assert_array_equal(matching.apply(values, dims, "source"), [-values[1], values[0]])


def test_weights_of_whole_maps_keep_their_unit():
    model = fitted(MAPS, scale=3.0)
    model.normalization["input"] = Normalization(np.zeros((5, 2, 2, 2)), np.full((5, 2, 2, 2), 3.0))
    np.testing.assert_allclose(descriptions.parts_of(model, "source"), MAPS, rtol=1e-6)


def test_volumes_are_images_whose_coarse_voxels_lie_amid_the_fine_ones(tmp_path):
    named = "sub-1_task-rest_space-MNI_atlas-ICA2_res-3_stat-dualregression_boldmap"
    source = tmp_path / "sub-1" / "func" / f"{named}.nii.gz"
    source.parent.mkdir(parents=True)
    source.with_name(f"{named}.json").write_text("{}")
    affine = np.array([[3.0, 0, 0, -10], [0, 3, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1]])
    block = Block(np.zeros((1, 2, 6, 6, 6)), ("network", "x", "y", "z"), ("a", "b"), affine=affine)
    values, dims = GENERATOR.random((2, 3, 3, 3)), ("source", "x", "y", "z")
    given = Told(0, "one", {"maps": values, "parcellation": values / 2}, {"maps": dims, "parcellation": dims}, 2)
    options = {"model": "network_maps_cnn_ica", "target": "group", "part": "source"}
    found = descriptions.write_participant(given, block, [str(source)], tmp_path, **options)
    stem = "sub-1_task-rest_space-MNI_atlas-ICA2_desc-GroupNetworkMapsCnnIca"
    assert [path.name for path in found] == [f"{stem}_components.nii.gz", f"{stem}_probseg.nii.gz"]
    image = nib.load(found[1])
    np.testing.assert_allclose(image.get_fdata()[..., 1], values[1] / 2, rtol=1e-6)
    fine = np.array([[x, y, z, 1] for x in (2, 3) for y in (0, 1) for z in (4, 5)])  # in the coarse voxel (1, 0, 2)
    np.testing.assert_allclose(image.affine @ [1, 0, 2, 1], (affine @ fine.T).mean(axis=1), rtol=1e-6)
    said = json.loads((tmp_path / "sub-1" / "func" / f"{stem}_probseg.json").read_text())
    assert said["Dimensions"] == ["x", "y", "z", "source"]


def test_maps_of_windows_are_one_image_without_the_windows_that_pad(tmp_path):
    named = "sub-1_task-rest_run-{}_atlas-ICA2_res-8_stat-dualregression_desc-slidingwindow_boldmap"
    files = [tmp_path / "sub-1" / "func" / f"{named.format(run)}.nii.gz" for run in (1, 2)]
    files[0].parent.mkdir(parents=True)
    for file, onsets in zip(files, ([0, 60], [0]), strict=True):
        said = {"WindowDuration": 120, "StepDuration": 60, "WindowOnsets": onsets}
        file.with_name(file.name.replace(".nii.gz", ".json")).write_text(json.dumps(said))
    values, dims = GENERATOR.random((5, 2, 3, 3, 3)), ("window", "source", "x", "y", "z")
    values[3:] = np.nan
    block = Block(np.zeros((1, 5, 2, 6, 6, 6)), ("window", "network", *dims[2:]), ("a", "b"), affine=np.eye(4))
    given = Told(0, "one", {"parcellation": values}, {"parcellation": dims}, 2)
    options = {"model": "dynamic_network_maps_cnn_ica", "target": "group", "part": "source"}
    (found,) = descriptions.write_participant(given, block, list(map(str, files)), tmp_path, **options)
    assert found.name == "sub-1_task-rest_atlas-ICA2_desc-GroupDynamicNetworkMapsCnnIca_probseg.nii.gz"
    image = nib.load(found)
    assert image.shape == (3, 3, 3, 3, 2)
    for window, source in np.ndindex(3, 2):
        np.testing.assert_allclose(image.get_fdata()[..., window, source], values[window, source], rtol=1e-6)
    assert image.header.get_zooms()[:4] == (2, 2, 2, 60)
    said = json.loads(found.with_name(found.name.replace(".nii.gz", ".json")).read_text())
    assert said["Dimensions"] == ["x", "y", "z", "window", "source"]
    assert (said["WindowDuration"], said["WindowOnsets"]) == (120, [0, 60, 0])


@pytest.fixture
def written(tmp_path):
    source = tmp_path / "sub-1" / "ses-a" / "func" / "sub-1_ses-a_task-rest_run-1_atlas-five_stat-mean_timeseries.tsv"
    source.parent.mkdir(parents=True)
    source.with_suffix(".json").write_text('{"RepetitionTime": 2.5}')
    options = {"model": "timeseries_rnn_ica", "target": "group", "part": "source"}
    return source, descriptions.write_participant(
        told()[1], COHORT.features["input"], [str(source)], tmp_path, **options
    )


def test_sources_of_an_eeg_lie_beside_it(tmp_path):
    source = tmp_path / "sub-1" / "eeg" / "sub-1_task-rest_atlas-eegAlpha_stat-mean_timeseries.tsv"
    source.parent.mkdir(parents=True)
    source.with_suffix(".json").write_text('{"RepetitionTime": 0.5}')
    options = {"model": "timeseries_rnn_ica", "target": "group", "part": "source"}
    found = descriptions.write_participant(told()[1], COHORT.features["input"], [str(source)], tmp_path, **options)
    assert {path.parent for path in found} == {source.parent}


def test_courses_and_maps_are_derivatives_beside_the_features(written, tmp_path):
    stem = "sub-1_ses-a_task-rest_run-1_atlas-five_desc-GroupTimeseriesRnnIca"
    courses, maps = written[1]
    assert [courses.name, maps.name] == [f"{stem}_mixing.tsv", f"{stem}_components.tsv"]
    assert {path.parent for path in written[1]} == {written[0].parent}
    np.testing.assert_allclose(table(courses), SERIES[1, :4] @ MAPS.T, atol=1e-5)  # the padding is left out
    assert list(table(courses)) == ["source1", "source2", "source3"]
    np.testing.assert_allclose(table(maps), MAPS, atol=1e-5)
    assert tuple(table(maps)) == LABELS


def test_sidecars_say_which_model_and_that_it_had_not_seen_the_participant(written):
    said = [json.loads(path.with_suffix(".json").read_text()) for path in written[1]]
    assert {one["Split"] for one in said} == {"first"}
    assert all("had not seen this participant" in one["Description"] for one in said)
    assert said[0]["Sources"] == [f"bids::sub-1/ses-a/func/{written[0].name}"]
    assert [one.get("RepetitionTime") for one in said] == [2.5, None]


def test_volumes_that_were_censored_are_told_of_one_run(written, tmp_path):
    source, options = written[0], {"model": "m", "target": "t", "part": "source"}
    source.with_suffix(".json").write_text('{"RepetitionTime": 2.5, "CensoredVolumes": [1, 4]}')
    for files, expected in (
        ([source], [1, 4]),
        ([source, source.with_name(source.name.replace("run-1", "run-2"))], None),
    ):
        found = descriptions.write_participant(
            told()[1], COHORT.features["input"], list(map(str, files)), tmp_path, **options
        )
        said = json.loads(found[0].with_suffix(".json").read_text())
        assert (said["RepetitionTime"], said.get("CensoredVolumes")) == (2.5, expected)


def test_several_runs_are_no_run(written, tmp_path):
    files = [str(written[0]), str(written[0]).replace("run-1", "run-2")]
    options = {"model": "m", "target": "t", "part": "source"}
    found = descriptions.write_participant(told()[1], COHORT.features["input"], files, tmp_path, **options)
    assert found[0].name == "sub-1_ses-a_task-rest_atlas-five_desc-TM_mixing.tsv"


def test_figures_are_written_for_everybody_and_by_level(tmp_path):
    dims = {"occupancy": ("state",), "transition": ("state", "state"), "courses": ("time", "state")}
    share, follows = GENERATOR.random((4, 2)), GENERATOR.random((4, 2, 2))
    given = [
        Told(row, "one", {"occupancy": share[row], "transition": follows[row], "courses": share}, dims)
        for row in range(4)
    ]
    people, states, tested = descriptions.write_figures(
        given, list("wxyz"), ["a", "b", "a", "b"], tmp_path / "m", "state"
    )
    everybody, groups = table(people), table(states)
    assert [path.name for path in (people, states, tested)] == [
        f"m_{end}.tsv" for end in ("participants", "states", "differences")
    ]
    assert len(everybody) == 4 * (2 + 4)
    one = everybody[(everybody["participant_id"] == "y") & (everybody["measure"] == "transition")]
    np.testing.assert_allclose(one["value"], follows[2].ravel(), rtol=1e-5)
    row = groups[(groups["measure"] == "occupancy") & (groups["state"] == 2) & (groups["level"] == "b")].iloc[0]
    assert row["mean"] == pytest.approx(share[[1, 3], 1].mean(), rel=1e-5)
    assert row["sd"] == pytest.approx(share[[1, 3], 1].std(ddof=1), rel=1e-5)
    assert row["n"] == 2
    assert set(groups["measure"]) == {"occupancy", "transition"}


def test_parts_of_the_model_of_everybody_stand_over_regions_or_edges(tmp_path):
    maps = table(descriptions.write_parts(fitted(MAPS), COHORT.features["input"], tmp_path / "m", "source"))
    assert list(maps["region"]) == list(LABELS)
    np.testing.assert_allclose(maps[["source1", "source2", "source3"]], MAPS.T, rtol=1e-5)
    windows = Block(np.zeros((4, 6, 5)), ("window", "edge"), tuple(f"a~b{n}" for n in range(5)))
    path = descriptions.write_parts(fitted(MAPS), windows, tmp_path / "m", "state")
    assert path.name == "m_centroids.tsv"
    assert list(table(path)["region_b"]) == [f"b{n}" for n in range(5)]
