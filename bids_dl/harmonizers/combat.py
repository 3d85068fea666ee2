"""ComBat: each site's location and spread, shrunk towards those of its other values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bids_dl.harmonization import Estimate, Harmonization, estimate
from bids_dl.records import Array

TOLERANCE, MOST_STEPS = 1e-4, 200
MOST_PEERS = 2000
"""Values that stand for all when no distribution is assumed."""


def fit(
    values: Array, rows: NDArray[np.intp], given: Array, n_sites: int, labels: Sequence[str] = (), *,
    protect: Sequence[str] = ("age", "sex", "gender"), parametric: bool = True, shrink: bool = True, unseen: str = "pooled",
) -> Harmonization:  # fmt: skip
    """Estimate location and spread of each site by empirical Bayes [1]_, as in [2]_ for imaging.

    Parameters
    ----------
    values
        (participant, …), possibly memory-mapped; NaN is missing and counts as the mean.
    rows
        The training rows; no other is read, unless ``unseen`` is ``adapt``.
    given
        (participant, confound + site): confounds, then one column a site.
    n_sites
        How many of the last columns are sites.
    labels
        Names of the confounds.
    protect
        Confounds whose effect stays; those that the data lack are passed over. Never the target: its values would have
        to be known for the test participants.
    parametric
        Assume a normal and an inverse gamma distribution over values; else the values themselves are the prior.
    shrink
        Use the prior at all; off, each value is estimated by itself.
    unseen
        For a site without training participants: ``pooled`` leaves its values, ``refuse`` refuses them, ``adapt``
        learns from its own unlabelled rows.

    Returns
    -------
    Harmonization
        To the mean and the residual variance of all sites.

    Raises
    ------
    UsageError
        If ``unseen`` is no policy.

    References
    ----------
    .. [1] Johnson, Li and Rabinovic (2007), Biostatistics 8(1). doi:10.1093/biostatistics/kxj037
    .. [2] Fortin et al. (2018), NeuroImage 167. doi:10.1016/j.neuroimage.2017.11.024
    """
    found = estimate(values, rows, given, n_sites, labels, protect, unseen)
    varies = found.variance > 0
    deviation = np.sqrt(np.where(varies, found.variance, 1))
    shift, spread = np.zeros_like(found.shift), np.ones_like(found.shift)
    for site in np.flatnonzero(found.n > 0):
        location, scale = _site(found, site, deviation, varies, parametric=parametric, shrink=shrink)
        shift[site, varies] = location * deviation[varies]
        spread[site, varies] = np.sqrt(scale)
    return Harmonization(
        found.centre,
        found.slopes,
        found.covariate_mean,
        found.covariates,
        shift,
        spread,
        found.n > 0,
        unseen == "refuse",
    )


def _site(
    found: Estimate, site: int, deviation: Array, varies: NDArray[np.bool_], *, parametric: bool, shrink: bool
) -> tuple[Array, Array]:
    """Estimate one site's location and variance in units of the residuals' deviation, (value,) each."""
    n = int(found.n[site])
    location = (found.shift[site] / deviation)[varies].astype(np.float64)
    variance = (found.within[site] / deviation**2)[varies].astype(np.float64)
    if n < 2:
        variance = np.ones_like(variance)  # one participant has no spread
    if not shrink or len(location) < 2:
        return location, np.maximum(variance, 1e-6)
    return (_parametric if parametric else _empirical)(location, variance, n)


def _parametric(location: Array, variance: Array, n: int) -> tuple[Array, Array]:
    """Alternate between the posterior means of location and variance until neither moves."""
    mean, spread = location.mean(), location.var(ddof=1)
    shape, rate = _inverse_gamma(variance)
    new, scale = location, variance
    for _ in range(MOST_STEPS):
        before = new, scale
        new = (n * spread * location + scale * mean) / (n * spread + scale)
        squares = (n - 1) * variance + n * (location - new) ** 2
        scale = (rate + squares / 2) / (n / 2 + shape - 1)
        if max(np.abs(new - before[0]).max(), np.abs(scale - before[1]).max()) < TOLERANCE:
            break
    return new, np.maximum(scale, 1e-6)


def _inverse_gamma(variance: Array) -> tuple[float, float]:
    """Find shape and rate by the moments of the variances over values."""
    mean, spread = float(variance.mean()), float(variance.var(ddof=1))
    if spread <= 1e-12:
        return 1e6, 1e6 * mean
    return (2 * spread + mean**2) / spread, (mean * spread + mean**3) / spread


def _empirical(location: Array, variance: Array, n: int) -> tuple[Array, Array]:
    """Weigh other values' estimates by how likely they make this value's rows."""
    peers = np.linspace(0, len(location) - 1, min(MOST_PEERS, len(location))).astype(int)
    theirs, scales = location[peers], np.maximum(variance[peers], 1e-6)
    new, scale = np.empty_like(location), np.empty_like(variance)
    for start in range(0, len(location), 1024):
        mine = slice(start, start + 1024)
        squares = (n - 1) * variance[mine, None] + n * (location[mine, None] - theirs) ** 2
        likely = -n / 2 * np.log(scales) - squares / (2 * scales)
        weight = np.exp(likely - likely.max(axis=1, keepdims=True))
        weight *= np.arange(len(location))[mine, None] != peers  # a value is no peer of itself
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
        new[mine], scale[mine] = weight @ theirs, weight @ scales
    return new, np.maximum(scale, 1e-6)
