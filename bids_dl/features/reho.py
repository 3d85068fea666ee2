"""Regional homogeneity: how alike a voxel and its neighbours rise and fall."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bids_dl import signals
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("bold",)
BY_DEFAULT = False
MIN_NEIGHBOURS = 14
"""More than half of 27: with few series Kendall's W is large by chance (1/K on average)."""


def extract(scan: Scan, *, confounds: str = "simple", high_pass_hz: float = 0.01, low_pass_hz: float = 0.1) -> Feature:
    """Compute Kendall's coefficient of concordance W of each voxel's series and those of its 26 neighbours [1]_.

    ``W = 12 S / (K² (n³ - n))``, with S the sum over the n volumes of squared deviations of the sums of ranks of K
    voxels; ties share their mean rank and are not corrected for. The image is not smoothed: that would raise W by itself.

    Parameters
    ----------
    scan
        A preprocessed 4-D BOLD, not smoothed.
    confounds
        Strategy by which confounds are regressed out, as for ``timeseries``; censored volumes are left out.
    high_pass_hz, low_pass_hz
        Band kept, in Hz; 0 leaves that side open.

    Returns
    -------
    Feature
        ``boldmap``, (x, y, z), W from 0 to 1; 0 outside of the mask and where fewer than 14 of the 27 voxels vary.

    Raises
    ------
    DataError
        If the scan cannot be used (see ``timeseries``), or no voxel has enough neighbours.

    References
    ----------
    .. [1] Zang et al. (2004), NeuroImage 22(1). doi:10.1016/j.neuroimage.2003.12.030
    """
    found = signals.voxels(scan, confounds=confounds)
    ranks = np.empty((int(found.taken.kept.sum()), found.series.shape[1]), np.float32)
    for some, series in signals.cleaned_blocks(found, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz):
        ranks[:, some] = _ranked(series)
    values = concordance((signals.as_volume(found, row) for row in ranks), found.mask)
    if not values.any():
        raise DataError(f"{scan.name}: no voxel has {MIN_NEIGHBOURS - 1} neighbours that vary; look at its mask.")
    described = signals.described_map(scan, found) | {"FrequencyBand": [high_pass_hz, low_pass_hz]}
    return Feature(
        np.asarray(values, np.float32), ("x", "y", "z"), "boldmap", "Kendall's W", (),
        {"stat": "reho", "desc": ""}, described, found.affine,
    )  # fmt: skip


def _ranked(series: Array) -> Array:
    """Rank each column over time, (time, voxel), from 1; ties share their mean."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(series, axis=0))


def concordance(ranks: Iterable[NDArray[np.float32]], mask: NDArray[np.bool_]) -> Array:
    """Compute W from volumes of ranks, one a time point and 0 outside of the mask (x, y, z), in one pass."""
    squares, n = np.zeros(mask.shape), 0
    for n, volume in enumerate(ranks, start=1):  # noqa: B007
        squares += _around(volume.astype(np.float64)) ** 2
    n_voxels = _around(mask.astype(np.float64))
    spread = squares - n * (n_voxels * (n + 1) / 2) ** 2
    w = 12 * spread / (np.maximum(n_voxels, 1) ** 2 * (n**3 - n))
    return np.where(mask & (n_voxels >= MIN_NEIGHBOURS), w, 0)


def _around(volume: Array) -> Array:
    """Sum each voxel and its 26 neighbours: three sums of three, one an axis."""
    for axis in range(3):
        padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(3)])
        volume = np.add.reduce([np.take(padded, range(k, k + volume.shape[axis]), axis=axis) for k in range(3)])
    return volume
