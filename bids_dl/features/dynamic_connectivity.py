"""Connectomes that change: correlations of regional series in windows that slide over the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

FOLLOWS = ("timeseries", "dual_regression")
BY_DEFAULT = False
LIMIT = np.float32(1 - 1e-6)
"""Largest correlation that Fisher's transform is given: what float32 can still tell from 1 after 30 sums."""
LEAST_KEPT = 0.5
"""Part of a window's weight that has to be left by censoring."""


def extract(scan: Scan, *, window: int = 30, step: int = 1, taper_sd: float = 3.0, fisher_z: bool = True) -> Feature:
    """Correlate every pair of regions in each of the windows that slide over the run [1]_.

    Windows are cut from the run as it was measured: a censored volume, by the sidecar's ``CensoredVolumes``, keeps its place
    and has no weight.

    Parameters
    ----------
    scan
        A table of regional series (time, roi).
    window
        Volumes in a window, all weighted by the taper.
    step
        Volumes from one window to the next.
    taper_sd
        Standard deviation, in volumes, of the Gaussian that the rectangle is convolved with [2]_; a volume at the end
        of the window then weighs about half of one in its middle. 0 weighs all volumes alike.
    fisher_z
        Map r to arctanh(r), whose sampling variance is near constant; r is cut at ±(1 - 1e-6).

    Returns
    -------
    Feature
        ``edges``, (window, edge), float32, no unit: the upper triangle in the order of ``np.triu_indices(n, 1)``, an
        edge named ``region~region``. NaN where a region does not vary in a window, and in all of a window of whose
        weight censoring took more than half.

    Raises
    ------
    DataError
        If the run is shorter than one window, fewer than two regions vary, or censoring leaves no window.

    References
    ----------
    .. [1] Hutchison et al. (2013), NeuroImage 80. doi:10.1016/j.neuroimage.2013.05.079
    .. [2] Allen et al. (2014), Cerebral Cortex 24(3). doi:10.1093/cercor/bhs352
    """
    labels, series = query.read_matrix(scan.path)
    known = np.isfinite(series).all(axis=0) & (np.ptp(np.nan_to_num(series), axis=0) > 0)
    whole = _in_time(np.where(known, series, np.nan), query.sidecar(scan.path, scan.dataset).get("CensoredVolumes", ()))
    _refuse(scan, known, len(whole), window, step)
    values = edges(whole, weights(window, taper_sd), step)
    if np.isnan(values).all():
        raise DataError(
            f"{scan.name}: censoring leaves no window of {window} volumes half of its weight; choose a longer window."
        )
    if fisher_z:
        np.arctanh(np.clip(values, -LIMIT, LIMIT, out=values), out=values)
    return Feature(
        values, ("window", "edge"), "edges", "none", _edge_names(labels),
        {"stat": "pearsoncorrelation", "desc": "slidingwindow"}, _described(scan, window, step, taper_sd, fisher_z),
    )  # fmt: skip


def _in_time(series: Array, censored: Sequence[int]) -> Array:
    """Put a series (kept volume, roi) back in its run's time, NaN at the censored volumes."""
    whole = np.full((len(series) + len(censored), series.shape[1]), np.nan)
    whole[np.setdiff1d(np.arange(len(whole)), censored)] = series
    return whole


def _refuse(scan: Scan, known: Array, n_volumes: int, window: int, step: int) -> None:
    if window < 3 or step < 1:
        raise DataError(f"{scan.name}: window is {window} and step {step}; give at least 3 and 1 volumes.")
    if n_volumes < window:
        raise DataError(f"{scan.name} has {n_volumes} volumes for a window of {window}; choose a shorter window.")
    if known.sum() < 2:
        raise DataError(f"{scan.name}: {known.sum()} of {len(known)} regions vary over time; at least 2 are needed.")


def weights(window: int, taper_sd: float) -> Array:
    """Weigh the volumes of a window: a rectangle convolved with a Gaussian, (time,), of sum 1."""
    if taper_sd <= 0:
        return np.full(window, 1 / window)
    distance = np.subtract.outer(np.arange(window), np.arange(window))
    tapered: Array = np.exp(-0.5 * (distance / taper_sd) ** 2).sum(axis=1)
    return np.asarray(tapered / tapered.sum())


def edges(series: Array, weight: Array, step: int) -> Array:
    """Correlate all pairs of regions in all windows, (time, roi) to (window, edge), in float32.

    A window's connectome is one matrix product of its standardised series with themselves. Volumes without any value have
    no weight; a window that keeps less than `LEAST_KEPT` of its weight is NaN.
    """
    windows = sliding_window_view(series, len(weight), axis=0)[::step]  # (window, roi, time)
    there = sliding_window_view(np.isfinite(series).any(axis=1), len(weight))[::step]  # (window, time)
    row, column = np.triu_indices(series.shape[1], 1)
    edge = row * series.shape[1] + column
    found = np.empty((len(windows), len(edge)), np.float32)
    for number, (one, kept) in enumerate(zip(windows, there, strict=True)):
        if (left := weight[kept].sum()) < LEAST_KEPT:
            found[number] = np.nan
            continue
        standard = _standardised(one, weight) if kept.all() else _standardised(one[:, kept], weight[kept] / left)
        np.take(standard @ standard.T, edge, out=found[number], mode="clip")
    return found


def _standardised(values: Array, weight: Array) -> Array:
    """Centre one window and give it length 1, (roi, time); NaN where a region does not vary in it."""
    centred = (values - (values @ weight)[:, None]) * np.sqrt(weight)
    length = np.sqrt(np.einsum("rt,rt->r", centred, centred))
    length[np.ptp(values, axis=1) == 0] = np.nan
    return np.asarray(centred / length[:, None], np.float32)


def _edge_names(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{first}~{second}" for k, first in enumerate(labels) for second in labels[k + 1 :])


def _described(scan: Scan, window: int, step: int, taper_sd: float, fisher_z: bool) -> dict[str, Any]:
    """Say how the windows were cut; in seconds too, where the series' sidecar has its repetition time."""
    described: dict[str, Any] = {
        "RelationshipMeasure": "Pearson correlation" + (", Fisher z" if fisher_z else ""), "Directed": False,
        "WindowVolumes": window, "StepVolumes": step, "TaperVolumes": taper_sd,
    }  # fmt: skip
    period = query.sidecar(scan.path, scan.dataset).get("RepetitionTime")
    return described | ({"WindowDuration": window * period, "StepDuration": step * period} if period else {})
