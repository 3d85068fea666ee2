"""Slices are cut where they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bids_dl import query, volumes
from bids_dl.errors import DataError
from bids_dl.features.slices import extract
from bids_dl.records import Scan


@pytest.fixture
def brain(tmp_path: Path) -> Scan:
    values = np.random.default_rng(0).normal(100, 4, (9, 11, 9)).astype(np.float32)
    path = write_image(tmp_path / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz", values)
    return Scan(path, query.entities(path), tmp_path)


@pytest.mark.parametrize(("axis", "number", "left"), [("axial", 2, ("x", "y")), ("sagittal", 0, ("y", "z"))])
def test_a_slice_is_the_volumes_own(brain: Scan, axis: str, number: int, left: tuple[str, str]) -> None:
    feature = extract(brain, axis=axis, n_slices=5, resolution_mm=4)
    whole = volumes.resampled(*volumes.standardised(brain), 4)
    at = feature.metadata["SliceIndices"]
    np.testing.assert_array_equal(feature.values, np.moveaxis(whole, number, 0)[at])
    assert feature.dims == ("slice", *left)
    assert len(set(at)) == 5


def test_unknown_axis_is_named(brain: Scan) -> None:
    with pytest.raises(DataError, match="axis is 'oblique'; choose from sagittal, coronal, axial"):
        extract(brain, axis="oblique")
