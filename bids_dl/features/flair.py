"""The brain in FLAIR, which darkens fluid, on one grid for everybody."""

from __future__ import annotations

from bids_dl import volumes
from bids_dl.records import Feature, Scan

TAKES = ("flair",)


def extract(scan: Scan, *, resolution_mm: float = 4.0) -> Feature:
    """Resample a FLAIR to the template's grid, inside the brain, with a mean of 0 and a standard deviation of 1.

    Parameters
    ----------
    scan
        A FLAIR in MNI space with its brain mask.
    resolution_mm
        Edge of a voxel. 4 mm is what a CPU trains in minutes; choose 2 where there is a GPU.

    Returns
    -------
    Feature
        ``FLAIR``, (x, y, z), standard deviations of the brain's own intensities; 0 outside the brain.

    Raises
    ------
    DataError
        If the image is not 3-D, is damaged, or is constant inside the brain.
    """
    values, affine = volumes.standardised(scan)
    return volumes.feature(
        scan, values, affine, resolution_mm, suffix="FLAIR", unit="standard deviation", description="z-scored in the brain",
        entities={"desc": "brain"},
    )  # fmt: skip
