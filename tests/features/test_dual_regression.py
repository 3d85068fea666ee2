"""Dual regression gives back the courses and the maps that a BOLD was painted from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import AFFINE, write_confounds, write_image

from bids_dl import query, signals, volumes
from bids_dl.errors import DataError, MissingInputError
from bids_dl.features import dual_regression, network_maps
from bids_dl.records import Scan

SHAPE, N_VOLUMES, N_NETWORKS = (9, 11, 9), 80, 4
OPEN = {"confounds": "none", "high_pass_hz": 0.0, "low_pass_hz": 0.0}


def painted(root: Path, *, noise: float = 0.5) -> tuple[Scan, np.ndarray, np.ndarray]:
    """Paint overlapping maps (x, y, z, network) with known courses (time, network) into a BOLD with a mask."""
    generator = np.random.default_rng(0)
    maps = generator.gamma(1.0, size=(*SHAPE, N_NETWORKS))
    courses = generator.standard_normal((N_VOLUMES, N_NETWORKS)) @ generator.normal(1, 0.5, (N_NETWORKS, N_NETWORKS))
    values = 1000 + 10 * (maps @ courses.T) + noise * generator.standard_normal((*SHAPE, N_VOLUMES))
    values += 500 * generator.standard_normal(N_VOLUMES)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    stem = root / "sub-1" / "func" / "sub-1_task-rest"
    path = write_image(Path(f"{stem}_space-MNI152Lin_desc-preproc_bold.nii.gz"), values.astype(np.float32))
    inside = write_image(Path(f"{stem}_space-MNI152Lin_desc-brain_mask.nii.gz"), mask)
    return Scan(path, query.entities(path), root, mask=inside), maps, courses


def template_of(root: Path, maps: np.ndarray) -> str:
    return str(write_image(root / "atlas-Nets_probseg.nii.gz", maps.astype(np.float32)))


def alike(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Correlate columns pairwise."""
    n = true.shape[1]
    return np.diag(np.corrcoef(found.T, true.T)[:n, n:])


def test_courses_and_maps_that_were_painted_come_back(tmp_path: Path) -> None:
    scan, maps, courses = painted(tmp_path)
    template = template_of(tmp_path, maps)
    series = dual_regression.extract(scan, template=template, **OPEN)
    own = network_maps.extract(scan, template=template, **OPEN)
    inside = signals.mask_of(scan, signals.open_bold(scan))
    assert series.values.shape == (N_VOLUMES, N_NETWORKS)
    assert alike(series.values, signals.clean(courses, _nothing(), 2.0)).min() > 0.999
    assert alike(own.values[inside], maps[inside]).min() > 0.99
    assert not own.values[~inside].any()


def _nothing() -> signals.Nuisance:
    return signals.Nuisance(np.zeros((N_VOLUMES, 0)), np.ones(N_VOLUMES, bool))


def test_a_map_holds_the_amplitude_of_its_network(tmp_path: Path) -> None:
    scan, maps, courses = painted(tmp_path, noise=0.0)
    own = network_maps.extract(scan, template=template_of(tmp_path, maps), **OPEN)
    inside = signals.mask_of(scan, signals.open_bold(scan))
    amplitude = 10 * signals.clean(courses, _nothing(), 2.0).std(axis=0, ddof=1)
    centred = maps[inside] - maps[inside].mean(axis=0)
    found = own.values[inside] - own.values[inside].mean(axis=0)
    slope = (found * centred).sum(axis=0) / (centred**2).sum(axis=0)
    assert np.allclose(slope, amplitude, rtol=0.02)


def test_both_steps_are_the_textbook_regressions(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path, noise=20.0)
    template = template_of(tmp_path, maps)
    inside = signals.mask_of(scan, signals.open_bold(scan))
    data = signals.voxels(scan, confounds="none").series.astype(np.float64)
    design = np.column_stack([maps[inside].astype(np.float32), np.ones(inside.sum())])
    courses = np.array([np.linalg.lstsq(design, volume, rcond=None)[0][:-1] for volume in data])
    time = np.column_stack([np.ones(N_VOLUMES), np.arange(N_VOLUMES)])
    courses -= time @ np.linalg.lstsq(time, courses, rcond=None)[0]
    courses /= courses.std(axis=0, ddof=1)
    own = np.array([np.linalg.lstsq(np.column_stack([courses, time]), voxel, rcond=None)[0][:-2] for voxel in data.T])
    assert np.allclose(dual_regression.extract(scan, template=template, **OPEN).values, courses, atol=1e-4)
    assert np.allclose(network_maps.extract(scan, template=template, **OPEN).values[inside], own, atol=1e-3)


