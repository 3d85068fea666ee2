"""Windowed correlations equal the textbook's, window by window and edge by edge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import REGIONS, write_series

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.dynamic_connectivity import extract, weights
from bids_dl.records import Scan

UPPER = np.triu_indices(6, 1)


def scan(values: np.ndarray, folder: Path) -> Scan:
    path = write_series(folder / "sub-1_task-rest_atlas-Six_timeseries.tsv", values)
    return Scan(path, query.entities(path), folder)


@pytest.fixture
def series() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.standard_normal((50, 6)) @ generator.standard_normal((6, 6)) + 3


def weighted(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """Correlate two series with weights, as the definition says."""
    total = weight.sum()
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    covariance = (weight * (x - mean_x) * (y - mean_y)).sum()
    return covariance / np.sqrt((weight * (x - mean_x) ** 2).sum() * (weight * (y - mean_y) ** 2).sum())


@pytest.mark.parametrize(("step", "taper_sd"), [(1, 0.0), (1, 3.0), (7, 2.0)])
def test_each_window_equals_the_weighted_definition(
    tmp_path: Path, series: np.ndarray, step: int, taper_sd: float
) -> None:
    found = extract(scan(series, tmp_path), window=20, step=step, taper_sd=taper_sd, fisher_z=False)
    starts = range(0, 50 - 20 + 1, step)
    weight = weights(20, taper_sd)
    slow = [
        [weighted(series[s : s + 20, i], series[s : s + 20, j], weight) for i, j in zip(*UPPER, strict=True)]
        for s in starts
    ]
    np.testing.assert_allclose(found.values, slow, atol=1e-6)
    assert found.values.dtype == np.float32
    assert found.labels[:2] == ("A~B", "A~C")
    assert found.labels[-1] == "E~F"


def test_the_rectangle_equals_numpy_and_fisher_z_is_its_arctanh(tmp_path: Path, series: np.ndarray) -> None:
    found = extract(scan(series, tmp_path), window=50, taper_sd=0.0)
    np.testing.assert_allclose(found.values, np.arctanh(np.corrcoef(series.T)[UPPER])[None], atol=1e-4)


def test_the_taper_is_a_rectangle_convolved_with_a_gaussian() -> None:
    wide = np.convolve(np.ones(30), np.exp(-0.5 * (np.arange(-40, 41) / 3.0) ** 2))[40:70]
    np.testing.assert_allclose(weights(30, 3.0), wide / wide.sum())
    assert weights(30, 3.0)[0] / weights(30, 3.0)[15] == pytest.approx(0.57, abs=0.02)
    np.testing.assert_allclose(weights(30, 0.0), 1 / 30)


def test_a_planted_change_of_sign_is_found(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    values = generator.standard_normal((200, 6))
    values[:100, 1] = values[:100, 0] + 0.1 * values[:100, 1]
    values[100:, 1] = -values[100:, 0] + 0.1 * values[100:, 1]
    edge = extract(scan(values, tmp_path), fisher_z=False).values[:, 0]
    assert (edge[:60] > 0.95).all()
    assert (edge[110:] < -0.95).all()


def test_regions_without_signal_are_edges_of_nothing(tmp_path: Path, series: np.ndarray) -> None:
    series[:, 2] = np.nan
    series[:25, 4] = 7.0
    found = extract(scan(series, tmp_path), window=20)
    lost = np.array(["C" in label for label in found.labels])
    assert np.isnan(found.values[:, lost]).all()
    late = np.array(["E" in label for label in found.labels]) & ~lost
    assert np.isnan(found.values[:6, late]).all()
    assert np.isfinite(found.values[6:, ~lost]).all()


def test_equal_regions_stay_finite(tmp_path: Path) -> None:
    values = np.repeat(np.random.default_rng(0).standard_normal((40, 1)), len(REGIONS), axis=1)
    assert np.isfinite(extract(scan(values, tmp_path)).values).all()


def test_the_windows_are_described_in_volumes_and_seconds(tmp_path: Path, series: np.ndarray) -> None:
    metadata = extract(scan(series, tmp_path), window=20, step=5).metadata
    assert (metadata["WindowVolumes"], metadata["WindowDuration"], metadata["StepDuration"]) == (20, 40.0, 10.0)


def test_censored_volumes_keep_their_place_and_have_no_weight(tmp_path: Path, series: np.ndarray) -> None:
    """Windows went on over the gap, as if what lies before and after it were neighbours."""
    censored = [10, *range(25, 40)]
    one = scan(np.delete(series, censored, axis=0), tmp_path)
    said = {"RepetitionTime": 2.0, "CensoredVolumes": censored}
    one.path.with_suffix(".json").write_text(json.dumps(said))
    found = extract(one, window=20, taper_sd=2.0, fisher_z=False)
    weight = weights(20, 2.0) * ~np.isin(np.arange(31)[:, None] + np.arange(20), censored)
    assert found.values.shape[0] == 31
    kept = weight.sum(axis=1) >= 0.5
    assert kept[[0, 5, 30]].all()
    assert not kept[20]
    for start in range(31):
        part = np.nan_to_num(series[start : start + 20])
        slow = [weighted(part[:, i], part[:, j], weight[start]) for i, j in zip(*UPPER, strict=True)]
        np.testing.assert_allclose(found.values[start], slow if kept[start] else np.full(15, np.nan), atol=1e-5)
    few = scan(series[:4], tmp_path / "few")
    few.path.with_suffix(".json").write_text(json.dumps({**said, "CensoredVolumes": list(range(4, 50))}))
    with pytest.raises(DataError, match="sub-1.*censoring leaves no window of 20 volumes half of its weight"):
        extract(few, window=20)


def test_a_short_run_a_strange_window_and_still_regions_are_named(tmp_path: Path, series: np.ndarray) -> None:
    with pytest.raises(DataError, match="sub-1.*50 volumes for a window of 60"):
        extract(scan(series, tmp_path), window=60)
    with pytest.raises(DataError, match="step 0"):
        extract(scan(series, tmp_path), step=0)
    with pytest.raises(DataError, match="sub-1.*0 of 6 regions vary"):
        extract(scan(np.ones((50, 6)), tmp_path))
