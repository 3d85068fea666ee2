"""Correlations equal the textbook's; a derivative's matrix is taken as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from conftest import write_series
from nilearn.connectome import ConnectivityMeasure

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


def test_logarithm_is_that_of_the_shrunk_correlations(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
    series = scan(write_series(tmp_path / "sub-1_atlas-Six_timeseries.tsv", values))
    found = extract(series, kind="logarithm", shrinkage=0.2)
    expected = 0.8 * np.corrcoef(values.T) + 0.2 * np.eye(6)
    np.testing.assert_allclose(scipy.linalg.expm(found.values), expected, atol=1e-6)
    assert (found.entities["stat"], found.entities["desc"]) == ("logcorrelation", "")
    assert found.metadata["Shrinkage"] == 0.2


def test_fewer_volumes_than_regions_have_a_logarithm(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(4, 6))
    found = extract(scan(write_series(tmp_path / "sub-1_atlas-Six_timeseries.tsv", values)), kind="logarithm")
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize("shrinkage", [0.0, 1.0])
def test_shrinkage_that_leaves_no_logarithm_or_nothing_is_refused(series: tuple[Scan, ...], shrinkage: float) -> None:
    with pytest.raises(DataError, match=f"shrinkage is {shrinkage}"):
        extract(series[0], kind="logarithm", shrinkage=shrinkage)


@pytest.mark.parametrize(("kind", "theirs"), [("partial", "partial correlation"), ("covariance", "covariance")])
def test_shrunk_measures_equal_nilearns(tmp_path: Path, kind: str, theirs: str) -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal((40, 6)) @ generator.standard_normal((6, 6))
    values = (values - values.mean(axis=0)) / values.std(axis=0, ddof=1)
    found = extract(scan(write_series(tmp_path / "sub-1_atlas-Six_timeseries.tsv", values)), kind=kind, fisher_z=False)
    expected = ConnectivityMeasure(kind=theirs, standardize=False).fit_transform([values])[0]
    if kind == "partial":
        np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)


def test_a_partial_correlation_is_that_of_residuals(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4000, 4))
    values[:, 1] += values[:, 0]
    values[:, 2] += values[:, 1]
    labels = ("a", "b", "c", "d")
    path = write_series(tmp_path / "sub-1_atlas-Four_timeseries.tsv", values, labels)
    found = extract(scan(path), kind="partial", fisher_z=False).values
    for i, j in [(0, 2), (0, 1), (1, 3)]:
        rest = np.delete(values, [i, j], axis=1) - np.delete(values, [i, j], axis=1).mean(axis=0)
        pair = values[:, [i, j]] - values[:, [i, j]].mean(axis=0)
        left = pair - rest @ np.linalg.lstsq(rest, pair, rcond=None)[0]
        assert found[i, j] == pytest.approx(np.corrcoef(left.T)[0, 1], abs=0.01)
    assert abs(found[0, 2]) < 0.05 < extract(scan(path), fisher_z=False).values[0, 2]


def test_a_covariance_of_few_volumes_is_positive_definite_and_keeps_its_diagonal(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 6))
    found = extract(scan(write_series(tmp_path / "sub-1_atlas-Six_timeseries.tsv", values)), kind="covariance")
    assert np.linalg.eigvalsh(found.values).min() > 1e-3
    assert (found.entities["stat"], found.entities["desc"]) == ("covariance", "")
    assert found.metadata["ValidDiagonal"] is True
    assert "Fisher" not in found.metadata["RelationshipMeasure"]


def test_measures_are_named_and_an_unknown_one_is_refused(series: tuple[Scan, np.ndarray]) -> None:
    found = extract(series[0], kind="partial")
    assert (found.entities["stat"], found.entities["desc"]) == ("partialcorrelation", "fisherz")
    assert "partial correlation" in found.metadata["RelationshipMeasure"]
    assert (np.diag(found.values) == 0).all()
    with pytest.raises(DataError, match="sub-1.*did you mean 'partial'"):
        extract(series[0], kind="partially")
