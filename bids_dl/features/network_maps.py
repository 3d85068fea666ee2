"""Each participant's own maps of networks that all participants share."""

from __future__ import annotations

from bids_dl import networks
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
    resolution_mm: float = 0.0,
) -> Feature:
    """Find where in this brain each network is, and how strong: the second step of a dual regression [1]_.

    Each voxel's series, cleaned as regional series are, is regressed on the courses of all networks together, which
    ``dual_regression`` gives. The courses have standard deviation 1, so that a map holds amplitude and shape.

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
    resolution_mm
        Edge of the voxels to which the maps are brought, as those of other volumes are; 0 keeps the BOLD's grid. A model of
        20 networks at 2 mm reads 70 MB a participant, at 6 mm 3 MB.

    Returns
    -------
    Feature
        ``boldmap``, (x, y, z, network), the BOLD's unit for one standard deviation of the course; 0 outside the mask.

    Raises
    ------
    DataError, MissingInputError
        As for ``dual_regression``; and if filtering and confounds leave fewer independent values than networks.

    References
    ----------
    .. [1] Nickerson et al. (2017), Frontiers in Neuroscience 11. doi:10.3389/fnins.2017.00115
    """
    made = networks.regress(
        scan, template=template, confounds=confounds, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz
    )
    return networks.as_feature(scan, made, networks.own_maps(scan, made), resolution_mm=resolution_mm)
