"""Subtract each site's mean, beside the covariates that are protected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bids_dl.harmonization import Harmonization, estimate
from bids_dl.records import Array


def fit(
    values: Array, rows: NDArray[np.intp], given: Array, n_sites: int, labels: Sequence[str] = (), *,
    protect: Sequence[str] = ("age", "sex", "gender"), unseen: str = "pooled",
) -> Harmonization:  # fmt: skip
    """Regress values on sites and protected covariates, and subtract what the sites explain [1]_.

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
    unseen
        For a site without training participants: ``pooled`` leaves its values, ``refuse`` refuses them, ``adapt``
        learns from its own unlabelled rows.

    Returns
    -------
    Harmonization
        With a spread of 1 everywhere.

    Raises
    ------
    UsageError
        If ``unseen`` is no policy.

    References
    ----------
    .. [1] Fortin et al. (2017), NeuroImage 161. doi:10.1016/j.neuroimage.2017.08.047
    """
    found = estimate(values, rows, given, n_sites, labels, protect, unseen)
    return Harmonization(
        found.centre, found.slopes, found.covariate_mean, found.covariates, found.shift, np.ones_like(found.shift),
        found.n > 0, unseen == "refuse",
    )  # fmt: skip
