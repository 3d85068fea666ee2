"""Columns that a run is cleaned by, computed and named as fMRIPrep does: DVARS, components of noise, slow cosines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl.records import Array

EXPLAINED = 0.5
"""Share of a mask's variance that its components explain together; fMRIPrep keeps as many."""

PREFIXES = {"a": "combined", "c": "CSF", "w": "WM"}
"""First letters of the components' columns, and what fMRIPrep calls the mask that each kind comes from."""

TYPICAL = 1000.0
"""Intensity that the median is scaled to before DVARS, as in nipype and FSL; the standardised one does not need it."""

IQR_OF_NORMAL = 1.349
RANK = 1e-6
"""Smaller parts of a voxel's variation, once the cosines are out, are rounding errors."""


def cosines(n_volumes: int, period: float, slowest_s: float = 128.0) -> dict[str, Array]:
    """Return the slow cosines that a high-pass filter removes: none for a run shorter than half of the slowest period.

    Parameters
    ----------
    n_volumes
        Volumes of the run.
    period
        Seconds between volumes.
    slowest_s
        Period of the filter's edge, in seconds.

    Returns
    -------
    dict
        ``cosine00`` …, (time,) each, of length 1 and orthogonal.
    """
    n_waves = int(np.floor(2 * n_volumes * period / slowest_s))
    at = (np.arange(n_volumes) + 0.5) / n_volumes
    return {f"cosine{k:02d}": np.sqrt(2 / n_volumes) * np.cos(np.pi * (k + 1) * at) for k in range(n_waves)}


def dvars(series: Array) -> dict[str, Array]:
    """Measure the root mean square change from volume to volume [1]_, plain and standardised [2]_.

    The standardised one is divided by the change that is expected without artefacts: the mean over voxels of
    sqrt(2 (1 - r)) s, where s is the robust standard deviation of a voxel (interquartile range / 1.349) and r its
    correlation with itself a volume later [3]_. It is 1 for noise alone, whatever its size.

    Parameters
    ----------
    series
        (time, voxel); voxels whose interquartile range is 0 are left out.

    Returns
    -------
    dict
        ``dvars``, with a median intensity of 1000, and ``std_dvars``, no unit; (time,) each, the first NaN, and all of
        them where no voxel varies.

    References
    ----------
    .. [1] Power et al. (2012), NeuroImage 59(3). doi:10.1016/j.neuroimage.2011.10.018
    .. [2] Nichols (2017), Notes on creating a standardized version of DVARS. arXiv:1704.01469
    .. [3] Afyouni & Nichols (2018), NeuroImage 172. doi:10.1016/j.neuroimage.2017.12.098
    """
    low, high = np.percentile(series, (25, 75), axis=0, method="lower")
    varies = high > low
    if not varies.any():
        return {name: np.full(len(series), np.nan) for name in ("dvars", "std_dvars")}
    series = series[:, varies]
    expected = np.sqrt(2 * (1 - _lag_one(series))) * (high - low)[varies] / IQR_OF_NORMAL
    plain = np.append(np.nan, np.sqrt(np.mean(np.diff(series, axis=0) ** 2, axis=1, dtype=float)))
    return {"dvars": plain * TYPICAL / float(np.median(series)), "std_dvars": plain / expected.mean(dtype=float)}


def _lag_one(series: Array) -> Array:
    """Correlate each column with itself a volume later, as the Yule-Walker equations do."""
    off = series - series.mean(axis=0, dtype=float)
    return np.asarray((off[1:] * off[:-1]).sum(axis=0) / (off**2).sum(axis=0))


def components(
    series: Array, csf: NDArray[np.bool_], white_matter: NDArray[np.bool_], slow: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
    """Find what varies together where there is no grey matter: anatomical CompCor [1]_.

    The mean and the slow cosines are taken out of each voxel, which then gets the standard deviation 1; the principal
    components of CSF, of white matter and of both are kept until they explain half of the variance.

    Parameters
    ----------
    series
        (time, voxel).
    csf, white_matter
        (voxel,), eroded: no grey matter may lie in them.
    slow
        The run's cosines, which have to be regressed out together with the components.

    Returns
    -------
    tuple
        Columns ``a_comp_cor_00`` … (both masks), ``c_comp_cor_00`` … (CSF) and ``w_comp_cor_00`` … (white matter),
        (time,) each, of length 1; and their metadata as fMRIPrep writes it. None for a mask where no voxel varies.

    References
    ----------
    .. [1] Behzadi et al. (2007), NeuroImage 37(1). doi:10.1016/j.neuroimage.2007.04.042
    """
    base = np.column_stack([np.ones(len(series)), *slow.values()])
    columns: dict[str, Array] = {}
    described: dict[str, dict[str, Any]] = {}
    for prefix, inside in zip(PREFIXES, (csf | white_matter, csf, white_matter), strict=True):
        found, size = _principal(series[:, inside].astype(float), base)
        share = size**2 / (size**2).sum()
        for k in range(np.searchsorted(share.cumsum(), EXPLAINED) + 1 if len(size) else 0):
            name = f"{prefix}_comp_cor_{k:02d}"
            columns[name] = found[:, k]
            described[name] = {
                "Method": "aCompCor", "Mask": PREFIXES[prefix], "Retained": True, "SingularValue": float(size[k]),
                "VarianceExplained": float(share[k]), "CumulativeVarianceExplained": float(share[: k + 1].sum()),
            }  # fmt: skip
    return columns, described


def _principal(series: Array, base: Array) -> tuple[Array, Array]:
    """Return the principal components over time, (time, component), and their singular values, largest first."""
    left = series - base @ np.linalg.lstsq(base, series, rcond=None)[0]
    spread = left.std(axis=0)
    varies = spread > RANK * np.abs(series).max(axis=0, initial=0)
    left = left[:, varies] / spread[varies]
    if not left.size:
        return np.empty((len(series), 0)), np.empty(0)
    values, vectors = np.linalg.eigh(left @ left.T)  # (time, time): there are far more voxels than volumes
    return vectors[:, ::-1], np.sqrt(np.maximum(values[::-1], 0))
