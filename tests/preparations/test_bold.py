"""A raw BOLD reaches standard space; what was planted in it comes out again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from bids_dl import derivatives, motion, query, registration, signals
from bids_dl.errors import DataError
from bids_dl.preparations import bold
from bids_dl.records import Scan

N_VOLUMES = 24
SHIFT_MM = np.array([6.0, -9.0, 5.0])
"""The head lies this far from the template's place."""


def affine_of_scan() -> np.ndarray:
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-100, -140, -80)
    return affine


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Return the motion (time, 6) and the signal (time,) of one half of the brain."""
    generator = np.random.default_rng(0)
    moved = np.cumsum(generator.normal(0, [0.15] * 3 + [0.003] * 3, (N_VOLUMES, 6)), axis=0)
    return moved - moved.mean(axis=0), generator.standard_normal(N_VOLUMES)


def series_of(template: registration.Template) -> tuple[np.ndarray, np.ndarray]:
    """Paint a signal into the right half of the template's brain, and move the head."""
    moved, signal = planted()
    affine, shape = affine_of_scan(), (50, 60, 46)
    right = np.indices(template.brain.values.shape)[0] * 4 + template.brain.affine[0, 3] > 10
    centre, volumes = SHIFT_MM + [0.0, -20.0, 10.0], []
    there = np.eye(4)
    there[:3, 3] = SHIFT_MM
    for t in range(N_VOLUMES):
        back = np.linalg.inv(template.brain.affine) @ np.linalg.inv(motion.matrix(moved[t], centre) @ there) @ affine
        brain = template.brain.values * (1 + 0.005 * signal[t] * right)
        volumes.append(ndimage.affine_transform(brain, back[:3, :3], back[:3, 3], output_shape=shape, order=1))
    return (2000 * np.stack(volumes, axis=-1) / template.brain.values.max()).astype(np.int16), affine


