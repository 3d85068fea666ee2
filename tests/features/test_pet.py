"""Ratios of uptake keep their size on the common grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bids_dl import query
from bids_dl.features.pet import extract
from bids_dl.records import Scan


def test_a_known_ratio_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "sub-1_space-MNI152Lin_desc-preproc_pet.nii.gz"
    scan = Scan(write_image(path, np.full((9, 11, 9), 1.4, np.float32)), query.entities(path), tmp_path)
    feature = extract(scan)
    assert np.median(feature.values[feature.values > 0]) == pytest.approx(1.4, rel=1e-3)
    assert (feature.unit, feature.entities["desc"]) == ("SUVR", "suvr")
