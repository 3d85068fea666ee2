"""Modulated grey matter keeps its sum on the common grid, and is asked for where it lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.grey_matter import extract
from bids_dl.records import Scan

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = (-80, -110, -60)


def test_volume_of_grey_matter_is_kept(tmp_path: Path) -> None:
    values = np.zeros((80, 94, 76), np.float32)
    values[20:50, 30:60, 20:50] = np.random.default_rng(0).uniform(0, 1, (30, 30, 30))
    path = write_image(tmp_path / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz", values, AFFINE)
    feature = extract(Scan(path, query.entities(path), tmp_path, related={"modulated": path}))
    assert feature.values.sum() * 4**3 == pytest.approx(values.sum() * 2**3, rel=0.01)
    assert feature.entities["label"] == "GM"


def test_scan_without_the_map_is_named(tmp_path: Path) -> None:
    path = write_image(tmp_path / "sub-1_space-MNI152Lin_desc-preproc_T1w.nii.gz", np.ones((9, 9, 9)))
    with pytest.raises(DataError, match="sub-1.*no modulated grey matter"):
        extract(Scan(path, query.entities(path), tmp_path))
