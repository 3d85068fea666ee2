"""What every volume goes through before it lies on the common grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import AFFINE, write_image

from bids_dl import query, volumes
from bids_dl.errors import DataError
from bids_dl.records import Scan


def scan(root: Path, values: np.ndarray, mask_affine: np.ndarray = AFFINE) -> Scan:
    path = write_image(root / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz", values)
    mask = write_image(root / "mask.nii.gz", np.ones(values.shape, np.uint8), mask_affine)
    return Scan(path, query.entities(path), root, mask=mask)


def test_mask_that_is_shifted_by_one_voxel_is_refused(tmp_path: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] += 20
    with pytest.raises(DataError, match="sub-1.*20.0 mm apart"):
        volumes.standardised(scan(tmp_path, np.random.default_rng(0).normal(size=(9, 11, 9)), shifted))


def test_all_zero_image_is_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "sub-1_T1w.nii.gz", np.zeros((9, 11, 9)))
    with pytest.raises(DataError, match="sub-1_T1w is empty"):
        volumes.quantity(Scan(path, query.entities(path), tmp_path))


def test_quantity_is_not_rescaled(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.8, (9, 11, 9)).astype(np.float32)
    read, affine = volumes.quantity(scan(tmp_path, values))
    np.testing.assert_allclose(read, values)
    np.testing.assert_allclose(affine, AFFINE)


def test_four_dimensions_are_refused(tmp_path: Path) -> None:
    path = write_image(tmp_path / "sub-1_T1w.nii.gz", np.ones((4, 4, 4, 3)))
    with pytest.raises(DataError, match="sub-1_T1w has 4 dimensions"):
        volumes.load(path, "sub-1_T1w")


def test_damaged_mask_is_named(tmp_path: Path) -> None:
    one = scan(tmp_path, np.random.default_rng(0).normal(size=(9, 11, 9)))
    assert one.mask is not None
    one.mask.write_bytes(one.mask.read_bytes()[:40])
    with pytest.raises(DataError, match=r"sub-1.*: its mask mask.nii.gz ends early or is damaged"):
        volumes.quantity(one)