def test_maps_are_brought_to_the_grid_of_other_volumes_where_that_is_asked(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path)
    template = template_of(tmp_path, maps)
    fine = network_maps.extract(scan, template=template, **OPEN)
    coarse = network_maps.extract(scan, template=template, resolution_mm=12.0, **OPEN)
    grid, shape = volumes.template_grid(12.0)
    assert coarse.values.shape == (*shape, fine.values.shape[3])
    np.testing.assert_array_equal(coarse.affine, grid)
    for network in range(fine.values.shape[3]):
        expected = volumes.resampled(fine.values[..., network], fine.affine, 12.0)
        np.testing.assert_array_equal(coarse.values[..., network], expected)
    assert np.abs(coarse.values).max() > 0
    assert coarse.entities["res"] == "12"
    assert coarse.metadata["Resolution"] == "12 mm isotropic"
    assert "res" not in fine.entities


def test_confounds_leave_the_courses_and_are_counted(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path)
    table = scan.path.with_name("sub-1_task-rest_desc-confounds_timeseries.tsv")
    write_confounds(table, N_VOLUMES, np.random.default_rng(1))
    found = dual_regression.extract(
        replace(scan, confounds=table),
        template=template_of(tmp_path, maps),
        confounds="motion",
        high_pass_hz=0,
        low_pass_hz=0,
    )
    columns = signals.nuisance(replace(scan, confounds=table), N_VOLUMES, confounds="motion").columns
    assert found.metadata["NumberOfConfounds"] == columns.shape[1] == 24
    assert found.metadata["MeanFramewiseDisplacement"] == 0.25
    detrended = signals.clean(columns, _nothing(), 2.0)
    assert np.abs(np.corrcoef(found.values.T, detrended.T)[:N_NETWORKS, N_NETWORKS:]).max() < 1e-6


def test_the_name_says_which_networks_and_how(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path)
    template = template_of(tmp_path, maps)
    series = dual_regression.extract(scan, template=template, **OPEN)
    assert series.entities == {"atlas": "Nets", "stat": "dualregression", "desc": ""}
    assert series.labels == ("network01", "network02", "network03", "network04")
    assert network_maps.extract(scan, template=template, **OPEN).suffix == "boldmap"


def test_networks_that_were_fitted_serve_where_no_template_is_named(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path)
    fitted = replace(scan, related={"networks": Path(template_of(tmp_path, maps))})
    assert dual_regression.extract(fitted, **OPEN).labels[0] == "network01"
    with pytest.raises(DataError, match="sub-1_task-rest.*no networks to look for"):
        dual_regression.extract(scan, **OPEN)


def test_a_scan_without_a_mask_is_confined_to_the_brain(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path)
    own = network_maps.extract(replace(scan, mask=None), template=template_of(tmp_path, maps), **OPEN)
    assert own.values[4, 5, 4].all()
    assert not own.values[0, 0, 0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[..., 0], "has 3 dimensions"),
        (lambda m: m[..., [0, 1, 2, 0]], "network01, network04 of atlas-Nets_probseg.nii.gz are collinear"),
        (lambda m: m * [1, 1, 0, 1], "no voxel of network03"),
    ],
)
def test_maps_that_cannot_be_told_apart_are_named(tmp_path: Path, change, message: str) -> None:
    scan, maps, _ = painted(tmp_path)
    with pytest.raises(DataError, match=message):
        dual_regression.extract(scan, template=template_of(tmp_path, change(maps)), **OPEN)


def test_a_template_elsewhere_in_space_is_refused(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path)
    away = AFFINE.copy()
    away[:3, 3] += 1000
    path = write_image(tmp_path / "away.nii.gz", maps.astype(np.float32), away)
    with pytest.raises(DataError, match="sub-1_task-rest.* has no voxel of network01"):
        dual_regression.extract(scan, template=str(path), **OPEN)


def test_a_template_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="nowhere.nii.gz does not exist"):
        dual_regression.extract(painted(tmp_path)[0], template="nowhere.nii.gz", **OPEN)


def test_a_band_too_narrow_for_the_networks_is_refused(tmp_path: Path) -> None:
    scan, maps, _ = painted(tmp_path)
    with pytest.raises(DataError, match="sub-1_task-rest.*about 3 independent values are left for 4 networks"):
        network_maps.extract(
            scan, template=template_of(tmp_path, maps), confounds="none", high_pass_hz=0.01, low_pass_hz=0.02
        )
