"""Kendall's W equals the textbook's in each neighbourhood: 1 where all rise and fall as one, 1/K by chance."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from scipy.stats import rankdata

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.reho import MIN_NEIGHBOURS, concordance, extract
from bids_dl.records import Scan

SHAPE, N = (6, 5, 5), 30


def scan(folder: Path, values: np.ndarray, mask: np.ndarray | None = None) -> Scan:
    stem = folder / "sub-1" / "func" / "sub-1_task-rest_space-MNI152Lin"
    path = write_image(Path(f"{stem}_desc-preproc_bold.nii.gz"), values.astype(np.float32))
    brain = write_image(Path(f"{stem}_desc-brain_mask.nii.gz"), mask.astype(np.uint8)) if mask is not None else None
    return Scan(path, query.entities(path), folder, mask=brain)


def textbook(series: np.ndarray) -> float:
    """Compute W of (K, n) series as Kendall wrote it."""
    ranks = np.array([rankdata(one) for one in series])
    n_series, n = ranks.shape
    sums = ranks.sum(axis=0)
    return float(((sums - sums.mean()) ** 2).sum() / (n_series**2 * (n**3 - n) / 12))


def neighbourhoods(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    found = np.zeros(mask.shape)
    for voxel in np.argwhere(mask):
        near = [tuple(voxel + np.array(step)) for step in itertools.product((-1, 0, 1), repeat=3)]
        near = [v for v in near if all(0 <= i < s for i, s in zip(v, mask.shape, strict=True)) and mask[v]]
        if len(near) >= MIN_NEIGHBOURS:
            found[tuple(voxel)] = textbook(np.array([values[v] for v in near]))
    return found


def test_it_equals_the_textbook_in_each_neighbourhood(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(1000, 10, (*SHAPE, N)) + 5 * generator.standard_normal(N)
    values -= np.polynomial.polynomial.polyval(np.arange(N), np.polynomial.polynomial.polyfit(
        np.arange(N), values.reshape(-1, N).T, 1)).reshape(values.shape) - 1000  # fmt: skip
    mask = np.ones(SHAPE, bool)
    mask[0], mask[3, 2, 2] = False, False
    found = extract(scan(tmp_path, values, mask), confounds="none", high_pass_hz=0.0, low_pass_hz=0.0).values
    np.testing.assert_allclose(found, neighbourhoods(values, mask), atol=1e-4)
    assert (found[~mask] == 0).all()


def test_ties_share_their_rank() -> None:
    values = np.random.default_rng(0).integers(0, 4, (*SHAPE, N)).astype(float)
    ranks = np.moveaxis(rankdata(values, axis=3), 3, 0).astype(np.float32)
    everywhere = np.ones(SHAPE, bool)
    np.testing.assert_allclose(concordance(ranks, everywhere), neighbourhoods(values, everywhere), atol=1e-10)


def test_a_planted_common_signal_is_found_and_noise_is_at_chance(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(1000, 1, (12, 5, 5, 60))
    values[:5] += 20 * generator.standard_normal(60)
    found = extract(scan(tmp_path, values), confounds="none", high_pass_hz=0.0, low_pass_hz=0.0).values
    assert (found[1:4, 1:4, 1:4] > 0.95).all()
    assert found[7:11, 1:4, 1:4].mean() == pytest.approx(1 / 27, abs=0.01)


def test_the_map_says_what_it_is(tmp_path: Path) -> None:
    feature = extract(scan(tmp_path, np.random.default_rng(0).normal(9, 1, (*SHAPE, N))), confounds="none")
    assert (feature.suffix, feature.entities["stat"], feature.unit) == ("boldmap", "reho", "Kendall's W")
    assert feature.metadata["SkullStripped"] is True


def test_a_mask_without_neighbours_is_named(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2, 2, 2] = True
    with pytest.raises(DataError, match="sub-1.*no voxel has 13 neighbours"):
        extract(scan(tmp_path, np.random.default_rng(0).normal(9, 1, (*SHAPE, N)), mask), confounds="none")
