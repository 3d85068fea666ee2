"""Dual regression in windows follows networks that move, and in one window of the whole run is that of network maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import write_confounds, write_image

from bids_dl import derivatives, query, signals, volumes
from bids_dl.errors import DataError
from bids_dl.features import dual_regression, dynamic_network_maps, network_maps
from bids_dl.records import Scan

SHAPE, N_VOLUMES, N_NETWORKS, PERIOD = (9, 11, 9), 120, 3, 2.0
OPEN = {"confounds": "none", "high_pass_hz": 0.0, "low_pass_hz": 0.0}
FINE = {"resolution_mm": 0.0}


def painted(root: Path, *, noise: float = 0.5, n_volumes: int = N_VOLUMES) -> tuple[Scan, str, np.ndarray]:
    """Paint maps whose last network changes its place after half of the run; returns scan, template and maps of both halves."""
    generator = np.random.default_rng(0)
    maps = np.repeat(generator.gamma(1.0, size=(1, *SHAPE, N_NETWORKS)), 2, axis=0)  # (half, x, y, z, network)
    maps[1, ..., 2] = generator.gamma(1.0, size=SHAPE)
    courses = generator.standard_normal((n_volumes, N_NETWORKS))
    half = np.arange(n_volumes) * 2 // n_volumes
    values = 1000 + 10 * np.einsum("txyzn,tn->xyzt", maps[half], courses)
    values += noise * generator.standard_normal(values.shape)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    stem = root / "sub-1" / "func" / "sub-1_task-rest"
    path = write_image(Path(f"{stem}_space-MNI152Lin_desc-preproc_bold.nii.gz"), values.astype(np.float32))
    inside = write_image(Path(f"{stem}_space-MNI152Lin_desc-brain_mask.nii.gz"), mask)
    template = str(write_image(root / "atlas-Nets_probseg.nii.gz", maps.mean(axis=0).astype(np.float32)))
    return Scan(path, query.entities(path), root, mask=inside), template, maps


def mask_of(scan: Scan) -> np.ndarray:
    return signals.mask_of(scan, signals.open_bold(scan))


def test_a_network_that_moves_between_two_halves_is_where_it_was_in_each(tmp_path: Path) -> None:
    scan, template, maps = painted(tmp_path)
    inside = mask_of(scan)
    found = dynamic_network_maps.extract(scan, template=template, window_s=120, step_s=120, **OPEN, **FINE)
    assert found.values.shape == (*SHAPE, 2, N_NETWORKS)
    for half in (0, 1):
        own = found.values[inside][:, half]
        for network in range(N_NETWORKS):
            assert np.corrcoef(own[:, network], maps[half][inside][:, network])[0, 1] > 0.9
        assert abs(np.corrcoef(own[:, 2], maps[1 - half][inside][:, 2])[0, 1]) < 0.3
    assert not found.values[~inside].any()


def test_each_window_is_the_textbook_regression_of_its_volumes(tmp_path: Path) -> None:
    scan, template, _ = painted(tmp_path, noise=20.0)
    inside = mask_of(scan)
    options = {"confounds": "none", "high_pass_hz": 0.0, "low_pass_hz": 0.2}
    found = dynamic_network_maps.extract(scan, template=template, window_s=60, step_s=44, **options, **FINE)
    courses = dual_regression.extract(scan, template=template, **options).values
    voxels = signals.voxels(scan, confounds="none")
    series = signals.clean(voxels.series, voxels.taken, PERIOD, low_pass_hz=0.2)
    assert found.metadata["WindowOnsets"] == [0.0, 44.0, 88.0, 132.0, 176.0]
    for window, onset in enumerate(found.metadata["WindowOnsets"]):
        rows = slice(round(onset / PERIOD), round(onset / PERIOD) + 30)
        design = np.column_stack([courses[rows], np.ones(30)])
        own = np.array([np.linalg.lstsq(design, voxel, rcond=None)[0][:-1] for voxel in series[rows].T])
        np.testing.assert_allclose(found.values[inside][:, window], own, atol=1e-3)


def test_one_window_of_the_whole_run_gives_network_maps(tmp_path: Path) -> None:
    scan, template, _ = painted(tmp_path, noise=20.0)
    for options in (OPEN, {**OPEN, "low_pass_hz": 0.1}):
        whole = network_maps.extract(scan, template=template, **options)
        found = dynamic_network_maps.extract(
            scan, template=template, window_s=N_VOLUMES * PERIOD, step_s=10, **options, **FINE
        )
        assert found.values.shape[3] == 1
        np.testing.assert_allclose(found.values[..., 0, :], whole.values, atol=1e-3)


def test_censored_volumes_are_missing_from_their_window_and_windows_keep_their_length(tmp_path: Path) -> None:
    scan, template, _ = painted(tmp_path, noise=20.0, n_volumes=200)
    table = scan.path.with_name("sub-1_task-rest_desc-confounds_timeseries.tsv")
    write_confounds(table, 200, np.random.default_rng(1))
    given = pd.read_csv(table, sep="\t", na_values="n/a").assign(std_dvars=1.0)
    given.loc[20:31, "framewise_displacement"] = 3.0
    given.to_csv(table, sep="\t", index=False, na_rep="n/a")
    options = {"confounds": "scrubbing", "high_pass_hz": 0.0, "low_pass_hz": 0.0}
    scan = replace(scan, confounds=table)
    found = dynamic_network_maps.extract(scan, template=template, window_s=200, step_s=200, **options, **FINE)
    kept = np.setdiff1d(np.arange(200), found.metadata["CensoredVolumes"])
    assert len(kept) < 200
    assert found.metadata["WindowOnsets"] == [0.0, 200.0]
    courses = dual_regression.extract(scan, template=template, **options).values
    voxels = signals.voxels(scan, confounds="scrubbing")
    series = signals.clean(voxels.series, voxels.taken, PERIOD)
    for window in (0, 1):
        rows = (kept >= 100 * window) & (kept < 100 * window + 100)
        design = np.column_stack([courses[rows], np.ones(rows.sum())])
        own = np.linalg.lstsq(design, series[rows], rcond=None)[0][:-1].T
        np.testing.assert_allclose(found.values[mask_of(scan)][:, window], own, atol=1e-3)


def test_windows_are_brought_to_a_coarse_grid_and_written_as_one_image_with_their_times(tmp_path: Path) -> None:
    scan, template, _ = painted(tmp_path)
    options = {"template": template, "window_s": 120.4, "step_s": 59.6, **OPEN}
    fine = dynamic_network_maps.extract(scan, **options, **FINE)
    coarse = dynamic_network_maps.extract(scan, **options)
    grid, shape = volumes.template_grid(8.0)
    assert coarse.values.shape == (*shape, 3, N_NETWORKS)
    for window, network in np.ndindex(3, N_NETWORKS):
        expected = volumes.resampled(fine.values[..., window, network], fine.affine, 8.0)
        np.testing.assert_array_equal(coarse.values[..., window, network], expected)
    derivatives.write_description(tmp_path / "out", {"bids": tmp_path})
    path = derivatives.write_feature(tmp_path / "out", scan, coarse)
    assert path.name == (
        "sub-1_task-rest_space-MNI152Lin_atlas-Nets_res-8_stat-dualregression_desc-slidingwindow_boldmap.nii.gz"
    )
    image, said = nib.load(path), query.read_json(derivatives.sidecar_path(path))
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), coarse.values)
    np.testing.assert_allclose(image.affine, grid)
    assert image.header.get_zooms()[3] == 60
    assert (said["WindowDuration"], said["StepDuration"], said["WindowOnsets"]) == (120, 60, [0, 60, 120])
    assert said["Networks"] == ["network01", "network02", "network03"]


@pytest.mark.parametrize(("options", "message"), [
    ({"window_s": 241.1}, "sub-1_task-rest.* lasts 240 s, less than one window of 241.1 s; choose a shorter window_s"),
    ({"window_s": 4}, "sub-1_task-rest.*window_s is 4 and step_s 90; give at least 3 and 1 volumes of 2 s"),
    ({"window_s": 60, "step_s": 0.4}, "window_s is 60 and step_s 0.4; give at least"),
    ({"window_s": 16, "high_pass_hz": 0.01, "low_pass_hz": 0.1},
     "sub-1_task-rest.*about 3 independent values are left for 3 networks in the window from 0 s; choose a longer window_s, "
     "widen the band, choose a strategy"),
])  # fmt: skip
def test_windows_that_tell_nothing_are_refused(tmp_path: Path, options, message: str) -> None:
    scan, template, _ = painted(tmp_path)
    with pytest.raises(DataError, match=message):
        dynamic_network_maps.extract(scan, template=template, **{**OPEN, **options})
