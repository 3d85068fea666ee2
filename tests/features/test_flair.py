"""A FLAIR is standardised inside its mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import write_image

from bids_dl import query
from bids_dl.features.flair import extract
from bids_dl.records import Scan


def test_scale_and_offset_of_the_scanner_do_not_matter(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(100, 4, (9, 11, 9)).astype(np.float32)
    path = tmp_path / "sub-1_space-MNI152Lin_desc-preproc_FLAIR.nii.gz"
    first = extract(Scan(write_image(path, volume), query.entities(path), tmp_path))
    again = extract(Scan(write_image(path, 7 * volume + 50), query.entities(path), tmp_path))
    np.testing.assert_allclose(again.values, first.values, atol=1e-3)
    assert (first.suffix, first.entities["desc"]) == ("FLAIR", "brain")
