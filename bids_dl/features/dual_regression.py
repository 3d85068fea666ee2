"""Courses of networks: a BOLD regressed on spatial maps that all participants share."""

from __future__ import annotations

from typing import Any

import numpy as np

from bids_dl import networks, query
from bids_dl.records import Feature, Scan

TAKES = ("bold",)
BY_DEFAULT = False
OF_NETWORKS = "fitted"


def extract(
    scan: Scan,
    *,
    template: str = "",
    confounds: str = "simple",
    high_pass_hz: float = 0.01,
    low_pass_hz: float = 0.1,
) -> Feature:
    """Find the course of each network: the first step of a dual regression [1]_.

    Each volume is regressed on all maps together, inside the mask, with volumes and maps of mean 0 over space; the
    courses are then cleaned as regional series are.

    Parameters
    ----------
    scan
        A preprocessed 4-D BOLD in MNI space.
    template
        Path of a 4-D NIfTI of spatial maps in MNI space, named by a TSV beside it where there is one; empty for the
        maps that group ICA found (``networks.n_components``).
    confounds
        Strategy by which confounds are regressed out, as for ``timeseries``.
    high_pass_hz, low_pass_hz
        Band kept, in Hz; 0 leaves that side open.

    Returns
    -------
    Feature
        ``timeseries``, (time, roi), a column a network, z-scored.

    Raises
    ------
    DataError, MissingInputError
        If the scan cannot be used (see ``timeseries``), there is no template or it is not 4-D, a network has no voxel
        inside the mask, or maps are collinear there.

    References
    ----------
    .. [1] Nickerson et al. (2017), Frontiers in Neuroscience 11. doi:10.3389/fnins.2017.00115
    """
    made = networks.regress(
        scan, template=template, confounds=confounds, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz
    )
    named = {"atlas": made.networks.name, "stat": "dualregression", "desc": ""}
    return Feature(
        made.courses, ("time", "roi"), "timeseries", "standard deviation", made.networks.labels, named,
        _described(scan, made),
    )  # fmt: skip


def _described(scan: Scan, made: networks.Regressed) -> dict[str, Any]:
    period = made.voxels.period
    said = {"RepetitionTime": period, "SamplingFrequency": round(1 / period, 6), **made.voxels.taken.described}
    displacement = query.displacement(scan.confounds) if scan.confounds else np.nan
    said |= {"MeanFramewiseDisplacement": displacement} if np.isfinite(displacement) else {}
    return said | networks.described(made)
