"""Mean diffusivity of the diffusion tensor, on one grid for everybody."""

from __future__ import annotations

from bids_dl import volumes
from bids_dl.records import Feature, Scan

TAKES = ("dwimap",)
PARAM = ("md",)


def extract(scan: Scan, *, resolution_mm: float = 4.0) -> Feature:
    """Resample a map of mean diffusivity [1]_ to the template's grid.

    Parameters
    ----------
    scan
        A map of mean diffusivity in MNI space, with its brain mask where there is one.
    resolution_mm
        Edge of a voxel. 4 mm is what a CPU trains in minutes; choose 2 where there is a GPU.

    Returns
    -------
    Feature
        ``dwimap``, (x, y, z), in mm²/s; 0 outside the brain.

    Raises
    ------
    DataError
        If the image is not 3-D, is damaged, or holds no finite value.

    References
    ----------
    .. [1] Basser & Pierpaoli (1996), Journal of Magnetic Resonance B 111(3). doi:10.1006/jmrb.1996.0086
    """
    values, affine = volumes.quantity(scan)
    return volumes.feature(
        scan, values, affine, resolution_mm, suffix="dwimap", unit="mm²/s", description="Mean diffusivity of the diffusion tensor",
        entities={"model": "tensor", "param": "md", "desc": ""},
    )  # fmt: skip
