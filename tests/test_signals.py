"""Cleaning is nilearn's where nothing is censored; what is censored leaves no trace; strategies are nilearn's presets."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import AFFINE, write_confounds, write_image
from nilearn.image import smooth_img
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.signal import clean as nilearn_clean

from bids_dl import query, signals
from bids_dl.errors import DataError
from bids_dl.records import Scan
from bids_dl.signals import Nuisance, clean, nuisance

N = 60


@pytest.fixture
def bold(tmp_path: Path) -> Scan:
    """Make a scan with the table that a recent fMRIPrep writes: components, outliers, standardised DVARS."""
    generator = np.random.default_rng(1)
    path = tmp_path / "sub-1" / "func" / "sub-1_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz"
    write_image(path, generator.normal(500, 10, (4, 4, 4, N)).astype(np.float32))
    file = path.with_name("sub-1_task-rest_desc-confounds_timeseries.tsv")
    write_confounds(file, N, generator)
    table = pd.read_csv(file, sep="\t")
    table["std_dvars"] = 1.0
    table.loc[30, "framewise_displacement"] = 2.0
    described = {}
    for number in range(3):
        table[f"a_comp_cor_{number:02d}"] = generator.standard_normal(N)
        described[f"a_comp_cor_{number:02d}"] = {"Mask": "combined" if number < 2 else "CSF", "Retained": True}
    table.to_csv(file, sep="\t", index=False, na_rep="n/a")
    file.with_suffix(".json").write_text(json.dumps(described))
    return Scan(path, query.entities(path), tmp_path, confounds=file)


def change(scan: Scan, **columns: object) -> None:
    """Give the confounds table other columns; None removes one."""
    assert scan.confounds is not None
    table = pd.read_csv(scan.confounds, sep="\t")
    table = table.assign(**{k: v for k, v in columns.items() if v is not None})
    table = table.drop(columns=[k for k, v in columns.items() if v is None])
    table.to_csv(scan.confounds, sep="\t", index=False, na_rep="n/a")


@pytest.mark.parametrize("band", [(0.01, 0.1), (0.01, 0.0), (0.0, 0.1), (0.0, 0.0)])
def test_cleaning_equals_nilearns(band: tuple[float, float]) -> None:
    generator = np.random.default_rng(0)
    series = generator.standard_normal((80, 5)).cumsum(axis=0)
    columns = generator.standard_normal((80, 4))
    ours = clean(series, Nuisance(columns, np.ones(80, bool)), 2.0, high_pass_hz=band[0], low_pass_hz=band[1])
    theirs = nilearn_clean(
        series, confounds=columns, t_r=2.0, high_pass=band[0] or None, low_pass=band[1] or None, standardize=None
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_a_confound_given_twice_counts_once() -> None:
    generator = np.random.default_rng(0)
    series, columns = generator.standard_normal((80, 5)), generator.standard_normal((80, 2))
    twice = np.column_stack([columns, columns[:, 0] - 2 * columns[:, 1], np.ones(80)])
    kept = np.ones(80, bool)
    once = clean(series, Nuisance(columns, kept), 2.0, high_pass_hz=0.01)
    np.testing.assert_allclose(clean(series, Nuisance(twice, kept), 2.0, high_pass_hz=0.01), once, atol=1e-8)


def test_what_happens_in_a_censored_volume_leaves_no_trace() -> None:
    generator = np.random.default_rng(0)
    series, columns = generator.standard_normal((80, 3)), generator.standard_normal((80, 2))
    kept = np.ones(80, bool)
    kept[[0, 20, 21, 59, 79]] = False
    quiet = clean(series, Nuisance(columns, kept), 2.0, high_pass_hz=0.01, low_pass_hz=0.1)
    series[~kept], columns[~kept] = 1e4, -1e3
    loud = clean(series, Nuisance(columns, kept), 2.0, high_pass_hz=0.01, low_pass_hz=0.1)
    np.testing.assert_allclose(loud, quiet, atol=1e-10)
    assert len(loud) == 75


def test_gaps_are_bridged_by_a_straight_line_and_ends_are_held() -> None:
    series = np.array([[9.0], [1], [9], [9], [4], [9]])
    kept = np.array([False, True, False, False, True, False])
    np.testing.assert_allclose(signals.interpolated(series, kept).ravel(), [1, 1, 2, 3, 4, 4])


def test_degrees_of_freedom_are_what_filter_and_confounds_leave() -> None:
    taken = Nuisance(np.zeros((100, 27)), np.arange(100) >= 20)
    assert signals.degrees_of_freedom(taken, 2.0, high_pass_hz=0.0, low_pass_hz=0.0) == 80 - 27
    assert signals.degrees_of_freedom(taken, 2.0, high_pass_hz=0.01, low_pass_hz=0.1) == pytest.approx(80 * 0.36 - 27)
    assert signals.degrees_of_freedom(taken, 2.0, high_pass_hz=0.05, low_pass_hz=9.0) == pytest.approx(80 * 0.8 - 27)


def test_runs_too_short_for_the_filters_padding_are_cleaned_all_the_same() -> None:
    series = np.random.default_rng(0).standard_normal((20, 3))
    assert np.isfinite(clean(series, Nuisance(np.zeros((20, 0)), np.ones(20, bool)), 2.0, high_pass_hz=0.01)).all()


@pytest.mark.parametrize("strategy", ["simple", "scrubbing", "compcor"])
def test_strategies_are_nilearns(bold: Scan, strategy: str) -> None:
    found = nuisance(bold, N, confounds=strategy)
    columns, sample = load_confounds_strategy(str(bold.path), denoise_strategy=strategy)
    np.testing.assert_allclose(found.columns, columns.to_numpy(), atol=1e-10)
    np.testing.assert_array_equal(np.flatnonzero(found.kept), np.arange(N) if sample is None else sample)
    assert found.kept.all() == (strategy != "scrubbing")


def test_derivatives_and_squares_that_an_old_table_lacks_are_computed(bold: Scan) -> None:
    modern = nuisance(bold, N, confounds="scrubbing").columns
    table = pd.read_csv(bold.confounds, sep="\t")
    change(bold, **{c: None for c in table if "_derivative1" in c or "_power2" in c})
    with pytest.raises(ValueError, match="missing"):
        load_confounds_strategy(str(bold.path), denoise_strategy="simple")
    np.testing.assert_allclose(nuisance(bold, N, confounds="scrubbing").columns, modern, atol=1e-8)


def test_components_without_a_sidecar_are_of_the_combined_mask(bold: Scan) -> None:
    assert bold.confounds is not None
    assert nuisance(bold, N, confounds="compcor").columns.shape[1] == 24 + 1 + 2
    bold.confounds.with_suffix(".json").unlink()
    query._files_ending.cache_clear()
    assert nuisance(bold, N, confounds="compcor").columns.shape[1] == 24 + 1 + 3


def test_aroma_is_regressed_out_unless_the_image_had_it_done(bold: Scan) -> None:
    with pytest.raises(DataError, match="aroma_motion"):
        nuisance(bold, N, confounds="ica_aroma")
    change(bold, aroma_motion_01=np.random.default_rng(0).standard_normal(N))
    assert nuisance(bold, N, confounds="ica_aroma").columns.shape[1] == 4
    done = replace(bold, entities={**bold.entities, "desc": "smoothAROMAnonaggr"})
    assert nuisance(done, N, confounds="ica_aroma").columns.shape[1] == 3


def test_volumes_before_a_steady_state_are_not_kept(bold: Scan) -> None:
    change(bold, non_steady_state_outlier00=np.eye(N)[0])
    assert not nuisance(bold, N, confounds="simple").kept[0]


def test_censoring_by_displacement_is_said_in_the_metadata(bold: Scan) -> None:
    found = nuisance(bold, N, confounds="none", fd_threshold_mm=0.5)
    assert np.flatnonzero(~found.kept).tolist() == [30]
    assert found.described["CensoredVolumes"] == [30]
    assert found.described["NumberOfVolumesCensored"] == 1
    assert found.described["FramewiseDisplacementThreshold"] == 0.5
    assert nuisance(bold, N, confounds="none", fd_threshold_mm=5.0).described["NumberOfVolumesCensored"] == 0


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"confounds": "simpel"}, "simple"),
        ({"csf": None, "white_matter": None}, {"confounds": "simple"}, "sub-1.*lacks csf, white_matter.*'simple'"),
        ({"std_dvars": None}, {"confounds": "scrubbing"}, "lacks std_dvars"),
        ({"a_comp_cor_00": None}, {"confounds": "compcor"}, "lacks a_comp_cor_00"),
        ({"framewise_displacement": None}, {"confounds": "none", "fd_threshold_mm": 0.2}, "framewise_displacement"),
        ({"framewise_displacement": 0.3}, {"confounds": "none", "fd_threshold_mm": 0.2}, "0 of 60 volumes are left"),
        (
            {"framewise_displacement": np.repeat([0.1, 0.3], [25, 35])},
            {"confounds": "simple", "fd_threshold_mm": 0.2},
            "27 confounds leave nothing of 25 volumes",
        ),
    ],
)
def test_a_table_that_does_not_suffice_is_named(bold: Scan, columns: dict, options: dict, message: str) -> None:
    change(bold, **columns)
    with warnings.catch_warnings(), pytest.raises(DataError, match=message):
        warnings.simplefilter("ignore")
        nuisance(bold, N, **options)


def test_a_table_that_is_no_table_is_named(bold: Scan) -> None:
    assert bold.confounds is not None
    change(bold, csf="high")
    with pytest.raises(DataError, match="sub-1.*text in column csf"):
        nuisance(bold, N, confounds="simple")
    bold.confounds.write_text("")
    with pytest.raises(DataError, match="sub-1.*cannot be read as a table"):
        nuisance(bold, N, confounds="simple")
    change_length = pd.DataFrame({"trans_x": np.zeros(50)})
    change_length.to_csv(bold.confounds, sep="\t", index=False)
    with pytest.raises(DataError, match="50 rows for 60 volumes"):
        nuisance(bold, N, confounds="motion")


def test_a_damaged_mask_is_named(bold: Scan) -> None:
    mask = bold.path.with_name("mask.nii.gz")
    mask.write_bytes(b"no image")
    with pytest.raises(DataError, match="sub-1.*mask.nii.gz is damaged"):
        signals.mask_of(replace(bold, mask=mask), nib.load(bold.path))


def test_a_mask_shifted_by_a_voxel_and_an_empty_one_are_named(bold: Scan) -> None:
    image, shifted = nib.load(bold.path), AFFINE.copy()
    shifted[0, 3] += 20
    mask = write_image(bold.path.with_name("mask.nii.gz"), np.ones((4, 4, 4), np.uint8), shifted)
    with pytest.raises(DataError, match="sub-1.*differ by up to 20 mm"):
        signals.mask_of(replace(bold, mask=mask), image)
    write_image(mask, np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(DataError, match="empty"):
        signals.mask_of(replace(bold, mask=mask), image)


@pytest.mark.parametrize(("stored", "unit", "expected"), [(2000.0, "msec", 2.0), (1.5, "sec", 1.5)])
def test_the_header_knows_its_unit_of_time(bold: Scan, stored: float, unit: str, expected: float) -> None:
    image = nib.load(bold.path)
    image.header.set_zooms((20, 20, 20, stored))
    image.header.set_xyzt_units("mm", unit)
    assert signals.repetition_time(bold, image) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "stored", "unit", "refused"),
    [(2.0, 2.01, "sec", ""), (2.0, 2.1, "sec", "2 s in the sidecar but 2.1 s"), (2.0, 1.0, "unknown", ""),
     (2.0, 1.0, "sec", "but 1 s"), (2000, 2.0, "sec", "in seconds"), (None, 0.0, "sec", "RepetitionTime")],
)  # fmt: skip
def test_a_sidecar_and_a_header_must_agree(
    bold: Scan, said: float | None, stored: float, unit: str, refused: str
) -> None:
    query._files_ending.cache_clear()
    if said is not None:
        bold.path.with_name(bold.path.name.split(".")[0] + ".json").write_text(json.dumps({"RepetitionTime": said}))
    image = nib.load(bold.path)
    image.header["pixdim"][4] = stored
    image.header.set_xyzt_units("mm", unit)
    if refused:
        with pytest.raises(DataError, match=f"sub-1.*{refused}"):
            signals.repetition_time(bold, image)
    else:
        assert signals.repetition_time(bold, image) == said
    query._files_ending.cache_clear()


def test_smoothing_equals_nilearns() -> None:
    volume = np.random.default_rng(0).normal(9, 1, (7, 8, 9)).astype(np.float32)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    theirs = smooth_img(nib.Nifti1Image(volume, affine), 6.0).get_fdata()
    np.testing.assert_allclose(signals.smoothed(volume, affine, 6.0), theirs, rtol=1e-5)
    assert signals.smoothed(volume, affine, 0.0) is volume


def test_voxels_come_back_in_their_place_and_still_ones_are_left_out(bold: Scan) -> None:
    data = nib.load(bold.path).get_fdata()
    data[0], data[1, 0, 0] = 0, 7
    write_image(bold.path, data.astype(np.float32))
    found = signals.voxels(bold, confounds="none")
    assert found.series.shape == (N, 48 - 1)
    np.testing.assert_allclose(signals.as_volume(found, found.series[3]), np.where(found.mask, data[..., 3], 0))
    write_image(bold.path, np.full((4, 4, 4, N), 3.0))
    with pytest.raises(DataError, match="sub-1.*no voxel varies"):
        signals.voxels(bold, confounds="none")
