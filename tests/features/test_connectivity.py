"""Correlations equal the textbook's; a derivative's matrix is taken as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_series

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.connectivity import extract
from bids_dl.records import Scan


def scan(path: Path) -> Scan:
    return Scan(path, query.entities(path), path.parent)


@pytest.fixture
def series(tmp_path: Path) -> tuple[Scan, np.ndarray]:
    values = np.random.default_rng(0).standard_normal((30, 6)) @ np.random.default_rng(1).standard_normal((6, 6))
    return scan(write_series(tmp_path / "sub-1_atlas-Six_timeseries.tsv", values)), values


def test_fisher_z_of_pearson_equals_numpy(series: tuple[Scan, np.ndarray]) -> None:
    found = extract(series[0])
    expected = np.arctanh(np.corrcoef(series[1].T) - np.eye(6))
    np.testing.assert_allclose(found.values, expected, atol=1e-10)
    np.testing.assert_allclose(np.tanh(found.values), extract(series[0], fisher_z=False).values, atol=1e-12)


def test_still_region_is_a_row_and_a_column_of_nothing(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((30, 6))
    values[:, 1] = np.nan
    found = extract(scan(write_series(tmp_path / "sub-1_atlas-Six_timeseries.tsv", values))).values
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    assert np.isfinite(np.delete(np.delete(found, 1, 0), 1, 1)).all()


def test_equal_regions_stay_finite(tmp_path: Path) -> None:
    values = np.repeat(np.random.default_rng(0).standard_normal((30, 1)), 6, axis=1)
    assert np.isfinite(extract(scan(write_series(tmp_path / "sub-1_atlas-Six_timeseries.tsv", values))).values).all()


@pytest.mark.parametrize("directed", [True, False])
def test_a_matrix_is_taken_as_it_is(tmp_path: Path, directed: bool) -> None:
    values = np.random.default_rng(0).random((6, 6))
    values = values if directed else values + values.T
    found = extract(scan(write_series(tmp_path / "sub-1_atlas-Six_stat-fa_relmat.tsv", values)))
    np.testing.assert_allclose(found.values, values)
    assert found.metadata["Directed"] is directed
    assert found.entities["stat"] == "fa"


def test_a_matrix_that_is_not_square_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="5×6"):
        extract(scan(write_series(tmp_path / "sub-1_atlas-Six_relmat.tsv", np.ones((5, 6)))))
    with pytest.raises(DataError, match="no number"):
        extract(scan(write_series(tmp_path / "sub-1_atlas-Six_relmat.tsv", np.full((6, 6), np.nan))))
