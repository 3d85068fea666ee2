"""Uptake in PET, as ratios to a reference region, on one grid for everybody."""

from __future__ import annotations

from bids_dl import volumes
from bids_dl.records import Feature, Scan

TAKES = ("pet",)


def extract(scan: Scan, *, resolution_mm: float = 4.0) -> Feature:
    """Resample a map of uptake ratios to the template's grid.

    Parameters
    ----------
    scan
        A PET in MNI space, divided by its reference region (SUVR).
    resolution_mm
        Edge of a voxel. 4 mm is what a CPU trains in minutes; choose 2 where there is a GPU.

    Returns
    -------
    Feature
        ``pet``, (x, y, z), ratios of uptake (SUVR); 0 outside the brain.

    Raises
    ------
    DataError
        If the image is not 3-D, is damaged, or holds no finite value.
    """
    values, affine = volumes.quantity(scan)
    return volumes.feature(
        scan, values, affine, resolution_mm, suffix="pet", unit="SUVR", description="SUVR",
        entities={"desc": "suvr"},
    )  # fmt: skip