def scan_of(values: np.ndarray, affine: np.ndarray, root: Path) -> Scan:
    path = root / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim == 4:
        image.header.set_zooms((4, 4, 4, 2.0))
    nib.save(image, path)
    path.with_name("sub-01_task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 2.0, "TaskName": "rest"}))
    return Scan(path, query.entities(path), root, prepared=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Prepare the planted series once, without a T1w."""
    root, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    derivatives.write_description(out, {"bids": root})
    return bold.prepare(scan_of(*series_of(registration.template(4)), root), None, out, resolution_mm=4)


def test_planted_motion_is_written(done: Scan) -> None:
    table = pd.read_csv(done.confounds, sep="\t", na_values=["n/a"])
    found = table[["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]].to_numpy()
    moved, _ = planted()
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(found.T, moved.T, strict=True)]
    assert min(correlations) > 0.97
    assert table["framewise_displacement"].mean() == pytest.approx(np.nanmean(motion.displacement(moved)), rel=0.15)


def test_planted_signal_lies_in_its_half_of_the_standard_brain(done: Scan) -> None:
    image = nib.load(done.path)
    values, (_, signal) = np.asarray(image.dataobj, float), planted()
    x = np.indices(image.shape[:3])[0] * 4 + image.affine[0, 3]
    inside = ndimage.binary_erosion(np.asarray(nib.load(done.mask).dataobj) > 0, iterations=2)
    right, left = values[inside & (x > 20)].mean(axis=0), values[inside & (x < -10)].mean(axis=0)
    assert np.corrcoef(right / left, signal)[0, 1] > 0.97


def test_brain_lies_on_the_templates(done: Scan) -> None:
    expected = registration.template(4).mask.values > 0
    mean = np.asarray(nib.load(done.path).dataobj, float).mean(axis=-1)
    found = mean > 0.2 * np.percentile(mean, 95)
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.93


def test_repetition_time_and_label_go_on(done: Scan) -> None:
    described = json.loads(derivatives.sidecar_path(done.path).read_text())
    assert described["RepetitionTime"] == 2.0
    assert "Minimal preparation" in described["Description"]
    assert nib.load(done.path).header.get_zooms()[3] == 2.0
    assert "without a T1w" in done.why


@pytest.mark.filterwarnings("ignore:All volumes were marked as motion outliers")  # the planted motion is large
@pytest.mark.parametrize("strategy", ["simple", "scrubbing", "compcor"])
def test_nilearn_follows_its_strategies_on_the_confounds(done: Scan, strategy: str) -> None:
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    columns, _ = load_confounds_strategy(str(done.path), denoise_strategy=strategy)
    assert len(columns) == N_VOLUMES
    assert {"trans_x_derivative1_power2"} <= set(columns)
    assert any(c.startswith("a_comp_cor_") for c in columns) == (strategy == "compcor")


def test_no_strategy_is_refused_for_lack_of_a_column(done: Scan) -> None:
    header = set(pd.read_csv(done.confounds, sep="\t", nrows=0))
    assert {c for s in ("simple", "scrubbing", "compcor") for c in signals.NEEDED[s]} <= header
    described = json.loads(derivatives.sidecar_path(done.confounds).read_text())
    assert described["a_comp_cor_00"]["Mask"] == "combined"
    assert set(described) == header


def noise_of_a_still_head() -> tuple[np.ndarray, np.ndarray, dict]:
    """Plant one noise in the template's white matter: the series, the noise (time,), the masks."""
    template = registration.template(4)
    inside = template.mask.values > 0
    generator = np.random.default_rng(3)
    noise = generator.standard_normal(60)
    series = 1000 + generator.standard_normal((60, int(inside.sum())))
    series += 2 * noise[:, None] * (template.wm.values > 0.8)[inside]
    return series, noise, bold._tissues(None, template, inside)


def test_a_noise_planted_in_white_matter_is_found_inside_the_masks_of_the_preparation() -> None:
    series, noise, tissues = noise_of_a_still_head()
    table, described = bold._confounds(np.zeros((60, 6)), series, tissues, 0.5)
    assert abs(np.corrcoef(table["a_comp_cor_00"], noise)[0, 1]) > 0.99
    assert described["w_comp_cor_00"]["VarianceExplained"] > 0.7
    assert described["c_comp_cor_00"]["VarianceExplained"] < 0.2


def test_scrubbing_removes_the_volume_of_a_jump(tmp_path: Path) -> None:
    series, _, tissues = noise_of_a_still_head()
    series[20:] += 20
    path = tmp_path / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    scan = Scan(path, query.entities(path), tmp_path)
    scan = bold._with_confounds(scan, *bold._confounds(np.zeros((60, 6)), series, tissues, 2.0))
    assert scan.confounds.name == "sub-01_task-rest_desc-confounds_timeseries.tsv"
    assert np.flatnonzero(~signals.nuisance(scan, 60, confounds="scrubbing").kept).tolist() == [20]
    assert signals.nuisance(scan, 60, confounds="compcor").columns.shape[1] > 24


def test_few_volumes_are_refused(tmp_path: Path) -> None:
    scan = scan_of(np.ones((9, 9, 9, 5), np.int16), affine_of_scan(), tmp_path)
    with pytest.raises(DataError, match="sub-01_task-rest_bold has 5 volumes"):
        bold.prepare(scan, None, tmp_path)


def test_single_volume_is_refused(tmp_path: Path) -> None:
    scan = scan_of(np.ones((9, 9, 9), np.int16), affine_of_scan(), tmp_path)
    with pytest.raises(DataError, match="sub-01_task-rest_bold has 1 volume"):
        bold.prepare(scan, None, tmp_path)


def test_empty_series_is_refused(tmp_path: Path) -> None:
    scan = scan_of(np.zeros((9, 9, 9, 12), np.int16), affine_of_scan(), tmp_path)
    with pytest.raises(DataError, match="sub-01_task-rest_bold holds the same value"):
        bold.prepare(scan, None, tmp_path)


def test_file_that_ends_early_is_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scan = scan_of(generator.integers(0, 99, (9, 9, 9, 12)).astype(np.int16), affine_of_scan(), tmp_path)
    scan.path.write_bytes(scan.path.read_bytes()[:2000])
    with pytest.raises(DataError, match="sub-01_task-rest_bold ends early"):
        bold.prepare(replace(scan), None, tmp_path)
