"""Rhythms whose course is known are found again, by name and in their unit; what cannot be followed is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bids_dl import oscillations
from bids_dl.errors import UsageError
from bids_dl.oscillations import Band, Recording

HZ, N = 100.0, 3000


def recording(signal: np.ndarray, hz: float = HZ, flagged: np.ndarray | None = None) -> Recording:
    n_sensors, n = signal.shape
    none = np.zeros(n, bool)
    labels = tuple(f"E{k}" for k in range(n_sensors))
    return Recording(signal, labels, np.ones(n_sensors, bool), none if flagged is None else flagged, hz, "eeg")


def test_a_pure_wave_has_its_amplitude_in_its_band_and_none_in_another() -> None:
    wave = 7 * np.sin(2 * np.pi * 10 * np.arange(N) / HZ)[None]
    inner = slice(4, -4)
    alpha = oscillations.envelope(recording(wave), Band("alpha", 8, 13), 2.0)
    beta = oscillations.envelope(recording(wave), Band("beta", 16, 30), 2.0)
    assert alpha.shape == (56, 1)
    np.testing.assert_allclose(alpha[inner], 7, rtol=0.01)
    assert np.abs(beta[inner]).max() < 0.05


def test_windows_equal_the_slow_average_also_where_they_do_not_divide_the_sampling_rate() -> None:
    from mne.filter import filter_data
    from scipy.signal import hilbert

    hz = 90.7
    signal = np.random.default_rng(0).standard_normal((2, 2000))
    found = oscillations.envelope(recording(signal, hz), Band("alpha", 8, 13), 2.0)
    strength = np.abs(hilbert(filter_data(signal, hz, 8, 13, verbose="critical"), axis=1))
    assert len(found) == 40
    for window in range(2, 42):
        first, last = round(window * hz / 2), round((window + 1) * hz / 2)
        np.testing.assert_allclose(found[window - 2], strength[:, first:last].mean(axis=1), rtol=0.01)


def test_windows_inside_a_bad_segment_are_left_out() -> None:
    signal = np.random.default_rng(0).standard_normal((2, N))
    flagged = np.zeros(N, bool)
    flagged[1010:1090] = True  # seconds 10.1 to 10.9, less the first: windows 18 and 19
    whole = oscillations.envelope(recording(signal), Band("alpha", 8, 13), 2.0)
    kept = oscillations.envelope(recording(signal, flagged=flagged), Band("alpha", 8, 13), 2.0)
    np.testing.assert_array_equal(kept, np.delete(whole, [18, 19], axis=0))


def test_many_sensors_are_filtered_as_one_is() -> None:
    signal = np.random.default_rng(0).standard_normal((oscillations.AT_ONCE + 3, 1200))
    together = oscillations.envelope(recording(signal), Band("theta", 4, 8), 2.0)
    alone = oscillations.envelope(recording(signal[-1:]), Band("theta", 4, 8), 2.0)
    np.testing.assert_allclose(together[:, -1:], alone)


def test_a_fast_recording_is_thinned_without_another_result() -> None:
    hz, bands = 1000.0, [Band("alpha", 8, 13), Band("lowgamma", 30, 45)]
    at = np.arange(20 * hz) / hz
    signal = np.random.default_rng(0).standard_normal((2, len(at)))
    signal[0] += 5 * np.sin(2 * np.pi * 40 * at) + 50 * np.sin(2 * np.pi * 160 * at)
    flagged = np.zeros(len(at), bool)
    flagged[[4003, 9990]] = True
    taken = recording(signal, hz, flagged)
    thin = oscillations.thinned(taken, bands)
    assert (thin.sampling_hz, thin.thinned, thin.signal.shape) == (1000 / 3, 3, (2, 6667))
    for band in bands:
        slow, quick = (oscillations.envelope(one, band, 2.0) for one in (taken, thin))
        assert len(slow) == len(quick) == 34
        np.testing.assert_allclose(quick[2:-2], slow[2:-2], rtol=0.04, atol=0.01)


def test_a_slow_recording_is_not_thinned() -> None:
    taken = recording(np.zeros((1, 100)))
    assert oscillations.thinned(taken, [Band("alpha", 8, 13)]) is taken


def test_the_average_reference_leaves_the_good_sensors_without_a_mean() -> None:
    taken = recording(np.random.default_rng(0).standard_normal((4, 50)) + 5)
    taken.good[3] = False
    found = oscillations.average_referenced(taken)
    np.testing.assert_allclose(found.signal[:3].mean(axis=0), 0, atol=1e-12)
    assert "average" in found.reference


def test_bands_are_read_as_they_are_written() -> None:
    assert oscillations.bands_of(["alpha 8-13", "mu2 7.5 - 12.5"], "bands") == [
        Band("alpha", 8, 13),
        Band("mu2", 7.5, 12.5),
    ]


@pytest.mark.parametrize(
    "named", [["alpha"], ["alpha 13-8"], ["8-13"], ["a-b 8-13"], [], ["alpha 8-10", "alpha 10-13"]]
)
def test_bands_that_are_none_are_refused_by_the_options_name(named: list[str]) -> None:
    with pytest.raises(UsageError, match=r"preparations\.eeg\.bands"):
        oscillations.bands_of(named, "preparations.eeg.bands")
