"""The T1-weighted brain on one grid for everybody."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_dl import zoo
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("t1w",)
CORNER_MM, EXTENT_MM = (-90.0, -126.0, -72.0), (180.0, 216.0, 180.0)


def extract(scan: Scan, *, resolution_mm: float = 4.0) -> Feature:
    """Resample a T1w to the template's grid, inside the brain, with a mean of 0 and a standard deviation of 1.

    Parameters
    ----------
    scan
        A preprocessed T1w in MNI space with its brain mask; or a raw one, which is only centred (no registration).
    resolution_mm
        Edge of a voxel. 4 mm is what a CPU trains in minutes; choose 2 where there is a GPU.

    Returns
    -------
    Feature
        ``T1w``, (x, y, z), standard deviations of the brain's own intensities; 0 outside the brain.

    Raises
    ------
    DataError
        If the image is not 3-D, is damaged, or is constant inside the brain.
    """
    prepared = scan if scan.prepared else zoo.load("preparations", "t1w")(scan, None, scan.dataset)
    volume, affine = _load(prepared)
    grid, shape = template_grid(resolution_mm)
    standard = _resample(_in_brain(prepared, volume, scan.name), affine, grid, shape)
    named = {"space": scan.entities.get("space") or "MNI152NLin2009cAsym", "res": f"{resolution_mm:g}".replace(".", "p"),
             "desc": "brain" if scan.prepared else "centred"}  # fmt: skip
    described = {
        "SkullStripped": True, "Resolution": f"{resolution_mm:g} mm isotropic",
        "Description": "z-scored in the brain" + ("" if scan.prepared else "; raw scan, centred on the template, NOT registered"),
    }  # fmt: skip
    return Feature(standard, ("x", "y", "z"), "T1w", "standard deviation", (), named, described, grid)


def template_grid(resolution_mm: float) -> tuple[Array, tuple[int, ...]]:
    """Return the affine and the shape of the grid that covers the MNI brain at a resolution."""
    affine = np.diag([resolution_mm] * 3 + [1.0])
    affine[:3, 3] = CORNER_MM
    return affine, tuple(int(np.ceil(extent / resolution_mm)) for extent in EXTENT_MM)


def _load(scan: Scan) -> tuple[Array, Array]:
    try:
        image = nib.load(scan.path)
        volume = np.squeeze(np.asarray(image.dataobj, np.float32))
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise DataError(
            f"{scan.name} ends early or is damaged ({problem}); copy it again from its source."
        ) from problem
    if volume.ndim != 3:
        raise DataError(f"{scan.name} has {volume.ndim} dimensions; one volume (3) is expected.")
    return volume, scan_affine(scan, image)


def scan_affine(scan: Scan, image: nib.Nifti1Image) -> Array:
    """Return the image's affine, moved to the template's centre for a scan that was only centred."""
    if "offset_mm" not in scan.entities:
        return np.asarray(image.affine)
    moved = np.array(image.affine)
    moved[:3, 3] += np.array([float(v) for v in scan.entities["offset_mm"].split(",")])
    return moved


def _in_brain(scan: Scan, volume: Array, name: str) -> Array:
    """Standardise inside the mask (else where the image is not 0) and blank the rest."""
    brain = np.asanyarray(nib.load(scan.mask).dataobj) > 0 if scan.mask else np.nan_to_num(volume) != 0
    if brain.shape != volume.shape:
        raise DataError(f"{name} has the grid {volume.shape} but its mask {brain.shape}; give them one grid.")
    values = volume[brain]
    if values.size < 100 or not np.isfinite(values).all() or values.std() == 0:
        raise DataError(f"{name} is constant, empty or not finite inside the brain; look at the image and its mask.")
    return np.where(brain, (volume - values.mean()) / values.std(), 0)


def _resample(volume: Array, affine: Array, grid: Array, shape: tuple[int, ...]) -> Array:
    """Smooth to the coarser grid's bandwidth, then interpolate linearly."""
    step = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    sigma = 0.42 * np.maximum(grid[0, 0] / step - 1, 0)
    to_scan = np.linalg.inv(affine) @ grid
    smooth = ndimage.gaussian_filter(volume, sigma) if sigma.any() else volume
    return np.asarray(
        ndimage.affine_transform(smooth, to_scan[:3, :3], to_scan[:3, 3], output_shape=shape, order=1), np.float32
    )
