"""Connectomes: correlations of regional series, or a derivative's matrix as it is."""

from __future__ import annotations

import numpy as np

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.records import Feature, Scan

TAKES = ("relmat",)
FOLLOWS = ("timeseries",)


def extract(scan: Scan, *, fisher_z: bool = True) -> Feature:
    """Correlate every pair of regions over time, or read a matrix that a derivative holds.

    Parameters
    ----------
    scan
        A table of regional series (time, roi), or a ``relmat`` (roi, roi) of any kind, taken as it is.
    fisher_z
        Map r to arctanh(r), whose sampling variance is near constant [1]_.

    Returns
    -------
    Feature
        ``relmat``, (roi, roi), diagonal 0, no unit; NaN in the rows and columns of regions without signal.

    Raises
    ------
    DataError
        If fewer than two regions vary, or the matrix is not square.

    References
    ----------
    .. [1] Fisher (1915), Biometrika 10(4). doi:10.2307/2331838
    """
    labels, values = query.read_matrix(scan.path)
    if scan.entities["suffix"] == "timeseries":
        return _correlate(scan, labels, values, fisher_z=fisher_z)
    if values.shape[0] != values.shape[1]:
        raise DataError(
            f"{scan.name} is {values.shape[0]}×{values.shape[1]}; a connectome has a row and a column a region."
        )
    if not np.isfinite(values[~np.eye(len(values), dtype=bool)]).any():
        raise DataError(f"{scan.name} holds no number beside its diagonal.")
    symmetric = np.allclose(values, values.T, rtol=1e-4, atol=1e-6, equal_nan=True)
    described = {"Weighted": True, "Directed": not symmetric, "StorageFormat": "Full", "ValidDiagonal": False}
    described |= query.sidecar(scan.path, scan.dataset)
    return Feature(
        values, ("roi", "roi"), "relmat", "arbitrary", labels, {"stat": scan.entities.get("stat", "")}, described
    )


def _correlate(scan: Scan, labels: tuple[str, ...], series: np.ndarray, *, fisher_z: bool) -> Feature:
    known = np.isfinite(series).all(axis=0) & (np.ptp(np.nan_to_num(series), axis=0) > 0)
    if known.sum() < 2:
        raise DataError(f"{scan.name}: {known.sum()} of {len(known)} regions vary over time; at least 2 are needed.")
    standard = series[:, known] - series[:, known].mean(axis=0)
    standard /= np.linalg.norm(standard, axis=0)
    correlation = np.clip(standard.T @ standard, -1 + 1e-7, 1 - 1e-7)
    values = np.full((len(known), len(known)), np.nan)
    values[np.ix_(known, known)] = np.arctanh(correlation) if fisher_z else correlation
    values[np.diag_indices(len(known))] = np.where(known, 0, np.nan)
    described = {
        "RelationshipMeasure": "Pearson correlation" + (", Fisher z" if fisher_z else ""), "Weighted": True,
        "Directed": False, "ValidDiagonal": False, "StorageFormat": "Full",
    }  # fmt: skip
    named = {"stat": "pearsoncorrelation", "desc": "fisherz" if fisher_z else ""}
    return Feature(values, ("roi", "roi"), "relmat", "none", labels, named, described)
