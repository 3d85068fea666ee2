"""A raw T1w is centred, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.t1w import extract
from bids_dl.preparations.t1w import TEMPLATE_CENTRE_MM, prepare
from bids_dl.records import Scan


def test_the_brain_is_moved_to_the_templates_centre_and_said_to_be_unregistered(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (300, -500, 40)
    volume = np.zeros((60, 70, 60), np.float32)
    volume[15:45, 20:50, 15:45] = np.random.default_rng(0).normal(100, 5, (30, 30, 30))
    path = write_image(tmp_path / "sub-1_T1w.nii.gz", volume, affine)
    scan = Scan(path, query.entities(path), tmp_path, prepared=False)
    feature = extract(scan)
    assert feature.affine is not None
    inside = np.argwhere(feature.values != 0).mean(axis=0)
    assert np.abs((feature.affine @ np.append(inside, 1))[:3] - TEMPLATE_CENTRE_MM).max() < 4
    assert feature.entities["desc"] == "centred"
    assert "NOT registered" in feature.metadata["Description"]


def test_an_empty_image_is_named(tmp_path: Path) -> None:
    path = write_image(tmp_path / "sub-1_T1w.nii.gz", np.zeros((5, 5, 5)))
    with pytest.raises(DataError, match="sub-1_T1w is all zero"):
        prepare(Scan(path, query.entities(path), tmp_path, prepared=False), None, tmp_path)
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="damaged"):
        prepare(Scan(path, query.entities(path), tmp_path, prepared=False), None, tmp_path)
