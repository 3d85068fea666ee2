"""Maps of networks that change: each participant's own, in windows that slide over the run."""

from __future__ import annotations

from bids_dl import networks
from bids_dl.records import Feature, Scan

TAKES = ("bold",)
BY_DEFAULT = False
OF_NETWORKS = "named"


def extract(
    scan: Scan,
    *,
    template: str = "",
    confounds: str = "simple",
    high_pass_hz: float = 0.01,
    low_pass_hz: float = 0.1,
    window_s: float = 180.0,
    step_s: float = 90.0,
    resolution_mm: float = 8.0,
) -> Feature:
    """Find where in this brain each network is while time goes on: the second step of a dual regression [1]_ in windows [2]_.

    Within each window each voxel's series, cleaned as regional series are, is regressed on the courses of all networks
    together, both less their mean in the window. A course is in units of its deviation over the whole run, so that the maps
    of all windows share one unit; one window of the whole run gives ``network_maps``.

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
        Band kept, in Hz; 0 leaves that side open. Each second of 0.01 to 0.1 Hz holds 0.18 independent values, less what
        the confounds take, and a window needs more of them than there are networks.
    window_s, step_s
        Seconds that a window lasts, and from the begin of one to that of the next, both to the nearest volume.
    resolution_mm
        Edge of the voxels to which the maps are brought; 0 keeps the BOLD's grid. A participant with 20 networks in the
        five windows of ten minutes takes 6 MB at 8 mm, 14 MB at 6 mm and 360 MB at 2 mm.

    Returns
    -------
    Feature
        ``boldmap``, (x, y, z, window, network), the BOLD's unit for one standard deviation of the course; 0 outside the
        mask. The sidecar has ``WindowDuration``, ``StepDuration`` and ``WindowOnsets`` in seconds.

    Raises
    ------
    DataError, MissingInputError
        As for ``dual_regression``; if the run is shorter than one window; and if filtering, confounds and censoring leave
        fewer independent values than networks in a window.

    References
    ----------
    .. [1] Nickerson et al. (2017), Frontiers in Neuroscience 11. doi:10.3389/fnins.2017.00115
    .. [2] Kiviniemi et al. (2011), Brain Connectivity 1(4). doi:10.1089/brain.2011.0036
    """
    made = networks.regress(
        scan, template=template, confounds=confounds, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz
    )
    laid = networks.windows(scan, made, window_s=window_s, step_s=step_s)
    return networks.as_feature(
        scan, made, networks.moving_maps(made, laid), resolution_mm=resolution_mm, dims=("window", "network"),
        desc="slidingwindow", said=laid.described,
    )  # fmt: skip
