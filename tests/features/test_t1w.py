"""A brain lands where it should on the template's grid, standardised inside its mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.t1w import extract
from bids_dl.records import Scan
from bids_dl.volumes import template_grid

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-80, -110, -60)
PLACE_MM = (20, -30, 14)


def head(path: Path, *, affine: np.ndarray = AFFINE) -> Scan:
    volume = np.random.default_rng(0).normal(100, 4, (80, 94, 76)).astype(np.float32)
    at = np.rint(np.linalg.inv(affine) @ [*PLACE_MM, 1])[:3].astype(int)
    volume[tuple(slice(a - 3, a + 4) for a in at)] += 200
    mask = np.zeros(volume.shape, np.uint8)
    mask[6:-6, 6:-6, 6:-6] = 1
    write_image(path, volume, affine)
    return Scan(path, query.entities(path), path.parent, mask=write_image(path.with_name("mask.nii.gz"), mask, affine))


@pytest.mark.parametrize("resolution_mm", [4.0, 3.0])
def test_a_bright_place_stays_where_it_is_in_mm(tmp_path: Path, resolution_mm: float) -> None:
    feature = extract(head(tmp_path / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz"), resolution_mm=resolution_mm)
    brightest = np.array(np.unravel_index(feature.values.argmax(), feature.values.shape))
    assert feature.affine is not None
    place = (feature.affine @ np.append(brightest, 1))[:3]
    assert np.abs(place - PLACE_MM).max() <= resolution_mm
    assert feature.entities["res"] == f"{resolution_mm:g}"
    assert feature.metadata["SkullStripped"] is True


def test_values_are_standardised_in_the_brain_and_blank_outside(tmp_path: Path) -> None:
    values = extract(head(tmp_path / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz")).values
    assert values[0, 0, 0] == 0
    assert abs(float(values[values != 0].mean())) < 0.1


def test_scale_and_offset_of_the_scanner_do_not_matter(tmp_path: Path) -> None:
    one = head(tmp_path / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz")
    first = extract(one).values
    import nibabel as nib

    write_image(one.path, (7 * nib.load(one.path).get_fdata() + 50).astype(np.float32), AFFINE)
    np.testing.assert_allclose(extract(one).values, first, atol=1e-3)


def test_the_grid_covers_the_template() -> None:
    affine, shape = template_grid(2.0)
    corner = affine @ [*shape, 1]
    assert shape == (90, 108, 90)
    np.testing.assert_allclose(corner[:3], [90, 90, 108])


def test_masks_on_another_grid_and_empty_brains_are_named(tmp_path: Path) -> None:
    one = head(tmp_path / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz")
    assert one.mask is not None
    write_image(one.mask, np.ones((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="one grid"):
        extract(one)
    write_image(one.mask, np.ones((80, 94, 76), np.uint8))
    write_image(one.path, np.full((80, 94, 76), 5.0))
    with pytest.raises(DataError, match="sub-1.*constant"):
        extract(one)
    one.path.write_bytes(one.path.read_bytes()[:400])
    with pytest.raises(DataError, match="damaged"):
        extract(one)
