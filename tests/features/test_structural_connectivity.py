"""Streamlines join what a planted bundle joins, whatever the axes of the image, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from scipy.spatial.transform import Rotation

from bids_dl import derivatives, query
from bids_dl.errors import DataError
from bids_dl.features import structural_connectivity
from bids_dl.records import Scan

MNI = np.diag([4.0, 4.0, 4.0, 1.0])
MNI[:3, 3] = -60
ALONG = np.array([0.6, 0.64, 0.48])
AWAY_MM = np.array([20.0, -12.0, 5.0])
"""Where the head lies in the scanner, from where the template does."""


def at(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    return np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def atlas(root: Path) -> Path:
    """Write three balls: two at the ends of the bundle, one beside it."""
    places, labels = at((31, 31, 31), MNI), np.zeros((31, 31, 31), np.int16)
    for number, centre in enumerate((-40 * ALONG, 40 * ALONG, np.array([30, -40, 0])), start=1):
        labels[np.linalg.norm(places - centre, axis=-1) < 13] = number
    path = write_image(root / "atlas-Balls_dseg.nii.gz", labels, MNI)
    path.with_name("atlas-Balls_dseg.tsv").write_text("index\tname\n1\tSouth\n2\tNorth\n3\tBeside\n")
    return path


def prepared(root: Path, *, turned: float = 0.0, bundle: bool = True, across: bool = False) -> Scan:
    """Write the maps of a straight bundle, away from the template, on a grid that may be turned against the world."""
    import ants

    affine = np.eye(4)
    affine[:3, :3] = 2.5 * Rotation.from_rotvec(turned * np.array([0.3, -0.2, 1.0])).as_matrix()
    affine[:3, 3] = affine[:3, :3] @ np.full(3, -24.5) + AWAY_MM
    places = at((50, 50, 50), affine) - AWAY_MM
    beside = np.linalg.norm(places - (places @ ALONG)[..., None] * ALONG, axis=-1)
    fa = np.where((beside < 8) & (np.abs(places @ ALONG) < 34), 0.8, 0.0).astype(np.float32) * bundle
    direction = np.array([0.8, -0.48, -0.36]) if across else ALONG
    evec = np.where(fa[..., None] > 0, direction, 0).astype(np.float32)
    folder = root / "sub-1" / "dwi"
    related = {
        "fa_native": write_image(folder / "sub-1_param-fa_dwimap.nii.gz", fa, affine),
        "evec_native": write_image(folder / "sub-1_param-evec_dwimap.nii.gz", evec, affine),
        "fa": write_image(folder / "sub-1_space-MNI_param-fa_dwimap.nii.gz", np.zeros((31, 31, 31), np.float32), MNI),
        "from_standard": derivatives.write_json(folder / "way.json", {"Transforms": ["way.mat"], "Invert": [True]}),
    }
    way = ants.create_ants_transform(transform_type="AffineTransform", translation=tuple(AWAY_MM * [-1, -1, 1]))
    ants.write_transform(way, str(folder / "way.mat"))
    path = write_image(folder / "sub-1_desc-preproc_dwi.nii.gz", np.ones((2, 2, 2, 7), np.float32))
    return Scan(path, query.entities(path), root, related=related)


@pytest.mark.parametrize("turned", [0.0, 0.5])
def test_a_bundle_joins_the_regions_at_its_ends_on_any_axes(tmp_path: Path, turned: float) -> None:
    found = structural_connectivity.extract(prepared(tmp_path, turned=turned), atlas=str(atlas(tmp_path)), n_seeds=1000)
    assert found.labels == ("South", "North", "Beside")
    assert found.values[0, 1] == found.values[1, 0] > 700
    assert found.values.sum() == 2 * found.values[0, 1]
    assert found.metadata["NumberOfStreamlines"] == found.values[0, 1]


def test_the_same_seed_gives_the_same_counts(tmp_path: Path) -> None:
    scan, balls = prepared(tmp_path, turned=0.2), str(atlas(tmp_path))
    first, again, other = (
        structural_connectivity.extract(scan, atlas=balls, n_seeds=400, reach_mm=1.0, seed=s).values for s in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_region_outside_of_the_image_is_missing_not_unconnected(tmp_path: Path) -> None:
    balls = atlas(tmp_path)
    scan = prepared(tmp_path)
    fa, evec = (structural_connectivity._image(scan, role) for role in ("fa_native", "evec_native"))
    for role, image in (("fa_native", fa), ("evec_native", evec)):
        write_image(scan.related[role], image.values[:, 18:], image.affine @ shifted(18))
    values = structural_connectivity.extract(scan, atlas=str(balls), n_seeds=1000, min_length_mm=5.0).values
    assert np.isnan(values[2]).all() and np.isnan(values[:, 2]).all() and values[0, 1] > 100


def shifted(voxels: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[1, 3] = voxels
    return matrix


def test_directions_across_the_bundle_join_nothing_and_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-1_desc-preproc_dwi: 0 streamlines join two regions"):
        structural_connectivity.extract(prepared(tmp_path, across=True), atlas=str(atlas(tmp_path)), n_seeds=500)


def test_a_brain_without_white_matter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of 0 followed"):
        structural_connectivity.extract(prepared(tmp_path, bundle=False), atlas=str(atlas(tmp_path)))


def test_a_dwi_that_is_not_prepared_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-1_desc-preproc_dwi has no fa and no fa_native"):
        structural_connectivity.extract(replace(prepared(tmp_path), related={}))


def test_a_damaged_map_is_named(tmp_path: Path) -> None:
    scan = prepared(tmp_path)
    scan.related["fa_native"].write_bytes(scan.related["fa_native"].read_bytes()[:400])
    with pytest.raises(DataError, match="its fa_native cannot be read"):
        structural_connectivity.extract(scan, atlas=str(atlas(tmp_path)))
