"""The values of a map keep their unit on the common grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bids_dl import query
from bids_dl.features.md import PARAM, extract
from bids_dl.records import Scan


def test_a_known_value_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "sub-1_space-MNI152Lin_model-tensor_param-md_dwimap.nii.gz"
    scan = Scan(write_image(path, np.full((9, 11, 9), 0.0008, np.float32)), query.entities(path), tmp_path)
    feature = extract(scan)
    assert np.median(feature.values[feature.values > 0]) == pytest.approx(0.0008, rel=1e-3)
    assert (feature.unit, feature.entities["param"], PARAM) == ("mm²/s", "md", ("md",))
