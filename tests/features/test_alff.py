"""Amplitudes are the spectrum's, and a planted sinusoid is where it was planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import AFFINE, write_confounds, write_image
from scipy.signal import detrend

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.alff import amplitudes, extract
from bids_dl.records import Scan

N, PERIOD = 100, 2.0


def scan(folder: Path, values: np.ndarray, *, mask: bool = True) -> Scan:
    stem = folder / "sub-1" / "func" / "sub-1_task-rest_space-MNI152Lin"
    path = write_image(Path(f"{stem}_desc-preproc_bold.nii.gz"), values.astype(np.float32))
    brain = np.zeros(values.shape[:3], np.uint8)
    brain[1:] = 1
    found = write_image(Path(f"{stem}_desc-brain_mask.nii.gz"), brain) if mask else None
    return Scan(path, query.entities(path), folder, mask=found)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1000, 10, (4, 5, 3, N))


def textbook(series: np.ndarray, low: float, high: float) -> float:
    """Average the amplitudes of a band, one frequency after another by its sine and cosine."""
    time, found = np.arange(N) * PERIOD, []
    for k in range(1, N // 2 + 1):
        frequency = k / (N * PERIOD)
        if low <= frequency <= high:
            wave = np.exp(-2j * np.pi * frequency * time)
            found.append(abs((series * wave).sum()))
    return float(np.mean(found))


def test_it_equals_the_textbook_voxel_by_voxel(tmp_path: Path) -> None:
    values = noise()
    found = extract(scan(tmp_path, values), confounds="none").values
    slow = np.zeros(values.shape[:3])
    for voxel in np.ndindex(*values.shape[:3]):
        if voxel[0] > 0:
            slow[voxel] = textbook(detrend(values[voxel].astype(np.float32).astype(float)), 0.01, 0.1)
    np.testing.assert_allclose(found, slow / slow[1:].mean(), rtol=1e-4)
    assert (found[0] == 0).all()


def test_a_planted_sinusoid_doubles_its_voxel_only_inside_the_band(tmp_path: Path) -> None:
    values, time = noise(), np.arange(N) * PERIOD
    values[2, 2, 1] += 100 * np.sin(2 * np.pi * 0.05 * time)
    values[3, 3, 1] += 100 * np.sin(2 * np.pi * 0.2 * time)
    found = extract(scan(tmp_path, values), confounds="none").values
    assert found[2, 2, 1] == found.max() > 2 * np.median(found[1:])
    assert found[3, 3, 1] < 1.5 * np.median(found[1:])


def test_the_amplitude_of_a_sinusoid_is_its_own() -> None:
    wave = 3 * np.sin(2 * np.pi * 5 * np.arange(N) / N)[:, None]
    np.testing.assert_allclose(amplitudes(wave)[5], 3)


def test_confounds_are_taken_out(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    table = tmp_path / "sub-1_task-rest_desc-confounds_timeseries.tsv"
    write_confounds(table, N, generator)
    clean = noise()
    bold = replace(scan(tmp_path, clean), confounds=table)
    expected = extract(bold).values
    motion = np.loadtxt(table, delimiter="\t", skiprows=1, usecols=0)
    scan(tmp_path, clean + generator.normal(0, 50, (4, 5, 3, 1)) * motion)
    np.testing.assert_allclose(extract(bold).values, expected, rtol=1e-3, atol=1e-6)


def test_the_map_says_what_it_is(tmp_path: Path) -> None:
    feature = extract(scan(tmp_path, noise()), confounds="none", smoothing_mm=30.0)
    assert (feature.suffix, feature.entities["stat"], feature.dims) == ("boldmap", "alff", ("x", "y", "z"))
    assert feature.metadata["SkullStripped"] is True
    assert feature.metadata["FrequencyBand"] == [0.01, 0.1]
    np.testing.assert_array_equal(feature.affine, AFFINE)


def test_an_empty_band_and_a_still_image_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-1.*widen the band"):
        extract(scan(tmp_path, noise()), confounds="none", low_hz=0.3, high_hz=0.4)
    with pytest.raises(DataError, match="sub-1.*no voxel varies"):
        extract(scan(tmp_path, np.ones((4, 5, 3, N))), confounds="none")
