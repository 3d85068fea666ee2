"""How a head moved from volume to volume: rigid, by Gauss-Newton steps whose matrices are computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_dl.records import Array
from bids_dl.registration import Volume

N_POINTS, MAX_STEPS, TOLERANCE = 20_000, 20, 1e-4
SMOOTHING_VOXELS = 1.0
RADIUS_MM = 50.0
"""Radius of the sphere on which a rotation is told as a path [Power et al. 2012]."""


@dataclass(frozen=True)
class _Reference:
    """The volume that others are brought onto, at the points that say most about motion."""

    points: Array
    values: Array
    steepest: Array
    solver: Array
    centre: Array


def estimate(volumes: Array, affine: Array, mask: Array) -> Array:
    """Find the rigid motion of each volume against the mean of the aligned ones.

    The inverse compositional scheme [1]_ needs one interpolation of each volume a step; the gradients and the normal
    matrix are those of the reference.

    Parameters
    ----------
    volumes
        (x, y, z, time).
    affine
        Voxels to mm.
    mask
        The brain, (x, y, z).

    Returns
    -------
    Array
        (time, 6): shifts in mm along x, y, z, then rotations in rad about x, y, z through the centre of the brain: what
        maps a point of the reference to where it lies in the volume.

    References
    ----------
    .. [1] Baker & Matthews (2004), International Journal of Computer Vision 56(3). doi:10.1023/B:VISI.0000011205.11775.fd
    """
    middle = _smooth(volumes[..., volumes.shape[3] // 2])
    first = _follow(volumes, affine, _reference(middle, affine, mask))
    sampled = np.unique(np.linspace(0, volumes.shape[3] - 1, 40).astype(int))
    aligned = [resampled(volumes[..., t], affine, first[t], centre_of(mask, affine)) for t in sampled]
    return _follow(volumes, affine, _reference(_smooth(np.mean(aligned, axis=0)), affine, mask), first)


def _smooth(volume: Array) -> Array:
    return np.asarray(ndimage.gaussian_filter(np.asarray(volume, np.float32), SMOOTHING_VOXELS))


def centre_of(mask: Array, affine: Array) -> Array:
    """Return the centre of a mask in mm."""
    centre: Array = affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]
    return centre


def _reference(volume: Array, affine: Array, mask: Array) -> _Reference:
    gradient = np.stack(np.gradient(volume), axis=-1) @ np.linalg.inv(affine[:3, :3])  # a step in mm, not in voxels
    at = np.argwhere(mask)
    strength = np.linalg.norm(gradient[tuple(at.T)], axis=1)
    at = at[np.sort(np.argsort(-strength)[:N_POINTS])]
    points, centre = at @ affine[:3, :3].T + affine[:3, 3], centre_of(mask, affine)
    slopes = gradient[tuple(at.T)]
    steepest = np.hstack([slopes, np.cross(points - centre, slopes)])  # (point, 6)
    values = volume[tuple(at.T)]
    design = np.hstack([steepest, values[:, None]])  # a volume may be brighter as a whole
    return _Reference(points, values, steepest, np.linalg.pinv(design), centre)


def _follow(volumes: Array, affine: Array, reference: _Reference, start: Array | None = None) -> Array:
    """Align each volume, starting from where the one before it lay."""
    found = np.zeros((volumes.shape[3], 6))
    before: Array = np.eye(4)
    for t in range(volumes.shape[3]):
        if start is not None:
            before = matrix(start[t], reference.centre)
        before = _align(_smooth(volumes[..., t]), affine, reference, before)
        found[t] = parameters(before, reference.centre)
    return found


def _align(volume: Array, affine: Array, reference: _Reference, moved: Array) -> Array:
    to_voxels = np.linalg.inv(affine)
    for _ in range(MAX_STEPS):
        voxels = to_voxels @ moved
        at = voxels[:3, :3] @ reference.points.T + voxels[:3, 3:]
        seen = ndimage.map_coordinates(volume, at, order=1, mode="nearest")
        step = (reference.solver @ (seen - reference.values))[:6]
        moved = moved @ np.linalg.inv(matrix(step, reference.centre))
        if np.abs(step * [1, 1, 1, RADIUS_MM, RADIUS_MM, RADIUS_MM]).max() < TOLERANCE * 10:
            break
    return moved


def matrix(parameters_: Array, centre: Array) -> Array:
    """Turn shifts (mm) and rotations (rad; x, then y, then z) about a centre into a matrix on mm."""
    from scipy.spatial.transform import Rotation

    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("xyz", parameters_[3:]).as_matrix()
    moved[:3, 3] = centre + parameters_[:3] - moved[:3, :3] @ centre
    return moved


def parameters(moved: Array, centre: Array) -> Array:
    """Read shifts and rotations back from a matrix."""
    from scipy.spatial.transform import Rotation

    shift = moved[:3, :3] @ centre + moved[:3, 3] - centre
    return np.concatenate([shift, Rotation.from_matrix(moved[:3, :3]).as_euler("xyz")])


def resampled(volume: Array, affine: Array, parameters_: Array, centre: Array) -> Array:
    """Undo a motion: the volume as it would have been without it."""
    back = np.linalg.inv(affine) @ matrix(parameters_, centre) @ affine
    return np.asarray(ndimage.affine_transform(np.asarray(volume, np.float32), back[:3, :3], back[:3, 3], order=1))


def displacement(motion: Array) -> Array:
    """Sum up how far the head moved from each volume to the next, (time,), in mm; the first is NaN [1]_.

    References
    ----------
    .. [1] Power et al. (2012), NeuroImage 59(3). doi:10.1016/j.neuroimage.2011.10.018
    """
    arcs = motion * [1, 1, 1, RADIUS_MM, RADIUS_MM, RADIUS_MM]
    return np.append(np.nan, np.abs(np.diff(arcs, axis=0)).sum(axis=1))


def at_points(volume: Volume, points: Array, moved: Array, *, order: int) -> Array:
    """Read a moved volume at points (point, 3) in mm of the reference."""
    voxels = np.linalg.inv(volume.affine) @ moved
    at = voxels[:3, :3] @ points.T + voxels[:3, 3:]
    return np.asarray(ndimage.map_coordinates(volume.values, at, order=order, mode="constant"))
