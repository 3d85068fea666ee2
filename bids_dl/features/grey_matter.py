"""How much grey matter each place of the template holds in a person (voxel-based morphometry)."""

from __future__ import annotations

import numpy as np

from bids_dl import volumes
from bids_dl.errors import DataError
from bids_dl.records import Feature, Scan

TAKES = ("t1w",)
NEEDS = ("modulated",)


def extract(scan: Scan, *, resolution_mm: float = 4.0) -> Feature:
    """Resample the grey matter that was modulated by the Jacobian [1]_ to the template's grid.

    Parameters
    ----------
    scan
        A prepared T1w with the role ``modulated``: probability of grey matter times the change of volume.
    resolution_mm
        Edge of a voxel. 4 mm is what a CPU trains in minutes; choose 2 where there is a GPU.

    Returns
    -------
    Feature
        ``probseg``, (x, y, z), volume of grey matter by volume of template, no unit; 0 outside the brain.

    Raises
    ------
    DataError
        If there is no modulated map, or it is damaged.

    References
    ----------
    .. [1] Ashburner & Friston (2000), NeuroImage 11(6). doi:10.1006/nimg.2000.0582
    """
    if "modulated" not in scan.related:
        raise DataError(
            f"{scan.name} has no modulated grey matter: it is made of fMRIPrep's label-GM_probseg.nii.gz and "
            "from-T1w_to-…_xfm.h5, which must both lie beside it, whole; copy them, or prepare the raw T1w with --raw-only."
        )
    values, affine = volumes.load(scan.related["modulated"], scan.name)
    return volumes.feature(
        scan, np.nan_to_num(values), affine, resolution_mm, suffix="probseg", unit="none",
        description="grey matter, modulated by the Jacobian", entities={"label": "GM", "desc": "modulated"},
    )  # fmt: skip
