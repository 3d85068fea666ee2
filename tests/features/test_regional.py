"""Regional means are those of a loop over voxels; what was not measured does not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import AFFINE, write_image

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.regional import extract
from bids_dl.records import Scan

LABELS = np.zeros((6, 6, 6), np.int16)
LABELS[:3, :3], LABELS[3:, :3], LABELS[:3, 3:] = 2, 5, 7


@pytest.fixture
def atlas(tmp_path: Path) -> str:
    (tmp_path / "three.tsv").write_text("index\tname\n2\ta\n5\tb\n7\tc\n")
    return str(write_image(tmp_path / "three.nii.gz", LABELS))


def scan(folder: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Scan:
    path = folder / "sub-1" / "func" / "sub-1_task-rest_space-MNI152Lin_res-2_stat-alff_boldmap.nii.gz"
    write_image(path, values.astype(np.float32), affine)
    return Scan(path, query.entities(path), folder)


def test_means_equal_a_loop_over_voxels(tmp_path: Path, atlas: str) -> None:
    values = np.random.default_rng(0).random((6, 6, 6)).astype(np.float32)
    values[0, 0, 0], values[0, 0, 1] = 0, np.nan
    found = extract(scan(tmp_path, values), atlas=atlas)
    slow = [np.mean([v for v in values[number == LABELS] if np.isfinite(v) and v != 0]) for number in (2, 5, 7)]
    np.testing.assert_allclose(found.values, slow, rtol=1e-6)
    assert found.labels == ("a", "b", "c")
    assert (found.dims, found.suffix, found.entities["atlas"]) == (("roi",), "regions", "Three")
    assert "stat" not in found.entities


def test_a_region_that_is_hardly_covered_is_not_a_number(tmp_path: Path, atlas: str) -> None:
    values = np.ones((6, 6, 6))
    values[:2, :3] = 0
    found = extract(scan(tmp_path, values), atlas=atlas)
    assert np.isnan(found.values).tolist() == [True, False, False]
    assert np.isfinite(extract(scan(tmp_path, values), atlas=atlas, min_coverage=0.3).values).all()


def test_a_map_elsewhere_and_one_with_time_are_named(tmp_path: Path, atlas: str) -> None:
    far = AFFINE.copy()
    far[:3, 3] = 900
    with pytest.raises(DataError, match="sub-1.*covers no region.*MNI"):
        extract(scan(tmp_path, np.ones((6, 6, 6)), far), atlas=atlas)
    with pytest.raises(DataError, match="sub-1.*4 dimensions"):
        extract(scan(tmp_path, np.ones((6, 6, 6, 2))), atlas=atlas)
