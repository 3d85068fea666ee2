"""DVARS agrees with a slow formula; planted noise is found where there is no grey matter, and slow drifts are not."""

from __future__ import annotations

import numpy as np
import pytest

from bids_dl import confounds

T, V = 60, 400


def autocorrelated(n_volumes: int, n_voxels: int, by: float) -> np.ndarray:
    """Make noise that keeps a part of what it was a volume before, its size another in every voxel."""
    generator = np.random.default_rng(0)
    series = generator.standard_normal((n_volumes, n_voxels))
    for t in range(1, n_volumes):
        series[t] = by * series[t - 1] + np.sqrt(1 - by**2) * series[t]
    return 800 + series * generator.uniform(5, 20, n_voxels)


def slow_std_dvars(series: np.ndarray) -> list[float]:
    """Follow Nichols's notes word for word, a voxel and a volume at a time."""
    expected = []
    for voxel in series.T:
        ordered, n = sorted(voxel), len(voxel)
        robust = (ordered[int(0.75 * (n - 1))] - ordered[int(0.25 * (n - 1))]) / 1.349
        mean = sum(voxel) / n
        own = sum((x - mean) ** 2 for x in voxel) / n
        next_to = sum((voxel[t] - mean) * (voxel[t + 1] - mean) for t in range(n - 1)) / n
        expected.append((2 * (1 - next_to / own)) ** 0.5 * robust)
    found = []
    for t in range(1, len(series)):
        squares = [(a - b) ** 2 for a, b in zip(series[t], series[t - 1], strict=True)]
        found.append((sum(squares) / len(squares)) ** 0.5 / (sum(expected) / len(expected)))
    return found


def test_standardised_dvars_follows_the_notes_word_for_word() -> None:
    series = autocorrelated(T, 50, 0.4)
    found = confounds.dvars(series)["std_dvars"]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], slow_std_dvars(series), rtol=1e-10)


@pytest.mark.parametrize("by", [0.0, 0.6])
def test_standardised_dvars_of_noise_is_one_whatever_its_size_and_smoothness(by: float) -> None:
    series = autocorrelated(300, 300, by)
    for scale in (1.0, 50.0):
        found = confounds.dvars(scale * series)["std_dvars"][1:]
        assert np.sqrt(np.mean(found**2)) == pytest.approx(
            1.1, abs=0.1
        )  # unequal voxels: the mean of squares is larger


def test_a_jump_of_the_head_stands_out_and_still_voxels_change_nothing() -> None:
    series = autocorrelated(T, V, 0.3)
    series[30] += 100
    found = confounds.dvars(series)["std_dvars"]
    assert np.flatnonzero(found > 1.5).tolist() == [30, 31]
    still = np.hstack([series, np.full((T, 90), 800.0)])
    np.testing.assert_allclose(confounds.dvars(still)["std_dvars"], found)


def test_plain_dvars_is_that_of_an_image_whose_median_is_1000() -> None:
    series = 500 + 10 * np.random.default_rng(0).standard_normal((200, 300))
    found = confounds.dvars(series)["dvars"][1:]
    assert found.mean() == pytest.approx(2 * 10 * np.sqrt(2), rel=0.02)


def test_a_series_that_never_changes_has_no_dvars() -> None:
    assert np.isnan(confounds.dvars(np.full((T, 5), 7.0))["std_dvars"]).all()


def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """White matter with one noise, CSF with another and a larger drift in all: series, both masks, the noises."""
    generator = np.random.default_rng(1)
    noise = generator.standard_normal((T, 2))
    white, csf = np.arange(V) < 200, np.arange(V) >= 300
    series = 1000 + generator.standard_normal((T, V))
    series += 2 * noise[:, :1] * white + 2 * noise[:, 1:] * csf
    return series + 50 * np.cos(np.pi * (np.arange(T)[:, None] + 0.5) / T), csf, white, noise


def test_noise_planted_in_white_matter_and_in_csf_is_found_and_the_drift_is_not() -> None:
    series, csf, white, noise = planted()
    slow = confounds.cosines(T, 2.0)
    columns, described = confounds.components(series, csf, white, slow)
    cleaned = noise - np.column_stack([np.ones(T), *slow.values()]) @ np.linalg.lstsq(
        np.column_stack([np.ones(T), *slow.values()]), noise, rcond=None
    )[0]  # fmt: skip
    assert abs(np.corrcoef(columns["w_comp_cor_00"], cleaned[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(columns["c_comp_cor_00"], cleaned[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(columns["a_comp_cor_00"], cleaned[:, 0])[0, 1]) > 0.9  # white matter has more voxels
    for name, values in columns.items():
        assert max(abs(values @ wave) for wave in slow.values()) < 1e-8, name
    assert {d["Mask"] for d in described.values()} == {"combined", "WM", "CSF"}


def test_components_are_those_of_a_singular_value_decomposition_up_to_half_of_the_variance() -> None:
    series = np.random.default_rng(2).standard_normal((30, 90)) + 100
    inside = np.ones(90, bool)
    columns, described = confounds.components(series, inside, np.zeros(90, bool), {})
    standard = (series - series.mean(axis=0)) / series.std(axis=0)
    vectors, size, _ = np.linalg.svd(standard, full_matrices=False)
    shares = np.cumsum(size**2) / np.sum(size**2)
    kept = [c for c in columns if c.startswith("a_")]
    assert len(kept) == np.flatnonzero(shares >= 0.5)[0] + 1
    for k, name in enumerate(kept):
        assert abs(vectors[:, k] @ columns[name]) == pytest.approx(1)
        assert described[name]["CumulativeVarianceExplained"] == pytest.approx(shares[k])
        assert described[name]["SingularValue"] == pytest.approx(size[k])


def test_a_mask_without_a_voxel_that_varies_gives_no_component() -> None:
    series, csf, white, _ = planted()
    series[:, csf] = 5
    columns, _ = confounds.components(series, csf, white, {})
    assert {name[0] for name in columns} == {"a", "w"}


def test_cosines_are_orthogonal_and_of_length_one() -> None:
    waves = np.column_stack(list(confounds.cosines(200, 2.0).values()))
    np.testing.assert_allclose(waves.T @ waves, np.eye(waves.shape[1]), atol=1e-12)
    assert waves.shape[1] == 6
    assert confounds.cosines(20, 2.0) == {}
