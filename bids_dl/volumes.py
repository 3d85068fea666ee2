"""Images of a brain on the one grid that every participant's volumes share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_dl.errors import DataError, damaged
from bids_dl.records import Array, Feature, Scan

CORNER_MM, EXTENT_MM = (-90.0, -126.0, -72.0), (180.0, 216.0, 180.0)
STANDARD = "MNI152NLin2009cAsym"


def template_grid(resolution_mm: float) -> tuple[Array, tuple[int, ...]]:
    """Return the affine and the shape of the grid that covers the MNI brain at a resolution."""
    affine = np.diag([resolution_mm] * 3 + [1.0])
    affine[:3, 3] = CORNER_MM
    return affine, tuple(int(np.ceil(extent / resolution_mm)) for extent in EXTENT_MM)


def load(path: Path, name: str) -> tuple[Array, Array]:
    """Read one volume, (x, y, z), and its affine.

    Raises
    ------
    DataError
        If the file is damaged, or holds not one volume.
    """
    try:
        image = nib.load(path)
        volume = np.squeeze(np.asarray(image.dataobj, np.float32))
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise damaged(name, problem) from problem
    if volume.ndim != 3:
        raise DataError(f"{name} has {volume.ndim} dimensions; one volume (3) is expected.")
    return volume, np.asarray(image.affine)


def brain_of(scan: Scan, volume: Array, affine: Array) -> Any:
    """Read a scan's mask, else take what is not 0.

    Raises
    ------
    DataError
        If the mask is damaged or lies on another grid, be it by one voxel, or there is no brain in it.
    """
    if scan.mask is None:
        brain = np.nan_to_num(volume) != 0
    else:
        mask, place = load(scan.mask, f"{scan.name}: its mask {scan.mask.name}")
        brain = mask > 0
        if brain.shape != volume.shape:
            raise DataError(f"{scan.name} has the grid {volume.shape} but its mask {brain.shape}; give them one grid.")
        apart = np.abs(place - affine).max()
        if apart > 0.1:
            raise DataError(f"{scan.name} and its mask lie {apart:.1f} mm apart; give them one grid.")
    if brain.sum() < 100 or not np.isfinite(volume[brain]).all():
        raise DataError(f"{scan.name} is empty or not finite inside the brain; look at the image and its mask.")
    return brain


def standardised(scan: Scan) -> tuple[Array, Array]:
    """Read an image with a mean of 0 and a standard deviation of 1 inside the brain, and 0 outside; and its affine.

    Raises
    ------
    DataError
        If it cannot be read, or is constant inside the brain.
    """
    volume, affine = load(scan.path, scan.name)
    brain = brain_of(scan, volume, affine)
    values = volume[brain]
    if values.std() == 0:
        raise DataError(f"{scan.name} is constant inside the brain; look at the image and its mask.")
    return np.where(brain, (volume - values.mean()) / values.std(), 0), affine


def quantity(scan: Scan) -> tuple[Array, Array]:
    """Read a map whose values have a unit, as they are inside the brain and 0 outside; and its affine."""
    volume, affine = load(scan.path, scan.name)
    return np.where(brain_of(scan, volume, affine), volume, 0), affine


def resampled(volume: Array, affine: Array, resolution_mm: float) -> Array:
    """Smooth to the common grid's bandwidth, then interpolate linearly onto it."""
    grid, shape = template_grid(resolution_mm)
    step = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    sigma = 0.42 * np.maximum(grid[0, 0] / step - 1, 0)
    to_scan = np.linalg.inv(affine) @ grid
    smooth = ndimage.gaussian_filter(volume, sigma) if sigma.any() else volume
    return np.asarray(
        ndimage.affine_transform(smooth, to_scan[:3, :3], to_scan[:3, 3], output_shape=shape, order=1), np.float32
    )


def feature(
    scan: Scan, values: Array, affine: Array, resolution_mm: float, *, suffix: str, unit: str, description: str,
    entities: Mapping[str, str],
) -> Feature:  # fmt: skip
    """Bring values onto the common grid and describe them as a feature, (x, y, z)."""
    named = {"space": scan.entities.get("space") or STANDARD, "res": f"{resolution_mm:g}".replace(".", "p")}
    described = {"SkullStripped": True, "Resolution": f"{resolution_mm:g} mm isotropic", "Description": description}
    grid, _ = template_grid(resolution_mm)
    standard = resampled(values, affine, resolution_mm)
    return Feature(standard, ("x", "y", "z"), suffix, unit, (), {**named, **entities}, described, grid)
