"""ComBat: each site's location and spread, shrunk towards those of its other values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bids_dl.harmonization import Harmonization, estimate, locations
from bids_dl.records import Array


def fit(
    values: Array, rows: NDArray[np.intp], given: Array, n_sites: int, labels: Sequence[str] = (), *,
    protect: Sequence[str] = ("age", "sex", "gender"), parametric: bool = True, shrink: bool = True, unseen: str = "pooled",
) -> Harmonization:  # fmt: skip
    """Estimate location and spread of each site by empirical Bayes [1]_, as in [2]_ for imaging.

    Parameters
    ----------
    values
        (participant, …), possibly memory-mapped; NaN is missing and says nothing.
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
    shift, spread = locations(found, parametric=parametric, shrink=shrink)
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
