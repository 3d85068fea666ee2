"""Slices of the T1-weighted brain, for models that see two dimensions."""

from __future__ import annotations

import numpy as np

from bids_dl import volumes
from bids_dl.errors import DataError
from bids_dl.records import Feature, Scan

TAKES = ("t1w",)
BY_DEFAULT = False
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
INSIDE = (0.2, 0.8)
"""The part of the axis from which slices are taken: the outermost hold little brain."""


def extract(scan: Scan, *, axis: str = "axial", n_slices: int = 20, resolution_mm: float = 3.0) -> Feature:
    """Cut evenly spaced slices out of a T1w that is standardised inside the brain.

    Parameters
    ----------
    scan
        A T1w in MNI space with its brain mask.
    axis
        ``axial``, ``coronal`` or ``sagittal``.
    n_slices
        Slices between a fifth and four fifths of the axis.
    resolution_mm
        Edge of a pixel.

    Returns
    -------
    Feature
        ``T1w``, (slice, x, y) or what remains of the axes in their order, standard deviations.

    Raises
    ------
    DataError
        If the axis is unknown, the image is damaged, or it is constant inside the brain.
    """
    if axis not in AXES:
        raise DataError(f"features.slices.axis is '{axis}'; choose from {', '.join(AXES)}.")
    values, affine = volumes.standardised(scan)
    standard = np.moveaxis(volumes.resampled(values, affine, resolution_mm), AXES[axis], 0)
    at = np.rint(np.linspace(*INSIDE, n_slices) * (len(standard) - 1)).astype(int)
    left = tuple(name for n, name in enumerate("xyz") if n != AXES[axis])
    named = {"desc": axis, "res": f"{resolution_mm:g}".replace(".", "p")}
    described = {"SkullStripped": True, "Resolution": f"{resolution_mm:g} mm", "SliceIndices": at.tolist()}
    return Feature(standard[at], ("slice", *left), "T1w", "standard deviation", (), named, described)
