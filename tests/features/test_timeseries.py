"""Regional series are what nilearn's voxelwise route gives, and what cannot be used is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import AFFINE, write_confounds, write_image, write_series
from nibabel import cifti2
from nilearn.maskers import NiftiLabelsMasker
from scipy.signal import detrend

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.timeseries import extract
from bids_dl.records import Scan

SHAPE = (6, 6, 6)


@pytest.fixture
def atlas(tmp_path: Path) -> str:
    labels = np.zeros(SHAPE, np.int16)
    labels[:3, :3], labels[3:, :3], labels[:3, 3:], labels[3:, 3:] = 1, 2, 3, 4
    return str(write_image(tmp_path / "four.nii.gz", labels))


@pytest.fixture
def bold(tmp_path: Path) -> Scan:
    generator = np.random.default_rng(1)
    path = tmp_path / "sub-1" / "func" / "sub-1_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz"
    write_image(path, generator.normal(500, 10, (*SHAPE, 60)).astype(np.float32))
    confounds = path.with_name("sub-1_task-rest_desc-confounds_timeseries.tsv")
    write_confounds(confounds, 60, generator)
    return Scan(path, query.entities(path), tmp_path, confounds=confounds)


def test_cleaning_the_means_equals_cleaning_the_voxels(bold: Scan, atlas: str) -> None:
    from nilearn.interfaces.fmriprep import load_confounds

    strategy = {"strategy": ("motion", "high_pass", "wm_csf"), "motion": "full", "wm_csf": "basic"}
    columns = load_confounds(str(bold.path), **strategy)[0]
    masker = NiftiLabelsMasker(
        atlas,
        detrend=True,
        standardize="zscore_sample",
        low_pass=0.1,
        high_pass=0.01,
        t_r=2.0,
        standardize_confounds=True,
    )
    theirs = masker.fit_transform(str(bold.path), confounds=columns)
    ours = extract(bold, atlas=atlas)
    for region in range(4):
        assert np.corrcoef(ours.values[:, region], theirs[:, region])[0, 1] > 0.9999
    assert ours.metadata["MeanFramewiseDisplacement"] == 0.25
    assert ours.metadata["RepetitionTime"] == 2.0


def test_regions_without_coverage_keep_their_column(bold: Scan, atlas: str) -> None:
    image = nib.load(bold.path)
    data = image.get_fdata()
    data[:3, :3, 1:] = 0
    write_image(bold.path, data.astype(np.float32))
    feature = extract(bold, atlas=atlas, confounds="none", min_coverage=0.5)
    assert np.isnan(feature.values[:, 0]).all()
    assert np.isfinite(feature.values[:, 1:]).all()
    assert feature.coverage is not None
    np.testing.assert_allclose(feature.coverage, [1 / 6, 1, 1, 1])


def test_raw_bold_is_refused(bold: Scan, atlas: str) -> None:
    with pytest.raises(DataError, match="raw BOLD.*--derivatives"):
        extract(replace(bold, prepared=False), atlas=atlas)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confounds": None}, "no confounds table"),
        ({"mask": "other"}, "one grid"),
    ],
)
def test_what_is_missing_is_said(bold: Scan, atlas: str, change: dict[str, object], message: str) -> None:
    if change.get("mask"):
        change = {"mask": write_image(bold.path.with_name("mask.nii.gz"), np.ones((5, 5, 5), np.uint8))}
    with pytest.raises(DataError, match=message):
        extract(replace(bold, **change), atlas=atlas)  # type: ignore[arg-type]


@pytest.mark.parametrize("period", [0.0, "two", 2000])
def test_an_implausible_repetition_time_is_refused(bold: Scan, atlas: str, period: object) -> None:
    bold.path.with_name(bold.path.name.split(".")[0] + ".json").write_text(json.dumps({"RepetitionTime": period}))
    query._files_ending.cache_clear()
    with pytest.raises(DataError, match="RepetitionTime"):
        extract(bold, atlas=atlas)
    query._files_ending.cache_clear()


def test_confounds_of_another_length_are_named(bold: Scan, atlas: str) -> None:
    assert bold.confounds is not None
    write_confounds(bold.confounds, 50, np.random.default_rng(0))
    with pytest.raises(DataError, match="confounds"):
        extract(bold, atlas=atlas)


def test_a_still_image_and_a_short_one_are_named(bold: Scan, atlas: str) -> None:
    write_image(bold.path, np.ones((*SHAPE, 60), np.float32))
    with pytest.raises(DataError, match="no region varies"):
        extract(bold, atlas=atlas, confounds="none")
    write_image(bold.path, np.random.default_rng(0).normal(9, 1, (*SHAPE, 5)))
    with pytest.raises(DataError, match="5 volumes"):
        extract(bold, atlas=atlas, confounds="none")


def test_a_table_says_which_volumes_it_lacks(tmp_path: Path) -> None:
    """Else its windows, and the moments that are decoded, went on over the gaps."""
    path = write_series(
        tmp_path / "sub-1_task-rest_atlas-Six_timeseries.tsv", np.random.default_rng(0).normal(size=(30, 6))
    )
    said = {"RepetitionTime": 2.0, "CensoredVolumes": [3, 4], "NumberOfVolumesCensored": 2, "Description": "elsewhere"}
    path.with_suffix(".json").write_text(json.dumps(said))
    found = extract(Scan(path, query.entities(path), tmp_path)).metadata
    assert found == {
        "RepetitionTime": 2.0,
        "SamplingFrequency": 0.5,
        "CensoredVolumes": [3, 4],
        "NumberOfVolumesCensored": 2,
    }


def test_a_table_is_taken_as_it_is_and_still_regions_are_blanked(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((20, 6))
    values[:, 2], values[4, 3] = 1.0, np.nan
    path = write_series(tmp_path / "sub-1_task-rest_atlas-Six_timeseries.tsv", values)
    found = extract(Scan(path, query.entities(path), tmp_path)).values
    assert np.isnan(found[:, [2, 3]]).all()
    np.testing.assert_allclose(found[:, [0, 1, 4, 5]], values[:, [0, 1, 4, 5]])


def test_censored_volumes_are_removed_and_told(bold: Scan, atlas: str) -> None:
    assert bold.confounds is not None
    table = pd.read_csv(bold.confounds, sep="\t")
    table.loc[[10, 40], "framewise_displacement"] = 1.0
    table.to_csv(bold.confounds, sep="\t", index=False, na_rep="n/a")
    quiet = extract(bold, atlas=atlas, fd_threshold_mm=0.5)
    assert quiet.values.shape == (58, 4)
    assert quiet.metadata["NumberOfVolumesCensored"] == 2
    image = nib.load(bold.path)
    data = image.get_fdata()
    data[..., [10, 40]] *= 3
    write_image(bold.path, data.astype(np.float32))
    np.testing.assert_allclose(extract(bold, atlas=atlas, fd_threshold_mm=0.5).values, quiet.values, atol=1e-5)


def test_smoothing_comes_before_averaging(bold: Scan, atlas: str) -> None:
    from nilearn.image import smooth_img

    found = extract(bold, atlas=atlas, confounds="none", smoothing_mm=30.0)
    write_image(bold.path, smooth_img(str(bold.path), 30.0).get_fdata())
    np.testing.assert_allclose(found.values, extract(bold, atlas=atlas, confounds="none").values, atol=1e-4)
    assert found.metadata["SmoothingFWHM"] == 30.0


@pytest.mark.parametrize(
    ("change", "message"),
    [("zero", "no region varies"), ("flat", "3 dimensions"), ("shifted", "affines"), ("header", "in the header")],
)
def test_an_image_that_cannot_be_right_is_named(bold: Scan, atlas: str, change: str, message: str) -> None:
    data = nib.load(bold.path).get_fdata()
    if change == "zero":
        write_image(bold.path, np.zeros_like(data))
    if change == "flat":
        write_image(bold.path, data[..., 0])
    if change == "shifted":
        moved = AFFINE.copy()
        moved[1, 3] += 20
        bold = replace(bold, mask=write_image(bold.path.with_name("mask.nii.gz"), np.ones(SHAPE, np.uint8), moved))
    if change == "header":
        bold.path.with_name(bold.path.name.split(".")[0] + ".json").write_text('{"RepetitionTime": 2.5}')
        query._files_ending.cache_clear()
    with pytest.raises(DataError, match=f"sub-1.*{message}"):
        extract(bold, atlas=atlas)
    query._files_ending.cache_clear()


@pytest.fixture
def dense(tmp_path: Path) -> tuple[Scan, str, np.ndarray]:
    """Make a CIFTI of two surfaces and a few voxels, and parcels of one surface and those voxels in another order."""
    left = cifti2.BrainModelAxis.from_mask(np.array([1, 1, 0, 1, 1, 1]) > 0, name="CortexLeft")
    right = cifti2.BrainModelAxis.from_mask(np.ones(4), name="CortexRight")
    voxels = np.zeros((3, 3, 3))
    voxels[1, :2, 0] = 1
    deep = cifti2.BrainModelAxis.from_mask(voxels, name="ThalamusLeft", affine=AFFINE)
    values = np.random.default_rng(0).normal(100, 5, (40, 11)).astype(np.float32)
    path = tmp_path / "sub-1_task-rest_space-fsLR_den-91k_bold.dtseries.nii"
    nib.save(nib.Cifti2Image(values, (cifti2.SeriesAxis(0, 2.0, 40), left + right + deep)), path)
    names = {0: ("???", (0, 0, 0, 0)), 3: ("front", (1, 0, 0, 1)), 7: ("deep", (0, 1, 0, 1))}
    whole = cifti2.BrainModelAxis.from_mask(np.ones(6), name="CortexLeft")
    labels = np.array([[7, 7, 3, 3, 3, 0, 0, 3]], np.float32)
    parcels = tmp_path / "atlas-Two_den-91k_dseg.dlabel.nii"
    nib.save(nib.Cifti2Image(labels, (cifti2.LabelAxis(["parcels"], [names]), deep + whole)), parcels)
    return Scan(path, query.entities(path), tmp_path), str(parcels), values


def test_parcels_of_a_dense_series_are_matched_by_vertex_and_voxel(dense: tuple[Scan, str, np.ndarray]) -> None:
    scan, parcels, values = dense
    found = extract(scan, atlas=parcels, confounds="none", high_pass_hz=0.0, low_pass_hz=0.0)
    assert found.labels == ("front", "deep")
    expected = np.stack([values[:, [0, 1, 4]].mean(axis=1), values[:, [9, 10]].mean(axis=1)], axis=1)
    for region in range(2):
        assert np.corrcoef(found.values[:, region], detrend(expected[:, region]))[0, 1] > 1 - 1e-6
    np.testing.assert_allclose(found.coverage, [3 / 4, 1])
    assert found.metadata["RepetitionTime"] == 2.0
    assert found.entities["atlas"] == "Two"


def test_a_dense_series_and_an_atlas_of_voxels_do_not_go_together(
    dense: tuple[Scan, str, np.ndarray], bold: Scan, atlas: str
) -> None:
    with pytest.raises(DataError, match=r"sub-1.*give .*\.dlabel\.nii"):
        extract(dense[0], atlas=atlas, confounds="none")
    with pytest.raises(DataError, match="grayordinates"):
        extract(bold, atlas=dense[1], confounds="none")
