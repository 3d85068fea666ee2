"""The ratio is the spectrum's own, near 1 for a slow wave, near 0 for a fast one, the band's share for noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_confounds, write_image
from scipy.signal import detrend

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.falff import extract
from bids_dl.records import Scan

N, PERIOD = 100, 2.0


def scan(folder: Path, values: np.ndarray) -> Scan:
    path = folder / "sub-1" / "func" / "sub-1_task-rest_space-MNI152Lin_desc-preproc_bold.nii.gz"
    write_image(path, values.astype(np.float32))
    return Scan(path, query.entities(path), folder)


def noise(shape: tuple[int, ...] = (4, 5, 3, N)) -> np.ndarray:
    return np.random.default_rng(0).normal(1000, 10, shape)


def textbook(series: np.ndarray) -> float:
    """Divide two sums of amplitudes, one frequency after another."""
    inside = whole = 0.0
    for k in range(1, N // 2 + 1):
        frequency = k / (N * PERIOD)
        amplitude = abs((series * np.exp(-2j * np.pi * frequency * np.arange(N) * PERIOD)).sum())
        whole += amplitude
        inside += amplitude if 0.01 <= frequency <= 0.1 else 0.0
    return inside / whole


def test_it_equals_the_textbook_voxel_by_voxel(tmp_path: Path) -> None:
    values = noise()
    found = extract(scan(tmp_path, values), confounds="none").values
    slow = np.apply_along_axis(lambda v: textbook(detrend(v.astype(np.float32).astype(float))), 3, values)
    np.testing.assert_allclose(found, slow, rtol=1e-4)


def test_slow_and_fast_waves_are_told_apart(tmp_path: Path) -> None:
    values, time = noise(), np.arange(N) * PERIOD
    values[2, 2, 1] = 1000 + 10 * np.sin(2 * np.pi * 0.05 * time)
    values[3, 3, 1] = 1000 + 10 * np.sin(2 * np.pi * 0.2 * time)
    found = extract(scan(tmp_path, values), confounds="none").values
    assert found[2, 2, 1] > 0.9
    assert found[3, 3, 1] < 0.1
    assert np.median(found) == pytest.approx(19 / 50, abs=0.03)


def test_a_censored_spike_is_bridged(tmp_path: Path) -> None:
    generator, values = np.random.default_rng(0), noise()
    bold = scan(tmp_path, values)
    table = bold.path.with_name("sub-1_task-rest_desc-confounds_timeseries.tsv")
    write_confounds(table, N, generator)
    pd.read_csv(table, sep="\t").assign(
        std_dvars=1.0, framewise_displacement=np.where(np.arange(N) == 50, 3.0, 0.1)
    ).to_csv(table, sep="\t", index=False, na_rep="n/a")
    bold = replace(bold, confounds=table)
    quiet = extract(bold, confounds="scrubbing")
    values[..., 50] += 5000
    np.testing.assert_allclose(extract(scan_again(bold, values), confounds="scrubbing").values, quiet.values, atol=1e-6)
    assert quiet.values.shape == (4, 5, 3)


def scan_again(bold: Scan, values: np.ndarray) -> Scan:
    write_image(bold.path, values.astype(np.float32))
    return bold


def test_a_short_and_a_flat_image_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-1.*6 volumes"):
        extract(scan(tmp_path, noise((3, 3, 3, 6))), confounds="none")
    with pytest.raises(DataError, match="sub-1.*3 dimensions"):
        extract(scan(tmp_path, noise((3, 3, 3))), confounds="none")
