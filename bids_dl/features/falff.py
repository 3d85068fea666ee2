"""Low-frequency fluctuations as a part of all fluctuations of each voxel."""

from __future__ import annotations

import numpy as np

from bids_dl import signals
from bids_dl.records import Feature, Scan

TAKES = ("bold",)
BY_DEFAULT = False


def extract(
    scan: Scan, *, confounds: str = "simple", low_hz: float = 0.01, high_hz: float = 0.1, smoothing_mm: float = 0.0
) -> Feature:
    """Divide the summed amplitudes of a band of low frequencies by those of all frequencies, voxel by voxel [1]_.

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
        ``boldmap``, (x, y, z), a ratio from 0 to 1; 0 outside of the mask and where nothing varies.

    Raises
    ------
    DataError
        If the scan cannot be used (see ``timeseries``), or no frequency of its spectrum lies in the band.

    References
    ----------
    .. [1] Zou et al. (2008), Journal of Neuroscience Methods 172(1). doi:10.1016/j.jneumeth.2008.04.012
    """
    found = signals.filled(signals.voxels(scan, confounds=confounds, smoothing_mm=smoothing_mm))
    band = signals.band(scan, found, low_hz, high_hz)
    values = np.empty(found.series.shape[1])
    for some, series in signals.cleaned_blocks(found):
        amplitude = np.abs(np.fft.rfft(series, axis=0))[1:]  # (frequency, voxel): without the mean
        total = amplitude.sum(axis=0)
        values[some] = amplitude[band[1:]].sum(axis=0) / np.where(total > 0, total, 1)
    described = signals.described_map(scan, found) | {"FrequencyBand": [low_hz, high_hz], "SmoothingFWHM": smoothing_mm}
    return Feature(
        signals.as_volume(found, values), ("x", "y", "z"), "boldmap", "ratio", (),
        {"stat": "falff", "desc": ""}, described, found.affine,
    )  # fmt: skip
