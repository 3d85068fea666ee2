"""Amplitude of low-frequency fluctuations of each voxel."""

from __future__ import annotations

import numpy as np

from bids_dl import signals
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("bold",)
BY_DEFAULT = False


def extract(
    scan: Scan, *, confounds: str = "simple", low_hz: float = 0.01, high_hz: float = 0.1, smoothing_mm: float = 0.0
) -> Feature:
    """Average the amplitude spectrum of each voxel over a band of low frequencies [1]_, relative to the brain's mean.

    Removed volumes are interpolated, not left out: a spectrum needs even steps.

    Parameters
    ----------
    scan
        A preprocessed 4-D BOLD.
    confounds
        Strategy by which confounds are regressed out, as for ``timeseries``; the series are detrended, not filtered.
    low_hz, high_hz
        The band, in Hz, ends included.
    smoothing_mm
        Full width at half maximum of a Gaussian that volumes are smoothed with first; 0 is off.

    Returns
    -------
    Feature
        ``boldmap``, (x, y, z), multiples of the brain's mean amplitude; 0 outside of the mask and where nothing varies.

    Raises
    ------
    DataError
        If the scan cannot be used (see ``timeseries``), or no frequency of its spectrum lies in the band.

    References
    ----------
    .. [1] Zang et al. (2007), Brain & Development 29(2). doi:10.1016/j.braindev.2006.07.002
    """
    found = signals.filled(signals.voxels(scan, confounds=confounds, smoothing_mm=smoothing_mm))
    band = signals.band(scan, found, low_hz, high_hz)
    values = np.empty(found.series.shape[1])
    for some, series in signals.cleaned_blocks(found):
        values[some] = amplitudes(series)[band].mean(axis=0)
    mean = values.mean()
    if not mean > 0:
        raise DataError(f"{scan.name}: nothing is left in {low_hz:g}-{high_hz:g} Hz; look at the confounds.")
    described = signals.described_map(scan, found) | {"FrequencyBand": [low_hz, high_hz], "SmoothingFWHM": smoothing_mm}
    return Feature(
        signals.as_volume(found, values / mean), ("x", "y", "z"), "boldmap", "brain mean", (),
        {"stat": "alff", "desc": ""}, described, found.affine,
    )  # fmt: skip


def amplitudes(series: Array) -> Array:
    """Return the amplitude of each sinusoid that series (time, voxel) are made of, (frequency, voxel)."""
    return np.asarray(np.abs(np.fft.rfft(series, axis=0)) * 2 / len(series))
