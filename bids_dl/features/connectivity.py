"""Connectomes: how regional series vary together, or a derivative's matrix as it is."""

from __future__ import annotations

import numpy as np

from bids_dl import query, zoo
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("relmat",)
FOLLOWS = ("timeseries", "dual_regression")
MEASURES = {
    "correlation": ("pearsoncorrelation", "Pearson correlation"),
    "partial": ("partialcorrelation", "partial correlation, Ledoit-Wolf shrunk"),
    "covariance": ("covariance", "covariance, Ledoit-Wolf shrunk"),
    "logarithm": ("logcorrelation", "matrix logarithm of the shrunk correlations"),
}
"""Kinds of connectome: their ``stat`` entity, and how BIDS's RelationshipMeasure calls them."""

WITH_DIAGONAL = ("covariance", "logarithm")
"""Kinds that are no correlations: their diagonal says something, and Fisher's z does not apply."""


def extract(scan: Scan, *, kind: str = "correlation", fisher_z: bool = True, shrinkage: float = 0.5) -> Feature:
    """Relate every pair of regions over time, or read a matrix that a derivative holds.

    Parameters
    ----------
    scan
        A table of regional series (time, roi), or a ``relmat`` (roi, roi) of any kind, taken as it is.
    kind
        ``correlation``; ``partial``, with all other regions held constant [1]_; ``covariance``, whose diagonal is written
        but seen by no model; or ``logarithm``, the matrix logarithm of the correlations [4]_, in which differences are
        those of the log-Euclidean metric. Partial correlations and covariances come from a
        covariance that is shrunk [2]_, since there are seldom more volumes than regions.
    fisher_z
        Map r to arctanh(r), whose sampling variance is near constant [3]_; covariances and logarithms are left.
    shrinkage
        How far correlations are shrunk towards none before their logarithm is taken, above 0 and below 1.

    Returns
    -------
    Feature
        ``relmat``, (roi, roi), diagonal 0, no unit; NaN in the rows and columns of regions without signal. Covariances
        and logarithms keep their diagonal; a covariance has the squared unit of the series.

    Raises
    ------
    DataError
        If fewer than two regions vary, the matrix is not square, or there is no such kind or shrinkage.

    References
    ----------
    .. [1] Marrelec et al. (2006), NeuroImage 32(1). doi:10.1016/j.neuroimage.2005.12.057
    .. [2] Ledoit & Wolf (2004), Journal of Multivariate Analysis 88(2). doi:10.1016/S0047-259X(03)00096-4
    .. [3] Fisher (1915), Biometrika 10(4). doi:10.2307/2331838
    .. [4] Arsigny et al. (2006), Magnetic Resonance in Medicine 56(2). doi:10.1002/mrm.20965
    """
    labels, values = query.read_matrix(scan.path)
    if not 0 < shrinkage < 1:
        raise DataError(f"{scan.name}: shrinkage is {shrinkage}; give a number above 0 and below 1.")
    if scan.entities["suffix"] == "timeseries":
        return _relate(scan, labels, values, kind, fisher_z and kind not in WITH_DIAGONAL, shrinkage)
    return _given(scan, labels, values)


def _given(scan: Scan, labels: tuple[str, ...], values: Array) -> Feature:
    """Take a derivative's matrix as it is."""
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


def _relate(scan: Scan, labels: tuple[str, ...], series: Array, kind: str, fisher_z: bool, shrinkage: float) -> Feature:
    if kind not in MEASURES:
        raise DataError(f"{scan.name}: '{kind}' is no kind of connectivity; {zoo.nearest(kind, MEASURES)}")
    known = np.isfinite(series).all(axis=0) & (np.ptp(np.nan_to_num(series), axis=0) > 0)
    if known.sum() < 2:
        raise DataError(f"{scan.name}: {known.sum()} of {len(known)} regions vary over time; at least 2 are needed.")
    relate = {"correlation": correlation, "partial": partial, "covariance": covariance, "logarithm": correlation}
    found = relate[kind](series[:, known])
    if kind == "logarithm":
        found = logarithm(found, shrinkage)
    if kind not in WITH_DIAGONAL:
        found = np.clip(found, -1 + 1e-7, 1 - 1e-7)
        np.fill_diagonal(found, 0)
    values = np.full((len(known), len(known)), np.nan)
    values[np.ix_(known, known)] = np.arctanh(found) if fisher_z else found
    stat, measure = MEASURES[kind]
    described = {
        "RelationshipMeasure": measure + (", Fisher z" if fisher_z else ""), "Weighted": True, "Directed": False,
        "ValidDiagonal": kind in WITH_DIAGONAL, "StorageFormat": "Full",
    } | ({"Shrinkage": shrinkage} if kind == "logarithm" else {})  # fmt: skip
    named = {"stat": stat, "desc": "fisherz" if fisher_z else ""}
    unit = "squared unit of the series" if kind == "covariance" else "none"
    return Feature(values, ("roi", "roi"), "relmat", unit, labels, named, described)


def correlation(series: Array) -> Array:
    """Correlate columns, (time, roi) to (roi, roi)."""
    standard = series - series.mean(axis=0)
    standard /= np.linalg.norm(standard, axis=0)
    return np.asarray(standard.T @ standard)


def logarithm(correlations: Array, shrinkage: float) -> Array:
    """Take the matrix logarithm of correlations, (roi, roi), shrunk towards the identity; symmetric."""
    eigenvalues, vectors = np.linalg.eigh(correlations)
    logs = np.log((1 - shrinkage) * eigenvalues.clip(0) + shrinkage)
    return np.asarray((vectors * logs) @ vectors.T)


def covariance(series: Array) -> Array:
    """Estimate the covariance of columns, shrunk towards a multiple of the identity; positive definite."""
    from sklearn.covariance import ledoit_wolf

    shrunk: Array = ledoit_wolf(series)[0]
    return shrunk


def partial(series: Array) -> Array:
    """Correlate columns with all others held constant, from the inverse of the shrunk covariance of z-scores."""
    precision = np.linalg.inv(covariance((series - series.mean(axis=0)) / series.std(axis=0)))
    scale = np.sqrt(np.diag(precision))
    return np.asarray(-precision / np.outer(scale, scale))
